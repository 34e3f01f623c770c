"""Publishing: every few seconds, what a ledger has signed is put where the database cannot reach, and shown.

Before that the ledger is compared with what was published last (`standing.py`). Then tiles are kept, the checkpoint is
cosigned by witnesses, dated by an authority, kept in the anchor, and shown to the world. Whatever fails leaves the
ledger as it was published before; the next round begins anew.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec

from consent_service import db
from consent_service import log as logs
from consent_service.errors import ConsentError
from consent_service.ledger import standing, tiles, tree
from consent_service.ledger.anchor import Anchored
from consent_service.ledger.book import Ledger, Ledgers
from consent_service.ledger.note import Checkpoint, NoteError, split
from consent_service.ledger.outside import Outside
from consent_service.ledger.receipt import Log
from consent_service.ledger.standing import Publication
from consent_service.ledger.witness import Prove

DATE_EVERY = timedelta(hours=1)
"""How often a checkpoint is dated by an authority, where one is named: authorities count."""
_SPREAD = 0.2
"""By how much of itself an interval varies, so that processes do not all look at once."""


class ClaimRow(msgspec.Struct, frozen=True):
    """A checkpoint that is ours to publish."""

    size: int


_CLAIM = db.one("ledger", "claim_checkpoint", ClaimRow)
_SHOW = db.execute("ledger", "show_checkpoint")
_LOG = logs.get("publisher")
_NOT_OURS = (
    "The anchor outside the database cannot be relied on: {}. Give back its file, or the root secret that the ledger "
    "was signed under, and the ledger goes on by itself."
)


class Publisher:
    """Publishes the ledgers of all tenants; each process has one, and they share the work by claiming checkpoints."""

    def __init__(self, ledgers: Ledgers, outside: Outside, *, every_s: float = 5) -> None:
        self._ledgers = ledgers
        self._outside = outside
        self._every_s = every_s
        self._quiet: dict[int, tuple[int, bytes]] = {}
        """By ledger: the epoch and frontier at which there was nothing left to do."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish meanwhile, and once more at the end: then nothing that was signed is known to the database alone."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._every_s = 0
            await self.sweep()

    async def _run(self) -> None:
        while True:
            await self.sweep()
            await asyncio.sleep(self._every_s * random.uniform(1 - _SPREAD, 1 + _SPREAD))  # noqa: S311 -- no secret

    async def sweep(self) -> None:
        """One round over all ledgers. What goes wrong with one is logged, and does not concern the others."""
        try:
            ledgers = await self._ledgers.by_tenant()
        except ConsentError as error:
            _LOG.warning("not_published", error=error.title())
            return
        for slug, ledger in ledgers.items():
            try:
                await self.publish(ledger.log_id)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the next ledger and the next round go on
                _LOG.warning("not_published", tenant=slug, error=type(error).__name__)

    async def publish(self, log_id: int) -> bool:
        """Publish a ledger where it has grown; whether it is published as far as it goes now."""
        ledger = self._ledgers.of(log_id)
        async with ledger.connection() as connection:
            found = await standing.read(connection, log_id)
            if self._quiet.get(log_id) == (found.epoch, found.frontier) and found.frozen is None:
                return True
            anchored, found = await self._compare(connection, ledger)
            if found.frozen is not None:
                return False
            slug, log = await ledger.slug(connection), await ledger.log(connection, found)
            mine = found.checkpoint(log.origin)
            if found.published < found.size and not await self._claim(connection, ledger, log, mine, found):
                return False
        note, token, is_witnessed = ledger.sign(log, mine.size, mine.root), None, True
        if found.published < found.size:
            note, token, is_witnessed = await self._outside.confirm(
                log, note, _prover(ledger), dated=found.dated_at is None or found.now - found.dated_at > DATE_EVERY
            )
        if not await self._keep(slug, anchored, mine, note) or not is_witnessed:
            return False  # somebody else was quicker; or the next round asks again
        if found.published < found.size:
            async with ledger.connection() as connection:
                await _SHOW(connection, log_id, found.epoch, found.size, note, token)
        self._quiet[log_id] = (found.epoch, found.frontier)
        return True

    async def examine(self, log_id: int) -> Publication:
        """Compare a ledger with what is known of it outside the database; see `standing.settle`."""
        ledger = self._ledgers.of(log_id)
        async with ledger.connection() as connection:
            return (await self._compare(connection, ledger))[1]

    async def examine_all(self) -> None:
        """Compare all ledgers, before anybody writes."""
        for ledger in (await self._ledgers.by_tenant()).values():
            await self.examine(ledger.log_id)

    async def _compare(self, connection: db.Connection, ledger: Ledger) -> tuple[Anchored | None, Publication]:
        """What was signed is asked for first: it grows all the time, and the tree has to be no older than that."""
        slug = await ledger.slug(connection)
        anchor = self._outside.anchor
        anchored = None if anchor is None else await anchor.read(slug)
        signed = [] if ledger.signed is None else [ledger.signed]
        found = await standing.read(connection, ledger.log_id)
        if anchor is not None and anchored is None and found.published:
            _LOG.warning(
                "anchor_empty", tenant=slug, published=found.published
            )  # moved, it is hoped: nothing to compare
        log = await ledger.log(connection, found)
        try:
            if anchored is not None:
                signed.append(await _checkpoint(connection, ledger, found, anchored))
            settled = await standing.settle(connection, ledger, log, found, signed)
        except NoteError as error:
            settled = await standing.freeze(connection, ledger.log_id, log, found, _NOT_OURS.format(error))
        if settled.frozen != found.frozen:
            _LOG.warning("frozen" if settled.frozen else "thawed", tenant=slug)
        return anchored, settled

    async def _keep(self, slug: str, anchored: Anchored | None, mine: Checkpoint, note: str) -> bool:
        """Whether a checkpoint stands outside the database now."""
        anchor = self._outside.anchor
        if anchor is None or (anchored is not None and anchored.note.startswith(f"{mine}\n")):
            return True
        return await anchor.swap(slug, anchored, note)

    async def _claim(
        self, connection: db.Connection, ledger: Ledger, log: Log, mine: Checkpoint, found: Publication
    ) -> bool:
        """Keep the tiles of the tree; whether publishing it is ours to do."""
        await tiles.store(connection, ledger.log_id, found.size)
        note = ledger.sign(log, mine.size, mine.root)
        pause = self._every_s * (1 - 2 * _SPREAD)
        return await _CLAIM(connection, ledger.log_id, found.epoch, found.size, note, pause) is not None


def _prover(ledger: Ledger) -> Prove:
    """Gives witnesses the proofs that the ledger only grew."""

    async def prove(old: int, new: int) -> list[bytes]:
        async with ledger.connection() as connection:
            return await tiles.proved(
                connection, ledger.log_id, new, lambda node: tree.consistency_proof(old, new, node)
            )

    return prove


async def _checkpoint(connection: db.Connection, ledger: Ledger, found: Publication, anchored: Anchored) -> Checkpoint:
    """What the anchor says, if this ledger signed it, in whichever epoch.

    Raises:
        NoteError: it did not.
    """
    await ledger.signed_by(connection, found, anchored.note)
    return Checkpoint.parse(split(anchored.note)[0])
