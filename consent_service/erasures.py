"""Erasure: a person's data is made unreadable for ever, and the ledger stays as it was.

What goes are the keys of all strands that were the person's, and whatever they sealed: events, answers, addresses;
then links and states. Entries stay, and tell nothing to anybody. One entry more says how many of them, and the hash of
which. Proof that a law wants kept stays under lock until its day. And so that a list which is read in again brings no
advertising back, a keyed hash of each identifier and address stays for a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from consent_service import db, decode, devices, ids
from consent_service.auth import Credential
from consent_service.errors import Unavailable
from consent_service.ledger import Head, Ledger, Ledgers, Opening, Revision, Tip, append, lock_head, read_head
from consent_service.ledger.anchor import Anchor
from consent_service.ledger.entry import ErasureMade, ErasureReason, erased_digest, system, tag
from consent_service.policies import Policy
from consent_service.states import GRANTS
from consent_service.subjects import ADDRESSES, Subject, address
from consent_service.vault import VALUE, Place, StrandKey, contact_of

_SALT = 32


class EraseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to erase, by any one identifier: all that belongs to the same account goes."""

    subject: Subject
    dry_run: bool = False
    """Only tell what would go."""


class Erased(msgspec.Struct, frozen=True):
    """What went; in a dry run, what would go."""

    erasure: UUID | None
    """None: nothing went."""
    identifiers: list[Subject]
    """Told this one last time."""
    strands: int
    events: int
    held: int
    """Of the events: how many are kept under lock, because a law says so,"""
    held_until: datetime | None
    """and at most until when."""
    links: int
    suppressed_until: datetime | None
    """Until when direct marketing stays off without a fresh opt-in, should the person come in again."""
    rev: str
    recorded_at: datetime


class StrandRow(msgspec.Struct, frozen=True):
    """A strand that is the person's."""

    identifier: bytes
    tenure: int
    namespace: str
    key: bytes
    value: bytes


class LinkRow(msgspec.Struct, frozen=True):
    """A link that the person took part in."""

    link: UUID
    identifier: bytes
    anchor: bytes


class ContactRow(msgspec.Struct, frozen=True):
    """An address or number, sealed by the key of its strand."""

    identifier: bytes
    tenure: int
    contact: bytes
    value: bytes


class EventRow(msgspec.Struct, frozen=True):
    """An event; its payload only where its proof may have to be kept."""

    idx: int
    event: UUID
    identifier: bytes
    tenure: int
    sequence: int
    purposes: list[str]
    statuses: list[str]
    payload: bytes | None


class Stone(msgspec.Struct, frozen=True, array_like=True):
    """A tombstone: who is not advertised to, and until when."""

    identifier: bytes
    until: datetime


class Order(msgspec.Struct, frozen=True):
    """What an erasure destroys, by keyed hashes and random ids alone: a restored database is given it once more."""

    erasure: UUID
    strands: list[tuple[bytes, int]]
    links: list[UUID]
    around: list[bytes]
    """Identifiers to which a no of the person may have been carried; it stays there, and forgets whose it was."""
    stones: list[Stone]


class Held(NamedTuple):
    """Proof that is kept."""

    row: EventRow
    until: datetime
    wrapped: bytes
    opening: bytes
    """Sealed by the key before."""


class Found(NamedTuple):
    """A person as the database knows it."""

    order: Order
    names: list[Subject]
    events: list[EventRow]
    held: list[Held]


class IsDone(msgspec.Struct, frozen=True):
    """Whether the database knows of an erasure."""

    done: bool


_READ_STRANDS = db.many("erasures", "read_strands", StrandRow)
_READ_ORDERED = db.many("erasures", "read_ordered", StrandRow)
_READ_LINKS = db.many("erasures", "read_links", LinkRow)
_READ_CONTACTS = db.many("erasures", "read_contacts", ContactRow)
_READ_EVENTS = db.many("erasures", "read_events", EventRow)
_IS_DONE = db.one("erasures", "is_done", IsDone)
become = db.execute("erasures", "become")
"""Turn into the role that erases, until the transaction ends or it resigns."""
resign = db.execute("erasures", "resign")
_HOLD = db.execute("erasures", "hold")
_DESTROY = db.execute("erasures", "destroy")
_NOTE = db.execute("erasures", "note")
_SUPPRESS = db.execute("erasures", "suppress")
_ENCODER = msgspec.json.Encoder()
_ORDER = msgspec.json.Decoder(Order)


