"""What a data protection officer sees of links: open conflicts, and everything that happened to somebody's links."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from consent_service import db, decode
from consent_service.auth import Credential
from consent_service.decisions import open_conflicts
from consent_service.errors import Invalid
from consent_service.ledger import Ledgers
from consent_service.links.model import Conflict, Conflicts, ConflictsBody, LinkHistory, Links, LinksBody
from consent_service.links.write import READ_LINKS
from consent_service.subjects import id_errors
from consent_service.tenures import Person, Snapshot, names, read, subjects
from consent_service.vault import Place

_FIRST = UUID(int=0)
_ENCODER = msgspec.json.Encoder()


class ConflictRow(msgspec.Struct, frozen=True):
    """A conflict as it was found."""

    link: UUID
    purpose: str
    channel: str
    opened_at: datetime
    identifier: bytes
    shared: bool
    anchor: bytes


class LastRow(msgspec.Struct, frozen=True):
    """The last link of a page."""

    link: UUID


class EventRow(msgspec.Struct, frozen=True):
    """What happened to a link."""

    event: UUID
    link: UUID
    identifier: bytes
    tenure: int
    payload: bytes
    key: bytes


_READ_CONFLICTS = db.many("links", "read_conflicts", ConflictRow)
_READ_LAST = db.one("links", "last_conflict", LastRow)
_READ_EVENTS = db.many("links", "read_link_events", EventRow)


class Conflicted:
    """Reads about links, of all tenants."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    async def conflicts(self, raw: bytes, credential: Credential) -> bytes:
        """A page of open conflicts (`ConflictsBody` to `Conflicts`)."""
        body = decode.body(raw, ConflictsBody)
        ledger = self._ledgers.of(credential.log_id)
        only = None
        if body.subject is not None:
            if errors := tuple(id_errors(body.subject.id, "/subject/id")):
                raise Invalid("Some fields cannot be accepted.", errors)
            only = ledger.hasher.identifier(body.subject)
        after = body.after or _FIRST
        async with ledger.connection() as connection:
            rows = await _READ_CONFLICTS(connection, ledger.log_id, after, body.limit)
            last = await _READ_LAST(connection, ledger.log_id, after, body.limit)
        sides = {row.identifier: row.shared for row in rows} | {row.anchor: False for row in rows}
        snapshot = await read(ledger, list(sides), list(sides.values()))
        found = [
            Conflict(
                link=row.link, purpose=row.purpose, channel=row.channel, opened_at=row.opened_at,
                identifiers=await names(ledger, who.members),
            )
            for row in rows
            for who in _open_for(snapshot, row)
            if only is None or any(member.member == only for member in who.members)
        ]  # fmt: skip
        return _ENCODER.encode(Conflicts(found, None if last is None else last.link))

    async def links(self, raw: bytes, credential: Credential) -> bytes:
        """Every link that an identifier ever took part in (`LinksBody` to `Links`)."""
        body = decode.body(raw, LinksBody)
        if errors := tuple(id_errors(body.subject.id, "/subject/id")):
            raise Invalid("Some fields cannot be accepted.", errors)
        ledger = self._ledgers.of(credential.log_id)
        async with ledger.connection() as connection:
            rows = await READ_LINKS(connection, ledger.log_id, [ledger.hasher.identifier(body.subject)])
            events = await _READ_EVENTS(connection, ledger.log_id, [row.link for row in rows])
            named = await subjects(connection, ledger, [side for row in rows for side in (row.identifier, row.anchor)])
        told: dict[UUID, list[msgspec.Raw]] = {}
        for event in events:
            key = ledger.vault.open(Place(ledger.log_id, event.identifier, event.tenure), event.key)
            told.setdefault(event.link, []).append(msgspec.Raw(key.open(event.event.bytes, event.payload)))
        return _ENCODER.encode(
            Links([
                LinkHistory(
                    link=row.link, kind=row.kind, identifier=named.get(row.identifier), anchor=named.get(row.anchor),
                    since=row.began_at, until=row.until, ended_at=row.ended_at,
                    annulled_at=row.annulled_at, events=told.get(row.link, []),
                )
                for row in rows
            ])
        )  # fmt: skip


def _open_for(snapshot: Snapshot, row: ConflictRow) -> list[Person]:
    """For whom it is still open: the person that the two are, or each of them where they are linked no more."""
    if row.purpose not in snapshot.policy.purposes:
        return []
    persons = {snapshot.members[side].account: snapshot.of(side) for side in (row.anchor, row.identifier)}
    return [
        who
        for who in persons.values()
        if (row.purpose, row.channel)
        in open_conflicts(snapshot.policy, who.states, (row.purpose,), snapshot.head.now, who.ties)
    ]
