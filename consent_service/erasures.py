"""Erasure: a person's data is made unreadable for ever, and the ledger stays as it was.

What goes are the keys of all strands that were the person's, and whatever they sealed: events, answers, addresses;
then links and states. Entries stay, and tell nothing to anybody. One entry more says how many of them, and the hash of
which. Proof that a law wants kept stays under lock until its day. And so that a list which is read in again brings no
advertising back, a keyed hash of each identifier and address stays for a time.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from consent_service import db, decode, devices, ids, log
from consent_service.auth import Credential
from consent_service.errors import Frozen, Invalid, Unavailable
from consent_service.ledger import Head, Ledger, Ledgers, Opening, Revision, Tip, append, read_head, turns
from consent_service.ledger.anchor import Anchor
from consent_service.ledger.entry import ErasureMade, ErasureReason, erased_digest, system, tag
from consent_service.ledger.turns import Recovered
from consent_service.policies import Policy
from consent_service.states import CARRIED, GRANTS
from consent_service.subjects import ADDRESSES, LOGIN, Subject, address
from consent_service.tenures import READ_STRANDS, StrandRow
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


class OrderedRow(msgspec.Struct, frozen=True):
    """A strand that an order names."""

    identifier: bytes
    tenure: int
    key: bytes


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
    at: datetime
    size: int
    """Entries that the ledger had: what was begun later, under the same identifiers, is not meant."""
    strands: list[tuple[bytes, int]]
    whole: list[bytes]
    """Identifiers that are the person's altogether, and no longer anybody's."""
    links: list[UUID]
    around: list[bytes]
    """Identifiers to which a no of the person may have been carried; it stays there, and forgets whose it was."""
    stones: list[Stone]

    def is_about(self, other: Order) -> bool:
        """Whether another order, made at another moment, would destroy the same."""
        stones = [[stone.identifier for stone in order.stones] for order in (self, other)]
        mine, theirs = (self.strands, self.whole, self.links), (other.strands, other.whole, other.links)
        return mine == theirs and stones[0] == stones[1]


class Held(NamedTuple):
    """A consent whose proof is kept, and until when."""

    row: EventRow
    until: datetime


class Found(NamedTuple):
    """A person as the database knows it."""

    order: Order
    names: list[Subject]
    keys: Keys
    events: list[EventRow]
    held: list[Held]


class DoneRow(msgspec.Struct, frozen=True):
    """An erasure that the database knows."""

    erasure: UUID
    idx: int


_READ_ORDERED = db.many("erasures", "read_ordered", OrderedRow)
_READ_LINKS = db.many("erasures", "read_links", LinkRow)
_READ_CHANGED = db.many("erasures", "read_changed", LinkRow)
_READ_CONTACTS = db.many("erasures", "read_contacts", ContactRow)
_READ_EVENTS = db.many("erasures", "read_events", EventRow)
_READ_DONE = db.many("erasures", "read_done", DoneRow)
become = db.execute("erasures", "become")
"""Turn into the role that erases, until the transaction ends or it resigns."""
resign = db.execute("erasures", "resign")
_HOLD = db.execute("erasures", "hold")
_DESTROY = db.execute("erasures", "destroy")
_NOTE = db.execute("erasures", "note")
_SUPPRESS = db.execute("erasures", "suppress")
_ENCODER = msgspec.json.Encoder()
_ORDER = msgspec.json.Decoder(Order)
_LOG = log.get("erasures")
_TRIES = 5
_AT_ONCE = 500
"""Events whose proof is sealed anew between two statements: what happens in between has a second."""


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
        for _ in range(_TRIES):
            async with ledger.connection() as connection:
                head = await read_head(connection, ledger.log_id)
                found = await _find(connection, ledger, body.subject, head)
                slug = await ledger.slug(connection)
            if body.dry_run or not found.order.strands:
                return _ENCODER.encode(_told(found, head.revision))
            if head.frozen is not None:
                raise Frozen(head.frozen)
            line = seal(ledger, found.order)
            await self._note(slug, line)
            try:
                done = await self._carry_out(ledger, body.subject, found, credential)
            except Frozen:
                await self._forget(slug, line)
                raise
            if done is not None:
                return _ENCODER.encode(done)
            await self._forget(slug, line)
        raise Unavailable("While it was looked for what belongs to the person, that changed again and again.")

    async def _note(self, slug: str, line: bytes) -> None:
        """Tell whoever restores the database, before anything goes; and while nobody waits for the ledger's head."""
        if self._anchor is not None:
            try:
                await self._anchor.note_erasure(slug, line)
            except Unavailable:
                raise Unavailable("The anchor, which has to know of an erasure, cannot be reached.") from None

    async def _forget(self, slug: str, line: bytes) -> None:
        """Take back an order that came to nothing: carried out later, it would hit whoever has come since."""
        if self._anchor is not None:
            await self._anchor.forget_erasures(slug, [line])

    async def _carry_out(
        self, ledger: Ledger, subject: Subject, ordered: Found, credential: Credential
    ) -> Erased | None:
        """Erase what was ordered; None where that is not all that belongs to the person any more."""
        order = ordered.order
        async with ledger.connection() as connection, connection.transaction():
            tip = await ledger.hold(connection)
            found = await _find(connection, ledger, subject, tip)
            if found.order.is_about(order):
                by = ledger.hasher.once("credential", credential.id).hex()
                ordered = found._replace(order=order)
                await _carry_out(connection, ledger, tip, ordered, by)
            elif await _missing(connection, ledger, [order]):
                return None  # else another process, which has just started, was quicker
        told = _told(ordered, Revision(tip.epoch, tip.size + 1))
        return msgspec.structs.replace(told, erasure=order.erasure)