class Eraser:
    """Erases people, of all tenants."""

    def __init__(self, ledgers: Ledgers, anchor: Anchor | None = None) -> None:
        self._ledgers = ledgers
        self._anchor = anchor

    async def erase(self, raw: bytes, credential: Credential) -> bytes:
        """Erase a person, or tell what would go (`EraseBody` to `Erased`). Where nobody is, nothing goes.

        Raises:
            Unavailable, Frozen: nothing was erased; send the same again.
        """
        body = decode.body(raw, EraseBody)
        ledger = self._ledgers.of(credential.log_id)
        async with ledger.connection() as connection:
            if body.dry_run:
                head = await read_head(connection, ledger.log_id)
                return _ENCODER.encode(_told(await _find(connection, ledger, body.subject, head), head, head.revision))
            async with connection.transaction():
                tip = await lock_head(connection, ledger.log_id)
                found = await _find(connection, ledger, body.subject, tip)
                if not found.order.strands:
                    return _ENCODER.encode(_told(found, tip, tip.revision))
                by = ledger.hasher.once("credential", credential.id).hex()
                slug = await ledger.slug(connection)
                await _carry_out(connection, ledger, tip, found, by)
                await self._note(slug, found.order)
        told = _told(found, tip, Revision(tip.epoch, tip.size + 1))
        return _ENCODER.encode(msgspec.structs.replace(told, erasure=found.order.erasure))

    async def _note(self, slug: str, order: Order) -> None:
        """Tell whoever restores the database, before the erasure counts as done."""
        if self._anchor is not None:
            try:
                await self._anchor.note_erasure(slug, _ENCODER.encode(order))
            except Unavailable:
                raise Unavailable("The anchor, which has to know of an erasure, cannot be reached.") from None


async def repeat(connection: db.Connection, ledger: Ledger, anchor: Anchor) -> int:
    """Carry out the erasures that a restored database does not know of; how many these were."""
    done = 0
    for line in await anchor.erasures(await ledger.slug(connection)):
        order = _ORDER.decode(line)
        async with connection.transaction():
            tip = await lock_head(connection, ledger.log_id)
            known = await _IS_DONE(connection, ledger.log_id, order.erasure)
            if known is not None:
                continue
            columns = _columns(order.strands)
            strands = await _READ_ORDERED(connection, ledger.log_id, *columns)
            policy = await ledger.policies.get(connection, ledger.log_id, tip.policy)
            keys = _opened(ledger, strands)
            events = await _READ_EVENTS(connection, ledger.log_id, *columns, _proving(policy))
            await _carry_out(
                connection, ledger, tip, Found(order, [], events, _held(ledger, policy, keys, events, tip.now)), ""
            )
            done += 1
    return done


async def _find(connection: db.Connection, ledger: Ledger, subject: Subject, head: Head) -> Found:
    """All that is the person's, whichever of its identifiers was named."""
    log_id = ledger.log_id
    policy = await ledger.policies.get(connection, log_id, head.policy)
    identifier = ledger.hasher.identifier(subject)
    strands = await _READ_STRANDS(connection, log_id, identifier, subject.type in policy.tenant.shared)
    keys = _opened(ledger, strands)
    columns = _columns(keys)
    events = await _READ_EVENTS(connection, log_id, *columns, _proving(policy))
    links = await _READ_LINKS(connection, log_id, identifier)
    contacts = await _READ_CONTACTS(connection, log_id, *columns)
    names = [Subject(row.namespace, _open(keys, row, VALUE).decode()) for row in strands]
    addresses = [address(_open(keys, row, contact_of(row.contact)).decode()) for row in contacts]
    addresses += [address(name.id) for name in names if name.type in ADDRESSES]  # in whichever spelling it comes back
    things = (devices.NAMESPACE, *policy.tenant.shared)  # which nobody advertises to
    people = [name for name in names if name.type not in things]
    until = policy.tenant.suppression.after(head.now)
    stones = sorted({ledger.hasher.identifier(one) for one in (*people, *addresses)})
    order = Order(
        erasure=ids.event_id(),
        strands=list(keys),
        links=[link.link for link in links],
        around=sorted({end for link in links for end in (link.identifier, link.anchor)}),
        stones=[Stone(stone, until) for stone in stones],
    )
    return Found(order, list(dict.fromkeys(names)), events, _held(ledger, policy, keys, events, head.now))


