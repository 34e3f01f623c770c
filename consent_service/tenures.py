"""Who stands for whom, and since when: from links to the rows that count for one person now. Derived at every read.

Each identifier keeps its own rows, in the tenure in which they were recorded. A person is an account with whatever is
linked to it at the moment, or an identifier that is linked to nothing. Then

- what any of these identifiers permits counts while it is linked; of one that was linked to somebody else before, only
  what was recorded since;
- a no counts wherever it was said, and was carried to every identifier that was linked when it was recorded;
- a thing that changes hands brings nothing from outside its present tenure, whenever that is reported;
- groups restrict and never consent; a guardian's link says until when a child is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec

from consent_service import db
from consent_service.errors import NotFound
from consent_service.ledger import Head, Ledger
from consent_service.policies import Policy
from consent_service.states import CARRIED, Moment, Slot, Standing, State, fold
from consent_service.subjects import Subject
from consent_service.vault import VALUE, Place

Kind = Literal["self", "identity", "group", "guardian"]


class Member(msgspec.Struct, frozen=True, gc=False):
    """One identifier of a person, in the order of the query's columns."""

    account: bytes
    """Which person: the account's identifier, or the only one there is."""
    member: bytes
    kind: Kind
    link: UUID | None
    member_tenure: int
    """The strand that the link began; of a person's account the current one, where a no is carried to; else 0."""
    base: int
    """Grants of strands up to this one were somebody else's."""
    shared: bool
    """Whether it is a thing that changes hands."""
    began_at: datetime | None
    """Since when it is linked, later than whatever was recorded before; of a thing that is nobody's, since when."""
    until: datetime | None
    """When the link ends by itself."""


class Ties(msgspec.Struct, frozen=True):
    """What a decision needs to know beside the rows."""

    account: bytes = b""
    """The account's identifier; empty where nothing is linked."""
    since: Mapping[bytes, datetime] = {}
    """When each of the other identifiers was linked to it."""
    groups: tuple[tuple[State, ...], ...] = ()
    """The rows of each group that the person belongs to."""
    minor_until: datetime | None = None
    """A child with a guardian, and the day from which it decides alone."""
    until: datetime | None = None
    """The first moment at which a link ends by itself."""


ALONE = Ties()


class LinkedIdentifier(msgspec.Struct, frozen=True, kw_only=True):
    """One of the identifiers by which a person is known, or a group or guardian."""

    type: str
    id: str
    kind: Kind
    """`self`: the account, or the identifier asked about where it is linked to none."""
    link: UUID | None
    since: Moment | None
    until: Moment | None


class NameRow(msgspec.Struct, frozen=True):
    """An identifier's sealed value, and the key of its current strand."""

    identifier: bytes
    tenure: int
    namespace: str
    value: bytes
    key: bytes


class StrandRow(msgspec.Struct, frozen=True):
    """A strand of a person."""

    identifier: bytes
    tenure: int
    namespace: str
    key: bytes
    """Wrapped."""
    value: bytes
    """Sealed."""
    events: int
    is_account: bool
    is_whole: bool
    """Whether the identifier is the person's altogether: the account, or linked to it now and nothing that changes
    hands. Others were theirs for a time."""


class Person(NamedTuple):
    """One person as known now."""

    members: tuple[Member, ...]
    states: Sequence[State]
    ties: Ties


class Snapshot(NamedTuple):
    """What one read found."""

    head: Head
    policy: Policy
    members: dict[bytes, Member]
    """The membership of each identifier asked about, and of everything linked to it, by identifier."""
    persons: dict[bytes, Person]
    """By account."""
    standing: dict[bytes, Standing]
    """The rows of each identifier."""

    def of(self, identifier: bytes) -> Person:
        """The person that an identifier stands for."""
        return self.persons[self.members[identifier].account]

    def own(self, identifier: bytes) -> Person:
        """The identifier as if it were linked to nothing; what was carried to it stays."""
        return own(self.members[identifier], self.standing)


_READ = db.headed("tenures", "read_persons", Head, Member, State)
READ_STRANDS = db.many("tenures", "read_strands", StrandRow)
"""All that is a person's, now or from before: what is told of them as theirs, and goes when they are erased."""
_READ_NAMES = db.many("tenures", "read_names", NameRow)


class Found(NamedTuple):
    """What the statement found, as it is stored."""

    head: Head
    members: dict[bytes, list[Member]]
    """By account, itself leading."""
    standing: dict[bytes, Standing]
    """By identifier."""


