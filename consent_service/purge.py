"""The purge: what is due goes, and what was erased goes from the disk as well.

Erasing destroys keys as far as the database goes. Their wrapped bytes may still lie in its files, in its log of changes
and in backups, and are worth nothing once the key-encryption key is destroyed that wrapped them. So a purge makes a new
one, wraps all keys by it, destroys the old one, and has the database rewrite the table and turn its log over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg
import msgspec

from consent_service import db, erasures, ids
from consent_service.errors import SetupError
from consent_service.ledger import Ledger, Ledgers, append
from consent_service.ledger.anchor import Anchor
from consent_service.ledger.entry import KeysRewrapped, system
from consent_service.vault import LOOK_S, Place, Vault, alone, new_key, read_keys, write_keys

_PAGE = 500
_LONG_S = 86_400.0
"""How long rewriting a table may take."""


class WrappedRow(msgspec.Struct, frozen=True):
    """A wrapped key."""

    identifier: bytes
    tenure: int
    key: bytes


class DueRow(msgspec.Struct, frozen=True):
    """An entry whose proof was kept long enough."""

    idx: int


class Ended(msgspec.Struct, frozen=True):
    """How many tombstones came to their end."""

    count: int


class HoldRow(msgspec.Struct, frozen=True):
    """Proof that is kept, and its wrapped key."""

    idx: int
    key: bytes


class Rewrapped(NamedTuple):
    """Keys that are wrapped by a new key-encryption key."""

    keys: int
    entries: list[tuple[Ledger, int]]
    """Where each ledger says so. A frozen one says nothing."""


class Purged(msgspec.Struct, frozen=True):
    """What a purge did."""

    released: int
    """Entries whose proof was kept until today."""
    tombstones: int
    rewrapped: int | None
    """Keys; None: the key-encryption key follows from the root secret, and is not rotated."""
    orders: int
    """Lines that left the anchor's journal: no copy of the database can be read any more that would need them."""
    turned: bool
    """Whether the database rewrote the table of keys and turned its log over."""


_READ_DUE = db.many("purge", "read_due", DueRow)
_RELEASE = db.execute("purge", "release")
_END_STONES = db.one("purge", "end_stones", Ended)
_READ_WRAPPED = db.many("purge", "read_wrapped", WrappedRow)
_REWRAP = db.execute("purge", "rewrap")
_READ_HELD = db.many("purge", "read_held", HoldRow)
_REWRAP_HELD = db.execute("purge", "rewrap_held")
_TRUST_KEK = db.execute("purge", "trust_kek")


async def purge(
    ledgers: Ledgers, vault: Vault, key_file: Path | None, owner: db.Connection, anchor: Anchor | None
) -> Purged:
    """Do all of it. `owner`: a connection as whoever owns the tables, better as an administrator of the database.

    Whatever stops it half-way leaves everything readable; run it again.
    """
    due = [await _release(ledger) for ledger in (await ledgers.by_tenant()).values()]
    rewrapped = None if key_file is None else await _rotate(ledgers, vault, key_file, owner)
    orders = 0
    if rewrapped is not None and anchor is not None:
        orders = sum([await erasures.prune_journal(ledger, anchor, entry) for ledger, entry in rewrapped.entries])
    return Purged(
        released=sum(entries for entries, _ in due),
        tombstones=sum(stones for _, stones in due),
        rewrapped=None if rewrapped is None else rewrapped.keys,
        orders=orders,
        turned=rewrapped is not None and await _turn(owner),
    )


async def _release(ledger: Ledger) -> tuple[int, int]:
    """End what had to be kept until today: proof, and tombstones. Of a frozen ledger another time."""
    async with ledger.connection() as connection, connection.transaction():
        tip = await ledger.hold(connection, although_frozen=True)
        if tip.frozen is not None:
            return 0, 0
        stones = await _END_STONES(connection, ledger.log_id, tip.now)
        await erasures.become(connection)
        due = [row.idx for row in await _READ_DUE(connection, ledger.log_id, tip.now)]
        await erasures.resign(connection)
        if due:
            await erasures.enter(connection, ledger, tip, ids.event_id(), "retention", due)
            await _RELEASE(connection, ledger.log_id, due)
    return len(due), 0 if stones is None else stones.count