def _proving(policy: Policy) -> list[str]:
    """The purposes whose consents have to be proved longer than the person is known."""
    return sorted(purpose.id for purpose in policy.purposes.values() if purpose.proof_kept is not None)


Keys = Mapping[tuple[bytes, int], StrandKey]
"""By identifier and tenure."""


def _opened(ledger: Ledger, strands: Iterable[StrandRow]) -> Keys:
    return {
        (row.identifier, row.tenure): ledger.vault.open(Place(ledger.log_id, row.identifier, row.tenure), row.key)
        for row in strands
    }


def _open(keys: Keys, row: StrandRow | ContactRow, name: bytes) -> bytes:
    return keys[row.identifier, row.tenure].open(name, row.value)


def _columns(strands: Iterable[tuple[bytes, int]]) -> tuple[list[bytes], list[int]]:
    """As parameters of a statement."""
    listed = list(strands)
    return [identifier for identifier, _ in listed], [tenure for _, tenure in listed]


def _held(ledger: Ledger, policy: Policy, keys: Keys, events: Sequence[EventRow], now: datetime) -> list[Held]:
    """The consents that have to be proved on, each sealed by a key of its own. Each may have been used until now."""
    found = []
    for row in events:
        if row.payload is None:
            continue
        granted = {purpose for purpose, status in zip(row.purposes, row.statuses, strict=True) if status in GRANTS}
        kept = [policy.purposes[purpose].proof_kept for purpose in granted if purpose in policy.purposes]
        if periods := [period for period in kept if period is not None]:
            strand = keys[row.identifier, row.tenure]
            payload = msgspec.Raw(strand.open(row.event.bytes, row.payload))
            opening = Opening(payload, strand.salt(row.event), tag(strand.tags, row.sequence))
            key = ledger.vault.make(hold_place(ledger, row.idx))
            until = max(period.after(now) for period in periods)
            found.append(Held(row, until, key.wrapped, key.seal(row.event.bytes, _ENCODER.encode(opening))))
    return found


def hold_place(ledger: Ledger, idx: int) -> Place:
    """Whose key it is that seals the proof of an entry."""
    return Place(ledger.log_id, b"hold", idx)


async def _carry_out(connection: db.Connection, ledger: Ledger, tip: Tip, found: Found, by: str) -> None:
    """Destroy it, in the transaction that holds the head."""
    order, log_id = found.order, ledger.log_id
    indexes = sorted(row.idx for row in found.events)
    await enter(connection, ledger, tip, order.erasure, "request", indexes, by=by, held=len(found.held))
    for held in found.held:
        row = held.row
        await _HOLD(
            connection,
            log_id,
            row.idx,
            order.erasure,
            row.identifier,
            row.event,
            held.until,
            held.wrapped,
            held.opening,
        )
    await _DESTROY(connection, log_id, *_columns(order.strands), order.links, order.around)
    await _SUPPRESS(
        connection, log_id, [one.identifier for one in order.stones], [one.until for one in order.stones], tip.now,
        order.erasure,
    )  # fmt: skip


async def enter(
    connection: db.Connection, ledger: Ledger, tip: Tip, erasure: UUID, reason: ErasureReason, indexes: Sequence[int],
    *, by: str = "", held: int = 0,
) -> None:  # fmt: skip
    """Log an erasure, list what it erases, and be allowed to erase it until the transaction ends."""
    salt = os.urandom(_SALT)
    entry = ErasureMade(
        at=tip.now, erasure=erasure, reason=reason, by=by, events=len(indexes), held=held,
        sha256=erased_digest(salt, indexes),
    )  # fmt: skip
    growth = await append(connection, ledger.log_id, tip, [system(entry)], tip.now)
    await become(connection)
    await _NOTE(connection, ledger.log_id, erasure, growth.first, reason, salt, indexes, tip.now)


def _told(found: Found, head: Head, revision: Revision) -> Erased:
    return Erased(
        erasure=None,
        identifiers=found.names,
        strands=len(found.order.strands),
        events=len(found.events),
        held=len(found.held),
        held_until=max((held.until for held in found.held), default=None),
        links=len(found.order.links),
        suppressed_until=max((stone.until for stone in found.order.stones), default=None),
        rev=str(revision),
        recorded_at=head.now,
    )