async def find(
    connection: db.Connection,
    log_id: int,
    identifiers: Sequence[bytes],
    shared: Sequence[bool],
    now: datetime | None = None,
) -> Found:
    """The members of every person that the identifiers stand for, and the rows that stand, at one revision.

    `now`: the moment whose links are meant, where that was read before.
    """
    found = await _READ(connection, log_id, identifiers, shared, now)
    if found is None:
        raise NotFound("There is no such tenant.")
    members: dict[bytes, dict[tuple[bytes, UUID | None], Member]] = {}
    standing: dict[bytes, Standing] = {}
    for member, state in found[1]:
        if member is not None:
            members.setdefault(member.account, {})[member.member, member.link] = member
        if state is not None:
            standing.setdefault(state.identifier, {})[state.key] = state
    return Found(found[0], {account: list(own.values()) for account, own in members.items()}, standing)


async def read(ledger: Ledger, identifiers: Sequence[bytes], shared: Sequence[bool]) -> Snapshot:
    """The persons that the identifiers stand for now, and the policy in force."""
    async with ledger.connection() as connection:
        head, members, standing = await find(connection, ledger.log_id, identifiers, shared)
        policy = await ledger.policies.get(connection, ledger.log_id, head.policy)
    persons = {account: person(own, standing) for account, own in members.items()}
    mine = {m.member: m for own in members.values() for m in own if m.kind in ("self", "identity")}
    return Snapshot(head, policy, mine, persons, standing)


async def names(ledger: Ledger, members: Sequence[Member]) -> list[LinkedIdentifier]:
    """The members of a person with their values; one for which nothing was ever recorded has none."""
    async with ledger.connection() as connection:
        known = await subjects(connection, ledger, [member.member for member in members])
    return [
        LinkedIdentifier(
            type=subject.type, id=subject.id, kind=member.kind, link=member.link, since=member.began_at,
            until=member.until,
        )
        for member in members
        if (subject := known.get(member.member)) is not None
    ]  # fmt: skip


async def subjects(connection: db.Connection, ledger: Ledger, identifiers: Sequence[bytes]) -> dict[bytes, Subject]:
    """Identifiers as they were given, by their keyed hashes; those of which anything was recorded."""
    found = {}
    for row in await _READ_NAMES(connection, ledger.log_id, identifiers):
        key = ledger.vault.open(Place(ledger.log_id, row.identifier, row.tenure), row.key)
        found[row.identifier] = Subject(row.namespace, key.open(VALUE, row.value).decode())
    return found


def person(members: Sequence[Member], standing: Mapping[bytes, Standing]) -> Person:
    """One person, from members and the rows that stand for them."""
    first = members[0]
    if len(members) == 1 and not first.shared:
        return Person((first,), _own(standing.get(first.member, {}).values()), ALONE)
    guardians = frozenset(m.link.bytes for m in members if m.kind == "guardian" and m.link is not None)
    states: list[State] = []
    groups: list[tuple[State, ...]] = []
    for member in members:
        rows = standing.get(member.member, {}).values()
        if member.kind == "group":
            groups.append(tuple(_own(row for row in rows if not row.via)))
        elif member.kind != "guardian":
            states += _own((row for row in rows if _counts(member, row)), guardians)
    since = {m.member: m.began_at for m in members if m.kind == "identity" and m.began_at is not None}
    return Person(
        tuple(members),
        states,
        Ties(
            account=first.account if since else b"",
            since=since,
            groups=tuple(groups),
            minor_until=max((m.until for m in members if m.kind == "guardian" and m.until is not None), default=None),
            until=min((m.until for m in members if m.until is not None), default=None),
        ),
    )


def own(member: Member, standing: Mapping[bytes, Standing]) -> Person:
    """One identifier as if it were linked to nothing; what was carried to it stays."""
    member = msgspec.structs.replace(member, kind="self", link=None)
    rows = [row for row in standing.get(member.member, {}).values() if _counts(member, row)]
    return Person((member,), _own(rows), ALONE)


def _counts(member: Member, row: State) -> bool:
    """Whether a row of an identifier speaks for the person."""
    if member.shared:
        in_tenure = row.tenure == member.member_tenure if member.member_tenure else row.tenure > member.base
        return in_tenure and speaks_for(member, row)
    return row.tenure > member.base or row.status in CARRIED or row.slot == Slot.TOMBSTONE


def speaks_for(member: Member, row: State) -> bool:
    """Whether what was said on an identifier was said by whoever has it now: a thing may have been somebody else's."""
    return not member.shared or member.began_at is None or row.occurred_at >= member.began_at


def _own(rows: Iterable[State], guardians: frozenset[bytes] = frozenset()) -> list[State]:
    """Rows of one identifier as if it had had one tenure: of rows with the same key the latest stands.

    What a guardian agreed to counts while he is one.
    """
    rows = [row for row in rows if row.slot != Slot.GUARDIAN or row.via in guardians]
    if all(row.tenure == 1 for row in rows):
        return rows
    together: Standing = {}
    for row in rows:
        fold(together, msgspec.structs.replace(row, tenure=0))
    return list(together.values())
