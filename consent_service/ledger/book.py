"""The ledgers that this process works with: what every reader and writer of a tenant needs, made once."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import replace

from consent_service import db
from consent_service.errors import Frozen, NotFound
from consent_service.ledger.head import OLDER, Head, Tip, lock_head
from consent_service.ledger.note import Checkpoint, NoteError, Signer, read, split
from consent_service.ledger.receipt import Log
from consent_service.ledger.tree import Frontier
from consent_service.policies.store import Policies
from consent_service.subjects import Hasher
from consent_service.vault import Vault

_AHEAD = 32
"""Rotations that a restored database may have forgotten."""
T = TypeVar("T")


class OriginRow(msgspec.Struct, frozen=True):
    """The name under which a ledger signs."""

    origin: str


class SlugRow(msgspec.Struct, frozen=True):
    """A tenant."""

    log_id: int
    slug: str


_READ_SLUGS = db.many("ledger", "read_slugs", SlugRow)
_READ_SLUG = db.one("ledger", "read_slug", SlugRow)
_READ_ORIGIN = db.one("ledger", "read_origin", OriginRow)


async def read_log(connection: db.Connection, secret: bytes, log_id: int, head: Head) -> Log:
    """How a ledger signs."""
    row = await _READ_ORIGIN(connection, log_id)
    if row is None:
        raise NotFound("There is no such tenant.")
    origin = Log(row.origin, head.epoch, ()).origin
    keys = [Signer(origin, _seed(secret, log_id, generation)) for generation in range(1, head.last_key + 1)]
    used = head.first_key - 1
    return Log(row.origin, head.epoch, tuple(keys[used:]), tuple(key.verifier for key in keys[:used]))


def _seed(secret: bytes, log_id: int, generation: int) -> bytes:
    """A generation of the signing key: all follow from the root secret."""
    name = b"ca/v1 log %d" % log_id if generation == 1 else b"ca/v1 log %d key %d" % (log_id, generation)
    return hmac.digest(secret, name, "sha256")


class Ledger:
    """One tenant's ledger: how to reach it, and the keys to what it holds."""

    def __init__(self, pool: db.Pool, policies: Policies, secret: bytes, vault: Vault, log_id: int) -> None:
        self._pool = pool
        self._secret = secret
        self._slug: str | None = None
        self._logs: dict[tuple[int, int, int], Log] = {}
        self.policies = policies
        self.vault = vault
        self.hasher = Hasher(secret, log_id)
        self.log_id = log_id
        self.signed: Checkpoint | None = None
        """The largest that this process signed for somebody, of the newest epoch."""
        self._signed_in = 0

    def connection(self) -> AbstractAsyncContextManager[db.Connection]:
        """A connection that sees this tenant's rows and no others."""
        return db.connection(self._pool, self.log_id)

    async def slug(self, connection: db.Connection) -> str:
        """The tenant's name, by which places outside the database know the ledger."""
        if self._slug is None:
            row = await _READ_SLUG(connection, self.log_id)
            assert row is not None, "whoever has a ledger is a tenant"  # noqa: S101 -- an invariant of the schema
            self._slug = row.slug
        return self._slug

    def sign(self, log: Log, size: int, root: bytes) -> str:
        """The checkpoint of a tree, for somebody; kept in mind, as a database that forgets it must not go on."""
        if self.signed is None or (log.epoch, size) > (self._signed_in, self.signed.size):
            self.signed, self._signed_in = Checkpoint(log.origin, size, root), log.epoch
        return log.checkpoint(size, root)

    def is_kept(self, head: Head, frontier: bytes) -> bool:
        """Whether a tree may be the one that this process has signed: no older one, and no other one of the same size.

        Whether a larger one begins with what was signed, the publisher finds out.
        """
        signed = self.signed
        if signed is None:
            return True
        mine, theirs = (head.epoch, head.size), (self._signed_in, signed.size)
        return mine > theirs or (mine == theirs and Frontier.read(head.size, frontier).root == signed.root)

    async def hold(self, connection: db.Connection, *, although_frozen: bool = False) -> Tip:
        """The head, ours until the transaction ends (`head.lock_head`).

        Raises:
            Frozen: the ledger takes no writes, or must take none: it is not what this process has signed.
        """
        tip = await lock_head(connection, self.log_id, although_frozen=although_frozen)
        if not although_frozen and not self.is_kept(tip, tip.frontier):
            raise Frozen(OLDER)
        return tip

    async def log(self, connection: db.Connection, head: Head) -> Log:
        """How the ledger signs."""
        name = (head.epoch, head.first_key, head.last_key)
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = await read_log(connection, self._secret, self.log_id, head)
        return log

    async def signed_by(self, connection: db.Connection, head: Head, note: str) -> int:
        """The newest generation of the key that signed a note of this ledger, in whichever epoch.

        It may be one that the database does not know: it was restored from a copy of before a rotation.

        Raises:
            NoteError: this ledger did not sign it.
        """
        log = await self.log(connection, head)
        epoch = max(1, log.epoch_of(Checkpoint.parse(split(note)[0]).origin))
        for last in (head.last_key, head.last_key + _AHEAD):
            then = await self.log(connection, replace(head, epoch=epoch, first_key=1, last_key=last))
            keys = [signer.verifier for signer in then.signers]
            with suppress(NoteError):
                return max(keys.index(one.by) + 1 for one in read(note, keys).signatures)
        raise NoteError("no key of this ledger signed it")

    async def logs(self, connection: db.Connection, head: Head) -> list[Log]:
        """How it signed in each epoch, the current one last."""
        return [await self.log(connection, replace(head, epoch=epoch)) for epoch in range(1, head.epoch + 1)]


class Ledgers:
    """Every ledger, by its number."""

    def __init__(
        self, pool: db.Pool, secret: bytes, policies: Policies | None = None, vault: Vault | None = None
    ) -> None:
        self._pool = pool
        self._secret = secret
        self._policies = policies or Policies()
        self._vault = vault or Vault(secret)
        self._made: dict[int, Ledger] = {}

    def connection(self) -> AbstractAsyncContextManager[db.Connection]:
        """A connection that acts for no tenant: for what belongs to the deployment."""
        return db.connection(self._pool)

    async def by_tenant(self) -> dict[str, Ledger]:
        """Every tenant's, by its slug."""
        async with self.connection() as connection:
            return {row.slug: self.of(row.log_id) for row in await _READ_SLUGS(connection)}

    def of(self, log_id: int) -> Ledger:
        """The ledger of a tenant; the number comes from a credential and from nowhere else."""
        ledger = self._made.get(log_id)
        if ledger is None:
            ledger = self._made[log_id] = Ledger(self._pool, self._policies, self._secret, self._vault, log_id)
        return ledger


class PerLedger(Generic[T]):
    """Something that a room keeps for each ledger."""

    def __init__(self, ledgers: Ledgers, make: Callable[[Ledger], T]) -> None:
        self._ledgers = ledgers
        self._make = make
        self._made: dict[int, T] = {}

    def of(self, log_id: int) -> T:
        """That of one ledger."""
        made = self._made.get(log_id)
        if made is None:
            made = self._made[log_id] = self._make(self._ledgers.of(log_id))
        return made

    def all(self) -> Iterable[T]:
        """Those made so far."""
        return self._made.values()
