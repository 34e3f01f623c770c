"""The consent state: what remains of a person's records once only the current ones count.

A state row belongs to one identifier × purpose × channel × contact × recipient and has one of nine slots. In each slot
and evidence grade the record with the latest `occurred_at` stands; nothing is ever merged across slots. The fold is
therefore commutative, associative and idempotent: records may arrive in any order, from any edge, more than once, and
the rows come out the same. What the rows *mean* together is for `decisions.decide` alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args
from uuid import UUID

import msgspec
from msgspec import Meta

from consent_service.policies import EXPLICIT_METHODS
from consent_service.subjects import Subject

Status = Literal[
    "given", "refused", "withdrawn", "objected", "requested", "confirmed", "renewed", "restricted",
    "restriction_lifted", "applies", "ceased",
]  # fmt: skip
STATUSES: tuple[Status, ...] = get_args(Status)

GRANTS: frozenset[str] = frozenset({"given", "confirmed", "renewed"})
RESTRICTIVE: frozenset[str] = frozenset({"withdrawn", "refused", "objected"})
"""A person's no: needs a subject and a purpose, nothing else, and always stands."""
FOR_ALL: frozenset[str] = RESTRICTIVE | {"restricted", "restriction_lifted"}
"""What may be said of all purposes at once, and passes down from a purpose to those that belong to it."""
CARRIED: frozenset[str] = RESTRICTIVE | {"restricted", "ceased"}
"""What holds for every identifier of the person, also after they are no longer linked."""

ANY = ""
"""In a key: every channel, every contact or every recipient. As a purpose, `ALL_PURPOSES` says the same."""
ALL_PURPOSES = "*"


class Slot:
    """What kind of statement a row makes. Plain numbers: every check compares them many times."""

    REQUEST: Final = 0
    GRANT: Final = 1
    BLOCK: Final = 2
    FACT: Final = 3
    RESTRICTION: Final = 4
    OBJECTION: Final = 5
    """A slot of its own: a withdrawal of consent, however late, takes nothing from an objection to another basis."""
    EXPLICIT: Final = 6
    """A grant by an express statement: a mere click, however late, takes nothing from it."""
    GUARDIAN: Final = 7
    """A grant that a guardian gave for a child: what the child clicks takes nothing from it."""
    TOMBSTONE: Final = 8
    """What an erasure left: nobody said it, and it says nothing but that direct marketing stays off for a time."""


SLOT: dict[str, int] = {
    "requested": Slot.REQUEST,
    "given": Slot.GRANT,
    "confirmed": Slot.GRANT,
    "renewed": Slot.GRANT,
    "withdrawn": Slot.BLOCK,
    "refused": Slot.BLOCK,
    "objected": Slot.OBJECTION,
    "applies": Slot.FACT,
    "ceased": Slot.FACT,
    "restricted": Slot.RESTRICTION,
    "restriction_lifted": Slot.RESTRICTION,
}

TOMBSTONE: Final = "suppressed"
"""The status of that row."""

# On equal times the status that permits less stands.
_CAUTION: dict[str, int] = {
    status: rank
    for rank, status in enumerate(
        ("given", "renewed", "confirmed", "requested", "applies", "restriction_lifted", "ceased", "refused",
         "withdrawn", "objected", "restricted", TOMBSTONE)
    )
}  # fmt: skip


StateKey = tuple[str, str, bytes, str, int, int, int, bytes]
"""What a row is unique by within one identifier: purpose, channel, contact, recipient, slot, grade, tenure, via."""


Moment = Annotated[datetime, Meta(tz=True)]
"""A time with its zone; RFC 3339 on the wire."""


class State(msgspec.Struct, frozen=True, gc=False):
    """One row of `consent_state`, in the order of its columns."""

    identifier: bytes
    """Keyed hash of the identifier that the person used."""
    purpose: str
    """A purpose's id, or `*`."""
    channel: str
    """A channel, or "" for all."""
    contact: bytes
    """Keyed hash of the contact that a grant holds for, or b"" for none named."""
    recipient: str
    slot: int
    grade: int
    """Place in `policies.GRADES`."""
    tenure: int
    """The strand of the identifier in which it was recorded."""
    via: bytes
    """The links (16 bytes each) that carried a no here from another identifier, or that of the guardian who agreed;
    b"" for what was said here."""
    status: Status
    """Of a tombstone `suppressed`, which nobody can say."""
    occurred_at: datetime
    recorded_at: datetime
    expires_at: datetime | None
    """End of a grant as promised when it was given; of a tombstone."""
    notice: str
    """The notice that was shown; "", 0 and "" where none was."""
    notice_version: int
    language: str
    method: str
    event: UUID
    linked_at: datetime | None = None
    """Of a carried no: since when the identifiers belonged together."""
    origin: bytes = b""
    """On which identifier it was said."""
    account: bytes = b""
    """Whose account it was then."""

    @property
    def key(self) -> StateKey:
        """What the row is unique by, within one identifier."""
        return (
            self.purpose, self.channel, self.contact, self.recipient, self.slot, self.grade, self.tenure, self.via,
        )  # fmt: skip

    @property
    def rank(self) -> tuple[datetime, int, UUID]:
        """Of two rows with the same key the one with the greater rank stands; total, so that no order matters."""
        return (self.occurred_at, _CAUTION[self.status], self.event)


def slot_of(status: Status, method: str | None, *, guardian: bool = False) -> int:
    """The slot of a record."""
    if guardian and status in GRANTS:
        return Slot.GUARDIAN
    return Slot.EXPLICIT if status in GRANTS and method in EXPLICIT_METHODS else SLOT[status]


Standing = dict[StateKey, State]
"""The rows that stand for one identifier, by key."""


def fold(standing: Standing, state: State) -> StateKey | None:
    """Let a new row take its place among the standing ones; its key if it does."""
    key = state.key
    other = standing.get(key)
    if other is not None and other.rank >= state.rank:
        return None
    standing[key] = state
    return key


# -- the event: what was recorded, as history and proofs show it ----------------------------------------------------


class EventRecord(msgspec.Struct, frozen=True):
    """One record of an act."""

    purpose: str
    status: Status
    channel: str | None
    contact: str | None
    recipient: str | None
    occurred_at: Moment


class EventNotice(msgspec.Struct, frozen=True):
    """The notice that the person was shown."""

    id: str
    version: int
    language: str
    hash: str | None
    """SHA-256 (hex) of the notice's canonical JSON, prose included."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One act of a person, whole; its canonical JSON is the payload that the ledger commits to."""

    event: UUID
    recorded_at: Moment
    subject: Subject
    records: list[EventRecord]
    notice: EventNotice | None
    method: str | None
    evidence: dict[str, Any] | None
    grade: str
    guardian: UUID | None
    """The link by which somebody acted as guardian of the subject, a child. Nobody's event names anybody else: each can
    be erased."""
    credential: str
    """Who reported it."""
    policy: int
    """Version of the policy in force."""