class Journal(NamedTuple):
    """What the anchor knows of the erasures of a ledger."""

    orders: list[Order]
    """The oldest first."""
    strange: int
    """Lines that were not written here, under this root secret. Who could forge an order could erase people."""


async def read_journal(connection: db.Connection, ledger: Ledger, anchor: Anchor) -> Journal:
    """The orders that stand outside the database; raises Unavailable."""
    lines = await anchor.erasures(await ledger.slug(connection))
    orders = [order for line in lines if (order := _unsealed(ledger, line)) is not None]
    return Journal(orders, len(lines) - len(orders))


def seal(ledger: Ledger, order: Order) -> bytes:
    """A line of the journal."""
    raw = _ENCODER.encode(order)
    return ledger.hasher.order(raw).hex().encode() + b" " + raw


def _unsealed(ledger: Ledger, line: bytes) -> Order | None:
    mac, _, raw = line.partition(b" ")
    return _ORDER.decode(raw) if hmac.compare_digest(mac, ledger.hasher.order(raw).hex().encode()) else None


async def catch_up(ledgers: Ledgers, anchor: Anchor) -> None:
    """Carry out what a restored database has forgotten although it is no older than the last anchored checkpoint.

    A ledger that is older is frozen, and catches up when it is recovered.

    Raises:
        Unavailable: the anchor cannot be read.
    """
    for slug, ledger in (await ledgers.by_tenant()).items():
        async with ledger.connection() as connection:
            found = await read_journal(connection, ledger, anchor)
            if found.strange:
                _LOG.error("strange_journal", tenant=slug, lines=found.strange)
            with suppress(Frozen):
                count = await repeat(connection, ledger, found.orders)
                if count:
                    _LOG.warning("erased_once_more", tenant=slug, people=count)


async def prune_journal(ledger: Ledger, anchor: Anchor, before: int) -> int:
    """Take out what no copy of the database has to be told any more; how many lines these were.

    For after a purge, which destroyed the key-encryption key of every older copy: the erasures with entries `before`
    the one that says so.

    Raises:
        Unavailable: the anchor cannot be reached.
    """
    async with ledger.connection() as connection:
        slug = await ledger.slug(connection)
        ours = {line: order for line in await anchor.erasures(slug) if (order := _unsealed(ledger, line)) is not None}
        found = await _READ_DONE(connection, ledger.log_id, [order.erasure for order in ours.values()])
    done = {row.erasure for row in found if row.idx < before}
    old = {line for line, order in ours.items() if order.erasure in done}
    if old:
        await anchor.forget_erasures(slug, old)
    return len(old)