async def _rotate(ledgers: Ledgers, vault: Vault, key_file: Path, owner: db.Connection) -> Rewrapped:
    """Wrap every key by a new key-encryption key, and destroy those before.

    A process goes by the file as it was at most LOOK_S ago. An entry of each ledger after that time sees to it that no
    batch which was prepared earlier is written later: its head is not the one that it read. A tenant that is made after
    that time knows no other key.

    Raises:
        SetupError: another purge is under way; or a key was wrapped otherwise meanwhile, and nothing is destroyed.
    """
    with alone(key_file):
        made = new_key()
        write_keys(key_file, [made, *read_keys(key_file)])
        await asyncio.sleep(1.5 * LOOK_S)
        all_of_them = list((await ledgers.by_tenant()).values())
        done = await _rewrap_all(all_of_them, vault)
        for ledger in all_of_them:
            if await _is_left(ledger, vault):
                raise SetupError("Some keys are wrapped by another key than the newest. Run the purge again.")
        await _TRUST_KEK(owner, vault.current)
        write_keys(key_file, [made])
        return done


async def _rewrap_all(all_of_them: Sequence[Ledger], vault: Vault) -> Rewrapped:
    count, said = 0, []
    for ledger in all_of_them:
        async with ledger.connection() as connection:
            async with connection.transaction():
                tip = await ledger.hold(connection, although_frozen=True)
                if tip.frozen is None:
                    entry = system(KeysRewrapped(at=tip.now, kek=vault.current.hex()))
                    growth = await append(connection, ledger.log_id, tip, [entry], tip.now)
                    said.append((ledger, growth.first))
            count += await _rewrap(connection, ledger, vault) + await _rewrap_held(connection, ledger, vault)
    return Rewrapped(count, said)


async def _is_left(ledger: Ledger, vault: Vault) -> bool:
    """Whether a key of a ledger is still wrapped by one that is about to be destroyed."""
    async with ledger.connection() as connection, connection.transaction():
        if await _READ_WRAPPED(connection, ledger.log_id, vault.current, b"", 0, 1):
            return True
        await erasures.become(connection)
        return bool(await _READ_HELD(connection, ledger.log_id, vault.current, 1))


async def _rewrap(connection: db.Connection, ledger: Ledger, vault: Vault) -> int:
    """The keys of strands, in their order: what comes in meanwhile is wrapped by the new one already."""
    count, last = 0, (b"", 0)
    while rows := await _READ_WRAPPED(connection, ledger.log_id, vault.current, *last, _PAGE):
        last = rows[-1].identifier, rows[-1].tenure
        new = [vault.rewrap(Place(ledger.log_id, row.identifier, row.tenure), row.key) for row in rows]
        await _REWRAP(
            connection, ledger.log_id, [row.identifier for row in rows], [row.tenure for row in rows],
            [row.key for row in rows], new,
        )  # fmt: skip
        count += len(rows)
    return count


async def _rewrap_held(connection: db.Connection, ledger: Ledger, vault: Vault) -> int:
    """The keys of proof that is kept."""
    count = 0
    async with connection.transaction():
        await erasures.become(connection)
        while rows := await _READ_HELD(connection, ledger.log_id, vault.current, _PAGE):
            new = [vault.rewrap(erasures.hold_place(ledger, row.idx), row.key) for row in rows]
            await _REWRAP_HELD(connection, ledger.log_id, [row.idx for row in rows], new)
            count += len(rows)
    return count


async def _turn(owner: db.Connection) -> bool:
    """Have the database forget: the old table's file and the finished part of its log are removed from the disk."""
    await owner.execute("SET statement_timeout = 0")
    try:
        for statement in TURN:
            await owner.execute(statement, timeout=_LONG_S)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


TURN = ("VACUUM FULL strand", "VACUUM FULL hold", "SELECT pg_switch_wal()", "CHECKPOINT")
"""What an administrator of the database runs where the service may not."""
