"""Strands, and events that are added to them one by one while the head is held; consents come by batches instead."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, Protocol, cast
from uuid import UUID

import msgspec

from consent_service import db
from consent_service.ledger.book import Ledger
from consent_service.ledger.entry import tag
from consent_service.ledger.receipt import Opening
from consent_service.subjects import Subject
from consent_service.vault import VALUE, Place, StrandKey


class StrandRow(msgspec.Struct, frozen=True):
    """The current strand of an identifier."""

    tenure: int
    namespace: str
    key: bytes
    value: bytes


class CountedRow(msgspec.Struct, frozen=True):
    """A strand that has got another event."""

    events: int
    namespace: str
    key: bytes
    value: bytes


class Kind(NamedTuple):
    """What an event is about, in the clear."""

    kind: str
    what: str
    grade: int = 0
    link: UUID | None = None


class Told(Protocol):
    """What an event says, as far as every event says it."""

    @property
    def event(self) -> UUID: ...  # noqa: D102
    @property
    def recorded_at(self) -> datetime: ...  # noqa: D102
    @property
    def credential(self) -> str: ...  # noqa: D102


_READ_STRAND = db.one("ledger", "read_strand", StrandRow)
_ADD_STRAND = db.execute("ledger", "add_strand")
_COUNT_EVENT = db.one("ledger", "count_event", CountedRow)
_ADD_EVENT = db.execute("ledger", "add_event")
_PAYLOAD = msgspec.json.Encoder(order="sorted")


async def current(connection: db.Connection, ledger: Ledger, identifier: bytes) -> StrandRow | None:
    """The strand in which an identifier is now; None: nobody knows it."""
    return await _READ_STRAND(connection, ledger.log_id, identifier)


async def begin(connection: db.Connection, ledger: Ledger, subject: Subject, tenure: int) -> None:
    """Make the strand of a tenure."""
    identifier = ledger.hasher.identifier(subject)
    key = ledger.vault.make(Place(ledger.log_id, identifier, tenure))
    value = key.seal(VALUE, subject.id.encode())
    await _ADD_STRAND(connection, ledger.log_id, identifier, tenure, subject.type, key.wrapped, value)


async def tell(connection: db.Connection, ledger: Ledger, place: Place, index: int, kind: Kind, told: Told) -> Opening:
    """Add an event to a strand, as the entry at `index`; what opens that entry, which the caller appends.

    The event's field `subject` is filled in here.
    """
    log_id, identifier, tenure = place
    strand = await _COUNT_EVENT(connection, log_id, identifier, tenure)
    assert strand is not None, "a strand is made before it is told anything"  # noqa: S101 -- under the head's lock
    key = ledger.vault.open(place, strand.key)
    payload = _PAYLOAD.encode(msgspec.structs.replace(cast("Any", told), subject=name(strand, key)))
    await _ADD_EVENT(
        connection, log_id, index, told.event, kind.kind, identifier, tenure, strand.events, [kind.what],
        told.credential, kind.grade, told.recorded_at, kind.link, key.seal(told.event.bytes, payload),
    )  # fmt: skip
    return Opening(msgspec.Raw(payload), key.salt(told.event), tag(key.tags, strand.events))


def name(strand: StrandRow | CountedRow, key: StrandKey) -> Subject:
    """The identifier of a strand, as it was given."""
    return Subject(strand.namespace, key.open(VALUE, strand.value).decode())