async def _missing(connection: db.Connection, ledger: Ledger, orders: Sequence[Order]) -> list[Order]:
    """Those orders that the database does not know of, because it was restored from an older copy."""
    done = {row.erasure for row in await _READ_DONE(connection, ledger.log_id, [one.erasure for one in orders])}
    return [one for one in orders if one.erasure not in done]


async def _is_stale(connection: db.Connection, ledger: Ledger, order: Order) -> bool:
    """Whether something changed about who has the identifiers, since an order that came to nothing at the time."""
    named = sorted({identifier for identifier, _ in order.strands} | {*order.whole, *order.around})
    return bool(await _READ_CHANGED(connection, ledger.log_id, named, order.at))


async def repeat(connection: db.Connection, ledger: Ledger, orders: Sequence[Order]) -> int:
    """Carry out the orders that a restored database does not know of, in one transaction; how many these were.

    Of what an order names, it destroys what had begun by then. What it kept the proof of, it keeps as long as before.
    An order that does not fit any more, as nobody was told that it was carried out, is left to whoever reads the log.
    """
    count = 0
    async with connection.transaction():
        for order in await _missing(connection, ledger, orders):
            tip = await ledger.hold(connection)
            if await _is_stale(connection, ledger, order):
                _LOG.error("stale_erasure", log_id=ledger.log_id, erasure=str(order.erasure))
                continue
            strands = await _READ_ORDERED(connection, ledger.log_id, *_columns(order.strands), order.size)
            keys = _opened(ledger, strands)
            policy = await ledger.policies.get(connection, ledger.log_id, tip.policy)
            events = await _READ_EVENTS(connection, ledger.log_id, *_columns(keys), _proving(policy))
            left = msgspec.structs.replace(order, strands=list(keys))
            found = Found(left, [], keys, events, _held(policy, events, order.at))
            await _carry_out(connection, ledger, tip, found, "")
            count += 1
    return count


async def recover(connection: db.Connection, ledger: Ledger, anchor: Anchor | None) -> tuple[Recovered, int]:
    """Go on in a new epoch (`turns.begin_epoch`), with everybody erased who was; how many were erased once more.

    Raises:
        Invalid: the ledger is not frozen; or the journal has lines that are not ours.
        Unavailable: the anchor cannot be read.
    """
    orders: list[Order] = []
    if anchor is not None:
        orders, strange = await read_journal(connection, ledger, anchor)
        if strange:
            raise Invalid(
                f"{strange} lines in the anchor's journal of erasures were not written by this service under this "
                "root secret. Give back the journal as it was, or take these lines out."
            )
    last_key = 0 if anchor is None else await turns.last_key(connection, ledger, anchor)
    async with connection.transaction():
        made = await turns.begin_epoch(connection, ledger, last_key)
        count = await repeat(connection, ledger, orders)
    if anchor is not None:
        with suppress(Unavailable):  # then the next round of publishing tells it
            await turns.tell(connection, ledger, anchor)
    return made, count


async def _find(connection: db.Connection, ledger: Ledger, subject: Subject, head: Head) -> Found:
    """All that is the person's, whichever of its identifiers was named."""
    log_id = ledger.log_id
    policy = await ledger.policies.get(connection, log_id, head.policy)
    identifier = ledger.hasher.identifier(subject)
    strands = await READ_STRANDS(connection, log_id, identifier, subject.type in policy.tenant.shared, head.now)
    keys = _opened(ledger, strands)
    columns = _columns(keys)
    events = await _READ_EVENTS(connection, log_id, *columns, _proving(policy))
    whole = sorted({row.identifier for row in strands if row.is_whole})
    links = await _READ_LINKS(connection, log_id, whole, *columns)
    contacts = await _READ_CONTACTS(connection, log_id, *columns)
    names = [Subject(row.namespace, _open(keys, row, VALUE).decode()) for row in strands]
    addresses = [address(_open(keys, row, contact_of(row.contact)).decode()) for row in contacts]
    addresses += [address(name.id) for name in names if name.type in ADDRESSES]  # in whichever spelling it comes back
    things = (devices.NAMESPACE, *policy.tenant.shared)  # which nobody advertises to
    theirs = [name for name, row in zip(names, strands, strict=True) if row.is_whole or name.type != LOGIN]
    people = [name for name in theirs if name.type not in things]
    until = policy.tenant.suppression.after(head.now)
    stones = sorted({ledger.hasher.identifier(one) for one in (*people, *addresses)})
    order = Order(
        erasure=ids.event_id(),
        at=head.now,
        size=(await read_head(connection, log_id)).size,  # as it is now that everything was read
        strands=list(keys),
        whole=whole,
        links=[link.link for link in links],
        around=sorted({end for link in links for end in (link.identifier, link.anchor)}),
        stones=[Stone(stone, until) for stone in stones],
    )
    return Found(order, list(dict.fromkeys(names)), keys, events, _held(policy, events, head.now))


