"""A ledger's head: its size, its policy, its clock. Locking it puts all writes of one tenant into one order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import msgspec

from consent_service import db
from consent_service.errors import Frozen, NotFound
from consent_service.ledger.tree import Frontier, Growth, leaf_hash

REVISION = r"^([0-9]{1,9})\.([0-9]{1,18})$(?!\n)"
"""The form of a revision on the wire."""
_REVISION = re.compile(REVISION, re.ASCII)


class Revision(msgspec.Struct, frozen=True, order=True):
    """How far a ledger has come: `<epoch>.<size>` on the wire."""

    epoch: int
    size: int

    @classmethod
    def parse(cls, text: str) -> Revision | None:
        """Read a `rev` that we gave out; None for anything else."""
        match = _REVISION.match(text)
        return None if match is None else cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.epoch}.{self.size}"


class Head(msgspec.Struct, frozen=True):
    """A row of `ledger_head`, with the database's clock."""

    epoch: int
    size: int
    policy: int
    """Version of the policy in force, 0 before the first."""
    frozen: str | None
    """Why the ledger takes no writes; None: it takes them."""
    first_key: int
    last_key: int
    """Generations of the signing key: from the first to the last all sign."""
    now: datetime

    @property
    def revision(self) -> Revision:
        """The revision of everything before this head."""
        return Revision(self.epoch, self.size)


class Tip(Head, frozen=True):
    """The head as whoever lets the ledger grow needs it."""

    frontier: bytes
    """See `tree.Frontier`."""


class Appended(msgspec.Struct, frozen=True):
    """Whether entries were appended."""

    heads: int
    """1, or 0 where the ledger had changed."""


_APPEND = db.one("ledger", "append", Appended)
_LOCK = db.one("ledger", "lock_head", Tip)
_READ = db.one("ledger", "read_head", Head)


OLDER = (
    "The database is older than what this ledger has signed. It takes no writes until that is settled; see `consent "
    "ledger status`. Checks go on."
)
"""Said by whoever finds it out first."""


async def lock_head(connection: db.Connection, log_id: int, *, although_frozen: bool = False) -> Tip:
    """The head, ours until the transaction ends. `now` never lies before the last entry.

    Raises:
        Frozen: the ledger takes no writes.
    """
    head = await _LOCK(connection, log_id)
    if head is None:
        raise NotFound("There is no such tenant.")
    if head.frozen is not None and not although_frozen:
        raise Frozen(head.frozen)
    return head


async def read_head(connection: db.Connection, log_id: int) -> Head:
    """The head as of now, without a lock."""
    head = await _READ(connection, log_id)
    if head is None:
        raise NotFound("There is no such tenant.")
    return head


async def append(
    connection: db.Connection, log_id: int, tip: Tip, entries: Sequence[bytes], recorded_at: datetime
) -> Growth:
    """Add entries at the end of a ledger whose head is held, of which nothing was appended since `tip`."""
    growth = Frontier.read(tip.size, tip.frontier).grown([leaf_hash(entry) for entry in entries])
    appended = await _APPEND(connection, log_id, tip.size, recorded_at, growth.frontier.write(), entries)
    if appended is None or not appended.heads:
        raise AssertionError("whoever holds the head is not overtaken")
    return growth
