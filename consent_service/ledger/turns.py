"""The turns in a ledger's life that an operator decides: another signing key, and a new epoch after a loss."""

from __future__ import annotations

import msgspec

from consent_service import db
from consent_service.errors import Invalid
from consent_service.ledger import standing
from consent_service.ledger.anchor import Anchor
from consent_service.ledger.book import Ledger
from consent_service.ledger.entry import LogKeyChanged, Ruptured, system
from consent_service.ledger.head import append, read_head
from consent_service.ledger.note import Checkpoint, NoteError

_ROTATE = db.execute("ledger", "rotate_keys")
_BEGIN_EPOCH = db.execute("ledger", "begin_epoch")


class Rotated(msgspec.Struct, frozen=True):
    """What a ledger signs with now."""

    keys: list[str]
    """Verifier keys, the oldest first; every one signs."""
    retired: str | None
    """The one that signs no more."""


async def add_key(connection: db.Connection, ledger: Ledger) -> Rotated:
    """Let another key sign beside those that do.

    Raises:
        Invalid: two sign already.
        Frozen: the ledger takes no writes.
    """
    async with connection.transaction():
        tip = await ledger.hold(connection)
        if tip.last_key > tip.first_key:
            raise Invalid("Two keys sign already. When everybody knows the newer one, end the older one with --finish.")
        await _ROTATE(connection, ledger.log_id, tip.first_key, tip.last_key + 1)
        log = await ledger.log(connection, msgspec.structs.replace(tip, last_key=tip.last_key + 1))
        keys = [str(signer.verifier) for signer in log.signers]
        entry = system(LogKeyChanged(at=tip.now, change="added", key=keys[-1]))
        await append(connection, ledger.log_id, tip, [entry], tip.now)
    return Rotated(keys, None)


async def retire_key(connection: db.Connection, ledger: Ledger) -> Rotated:
    """Let the older of two keys sign no more; what it signed stays good.

    Raises:
        Invalid: one signs only.
        Frozen: the ledger takes no writes.
    """
    async with connection.transaction():
        tip = await ledger.hold(connection)
        if tip.last_key == tip.first_key:
            raise Invalid("One key signs only. Let another one sign beside it first, without --finish.")
        before = await ledger.log(connection, tip)
        old, *keys = (str(signer.verifier) for signer in before.signers)
        await _ROTATE(connection, ledger.log_id, tip.first_key + 1, tip.last_key)
        entry = system(LogKeyChanged(at=tip.now, change="retired", key=old))
        await append(connection, ledger.log_id, tip, [entry], tip.now)
    return Rotated(keys, old)


class Recovered(msgspec.Struct, frozen=True):
    """A ledger that goes on in a new epoch."""

    origin: str
    """Its new name."""
    epoch: int
    kept: int
    """Entries that it went on from."""
    lost: int
    """Entries that it had signed, and that are gone or are other ones now; at least."""


async def begin_epoch(connection: db.Connection, ledger: Ledger, last_key: int) -> Recovered:
    """Go on with what is there, as a new log that says what was lost; in a transaction, which then holds the head.

    It signs with a new key: those of the copy that was restored may have been retired since, for good reason.
    `last_key`: the newest generation that is known of from elsewhere.

    Raises:
        Invalid: the ledger is not frozen.
    """
    tip = await ledger.hold(connection, although_frozen=True)
    found = await standing.read(connection, ledger.log_id)
    if found.demanded is None:
        raise Invalid("The ledger is not frozen: there is nothing to recover from.")
    before, lost = await ledger.log(connection, tip), Checkpoint.parse(found.demanded)
    kept = found.checkpoint(before.origin)
    epoch = max(tip.epoch, before.epoch_of(lost.origin)) + 1
    await _BEGIN_EPOCH(connection, ledger.log_id, epoch, max(tip.last_key, last_key) + 1)
    rupture = Ruptured(
        at=tip.now, epoch=epoch, kept=kept.size, kept_root=kept.root.hex(),
        lost=lost.size, lost_root=lost.root.hex(), lost_origin=lost.origin,
    )  # fmt: skip
    await append(connection, ledger.log_id, tip, [system(rupture)], tip.now)
    tip = await ledger.hold(connection)
    await standing.log_keys(connection, ledger, tip)
    after = await ledger.log(connection, tip)
    return Recovered(after.origin, epoch, kept.size, max(0, lost.size - kept.size))


async def last_key(connection: db.Connection, ledger: Ledger, anchor: Anchor) -> int:
    """The newest generation of the key that the anchor knows of; 0: none."""
    anchored = await anchor.read(await ledger.slug(connection))
    if anchored is None:
        return 0
    try:
        return await ledger.signed_by(connection, await read_head(connection, ledger.log_id), anchored.note)
    except NoteError:
        return 0


async def tell(connection: db.Connection, ledger: Ledger, anchor: Anchor) -> None:
    """Put where the ledger stands now in the place of what the anchor holds."""
    found = await standing.read(connection, ledger.log_id)
    log = await ledger.log(connection, found)
    mine, slug = found.checkpoint(log.origin), await ledger.slug(connection)
    anchored = await anchor.read(slug)
    if anchored is None or not anchored.note.startswith(f"{log.origin}\n"):  # else the service was quicker
        await anchor.swap(slug, anchored, ledger.sign(log, mine.size, mine.root))