def _proving(policy: Policy) -> list[str]:
    """The purposes whose consents have to be proved longer than the person is known."""
    return sorted(purpose.id for purpose in policy.purposes.values() if purpose.proof_kept is not None)


Keys = Mapping[tuple[bytes, int], StrandKey]
"""By identifier and tenure."""


def _opened(ledger: Ledger, strands: Iterable[StrandRow | OrderedRow]) -> Keys:
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


def _held(policy: Policy, events: Sequence[EventRow], now: datetime) -> list[Held]:
    """The consents that have to be proved on. Each may have been used until now."""
    found = []
    for row in events:
        if row.payload is None:
            continue
        granted = {purpose for purpose, status in zip(row.purposes, row.statuses, strict=True) if status in GRANTS}
        kept = [policy.purposes[purpose].proof_kept for purpose in granted if purpose in policy.purposes]
        if periods := [period for period in kept if period is not None]:
            found.append(Held(row, max(period.after(now) for period in periods)))
    return found


def hold_place(ledger: Ledger, idx: int) -> Place:
    """Whose key it is that seals the proof of an entry."""
    return Place(ledger.log_id, b"hold", idx)


async def _carry_out(connection: db.Connection, ledger: Ledger, tip: Tip, found: Found, by: str) -> None:
    """Destroy it, in the transaction that holds the head."""
    order, log_id = found.order, ledger.log_id
    indexes = sorted(row.idx for row in found.events)
    await enter(connection, ledger, tip, order.erasure, "request", indexes, by=by, held=len(found.held))
    for start in range(0, len(found.held), _AT_ONCE):
        rows = [_locked(ledger, found.keys, held) for held in found.held[start : start + _AT_ONCE]]
        await _HOLD(connection, log_id, order.erasure, *zip(*rows, strict=True))
    await _DESTROY(
        connection, log_id, *_columns(order.strands), order.links, order.around, sorted(CARRIED), os.urandom(_SALT),
        order.whole, order.at,
    )  # fmt: skip
    await _SUPPRESS(
        connection, log_id, [one.identifier for one in order.stones], [one.until for one in order.stones], order.at,
        *_columns(order.strands),
    )  # fmt: skip
    await resign(connection)


def _locked(ledger: Ledger, keys: Keys, held: Held) -> tuple[int, bytes, UUID, datetime, bytes, bytes]:
    """Proof that is kept, sealed by a key of its own, as a row of `hold`."""
    row, strand = held.row, keys[held.row.identifier, held.row.tenure]
    assert row.payload is not None, "proof is kept of events that were read whole"  # noqa: S101 -- see `_held`
    payload = msgspec.Raw(strand.open(row.event.bytes, row.payload))
    opening = Opening(payload, strand.salt(row.event), tag(strand.tags, row.sequence))
    key = ledger.vault.make(hold_place(ledger, row.idx))
    sealed = key.seal(row.event.bytes, _ENCODER.encode(opening))
    return row.idx, row.identifier, row.event, held.until, key.wrapped, sealed


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


def _told(found: Found, revision: Revision) -> Erased:
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
        recorded_at=found.order.at,
    )
