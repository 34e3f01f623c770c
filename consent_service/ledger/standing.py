"""Whether a ledger is still the one that was signed. A database restored from an older copy is not, and must not go on.

What was signed is known from outside the database: from the anchor, and to each process from what it signed itself. The
tree of the entries that are there has to begin with all of it. Where it does not, the ledger is frozen: it is read and
answers checks, and takes no writes. It thaws by itself once the tree begins with what was signed, because somebody gave
back what was missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from consent_service import db
from consent_service.errors import NotFound
from consent_service.ledger import tiles, tree
from consent_service.ledger.book import Ledger
from consent_service.ledger.entry import KeyChange, KeyChanged, system
from consent_service.ledger.head import Tip, append
from consent_service.ledger.note import Checkpoint
from consent_service.ledger.receipt import Log
from consent_service.ledger.tree import Frontier


class Publication(Tip, frozen=True):
    """A head, and how far its ledger was published."""

    demanded: str | None
    """Of a frozen one: the checkpoint (its text) that it must begin with again."""
    published: int
    """The size that is shown to the world; 0: none."""
    dated_at: datetime | None
    """When a checkpoint was dated last."""

    def checkpoint(self, origin: str) -> Checkpoint:
        """What the head says about its tree."""
        return Checkpoint(origin, self.size, Frontier.read(self.size, self.frontier).root)


class UnloggedRow(msgspec.Struct, frozen=True):
    """A change of a key that is no entry yet."""

    id: str
    change: KeyChange


class Changed(msgspec.Struct, frozen=True):
    """A ledger that was frozen or thawed just now, by nobody else."""

    log_id: int


class Status(msgspec.Struct, frozen=True):
    """Where a ledger stands."""

    origin: str
    epoch: int
    size: int
    root: str
    """SHA-256 in hex."""
    frozen: str | None
    """Why it takes no writes."""
    published: int
    """How many of its entries are shown to the world."""
    keys: list[str]
    """What its signatures are verified with (vkeys of c2sp.org/signed-note)."""
    retired: list[str]
    """What those of earlier keys and epochs are verified with, the oldest first: none of these signs any more."""
    checkpoint: str | None
    """Signed; None: a frozen ledger signs nothing."""


_TAKE_UNLOGGED = db.many("ledger", "take_unlogged", UnloggedRow)
_READ = db.one("ledger", "read_publication", Publication)
_FREEZE = db.one("ledger", "freeze", Changed)
_THAW = db.one("ledger", "thaw", Changed)


async def read(connection: db.Connection, log_id: int) -> Publication:
    """How a ledger stands."""
    row = await _READ(connection, log_id)
    if row is None:
        raise NotFound("There is no such tenant.")
    return row


async def settle(
    connection: db.Connection, ledger: Ledger, log: Log, standing: Publication, signed: Iterable[Checkpoint]
) -> Publication:
    """See whether the ledger begins with everything signed; freeze or thaw it as that is.

    What others found out meanwhile is not undone unseen: then it is looked at again.
    """
    log_id, signed = ledger.log_id, tuple(signed)
    demands = [*signed, standing.checkpoint(log.origin)]
    if standing.demanded is not None:
        demands.append(Checkpoint.parse(standing.demanded))
    worst_first = sorted(demands, key=lambda one: (log.epoch_of(one.origin), one.size), reverse=True)
    for demanded in worst_first:
        why = await contradiction(connection, log_id, log, standing.size, demanded)
        if why is not None:
            if standing.demanded == str(demanded):
                return standing
            frozen = await _FREEZE(connection, log_id, why, str(demanded), standing.demanded)
            now = await read(connection, log_id)
            return now if frozen is not None else await settle(connection, ledger, log, now, signed)
    if standing.frozen is None:
        return standing
    async with connection.transaction():
        tip = await ledger.hold(connection, although_frozen=True)
        thawed = await _THAW(connection, log_id, standing.demanded)
        if thawed is not None:
            await log_keys(connection, ledger, tip)
    now = await read(connection, log_id)
    return now if thawed is not None else await settle(connection, ledger, log, now, signed)


async def log_keys(connection: db.Connection, ledger: Ledger, tip: Tip) -> None:
    """Append what was done to keys while the ledger was frozen: revoking one cannot wait, its entry can."""
    rows = await _TAKE_UNLOGGED(connection, ledger.log_id)
    entries = [
        system(KeyChanged(at=tip.now, change=row.change, credential=ledger.hasher.once("credential", row.id).hex()))
        for row in rows
    ]
    if entries:
        await append(connection, ledger.log_id, tip, entries, tip.now)


async def freeze(connection: db.Connection, log_id: int, log: Log, standing: Publication, why: str) -> Publication:
    """Take no writes because what is outside cannot be compared; until it can be, and what is here is still here."""
    if standing.frozen is not None:
        return standing
    await _FREEZE(connection, log_id, why, str(standing.checkpoint(log.origin)), standing.demanded)
    return await read(connection, log_id)


async def contradiction(
    connection: db.Connection, log_id: int, log: Log, size: int, demanded: Checkpoint
) -> str | None:
    """Why the tree with `size` entries does not begin with a checkpoint; None where it does."""
    epoch, ours = log.epoch_of(demanded.origin), log.epoch_of(log.origin)
    if epoch < ours:
        return None  # the rupture between the two was logged
    if epoch > ours or demanded.size > size:
        return (
            f"The database is older than what was signed: {demanded.origin} had {demanded.size} entries, and {size} "
            "are here. Restore a newer copy, and the ledger goes on by itself; or give up what is lost with `consent "
            "ledger recover`."
        )
    try:
        root = await tiles.proved(connection, log_id, demanded.size, lambda node: tree.root(demanded.size, node))
    except LookupError:
        root = b""
    if root == demanded.root:
        return None
    return (
        f"The first {demanded.size} entries in the database are not those that were signed. Restore a copy that holds "
        "them, and the ledger goes on by itself; or give up what is lost with `consent ledger recover`."
    )


async def status(connection: db.Connection, ledger: Ledger) -> Status:
    """Where a ledger stands now."""
    found = await read(connection, ledger.log_id)
    *before, log = await ledger.logs(connection, found)
    _, size, root = found.checkpoint(log.origin)
    retired = [verifier for one in before for verifier in one.verifiers] + list(log.retired)
    return Status(
        origin=log.origin, epoch=found.epoch, size=size, root=root.hex(), frozen=found.frozen,
        published=found.published, keys=[str(signer.verifier) for signer in log.signers],
        retired=[str(verifier) for verifier in retired],
        checkpoint=None if found.frozen is not None else ledger.sign(log, size, root),
    )  # fmt: skip
