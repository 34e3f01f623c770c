"""What a ledger shows to whoever mirrors or monitors it: the latest checkpoint, tiles, entries (c2sp.org/tlog-tiles).

Entries name nobody, but tell how much happens: a tenant decides whether everybody may look (`public_ledger`). Else
officers and auditors of that tenant may, and for all others there is nothing.

Each epoch of a ledger is a log of its own, with an address of its own: whoever kept a tile of a log that was given up
must not take it for one of the log that goes on.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from consent_service import db
from consent_service.auth import Credential, Scope
from consent_service.errors import NotFound
from consent_service.ledger import tiles
from consent_service.ledger.book import Ledger, Ledgers
from consent_service.ledger.export import bundled
from consent_service.ledger.head import read_head
from consent_service.ledger.tiles import WIDTH, Place

AUDITORS: frozenset[Scope] = frozenset({"events", "export"})
"""Any of these lets a tenant's own callers read a ledger that is not public."""
_NO_LEDGER = "There is no such ledger, or it is not public: send a key of its tenant with the scope `export`."
_NO_TILE = "The published tree has no such tile."
_TILE = re.compile(r"/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)
_BUNDLE = -1
"""Level of the tiles that hold entries."""


class ShownRow(msgspec.Struct, frozen=True):
    """The latest published checkpoint."""

    size: int
    note: str


class TenantRow(msgspec.Struct, frozen=True):
    """Which ledger a tenant owns."""

    log_id: int


class Shown(NamedTuple):
    """What is answered."""

    body: bytes
    public: bool
    """Whether anybody may keep it."""


_READ_TENANT = db.one("ledger", "read_tenant", TenantRow)
_READ_SHOWN = db.one("ledger", "read_shown", ShownRow)


class Mirror:
    """The published side of all ledgers."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers
        self._known: dict[str, int] = {}
        """Tenants by slug, which never change."""

    async def checkpoint(self, slug: str, epoch: str, credential: Credential | None) -> Shown:
        """The latest checkpoint as it was published.

        Raises:
            NotFound: there is no ledger of that name, none that the caller may see, it is in another epoch, or nothing
                was published yet.
        """
        ledger = await self._ledger(slug)
        async with ledger.connection() as connection:
            shown, public = await _published(connection, ledger, epoch, credential)
            return Shown(shown.note.encode(), public)

    async def tile(self, slug: str, epoch: str, path: str, credential: Credential | None) -> Shown:
        """A tile or a bundle of entries; `path` is what stands behind `…/tile`.

        Raises:
            NotFound: as for a checkpoint, or the published tree has no such tile.
            LookupError: the database does not have all of it; a part would be kept for ever by whoever asked.
        """
        found = _parse(path)
        ledger = await self._ledger(slug)
        async with ledger.connection() as connection:
            shown, public = await _published(connection, ledger, epoch, credential)
            if found is None:
                raise NotFound(_NO_TILE)
            place, wide = found
            if tiles.width(Place(max(place.level, 0), place.n), shown.size) < wide:
                raise NotFound(_NO_TILE)
            if place.level == _BUNDLE:
                first = place.n * WIDTH
                return Shown(bundled(await tiles.entries(connection, ledger.log_id, first, first + wide)), public)
            return Shown(b"".join(await tiles.read(connection, ledger.log_id, place, wide)), public)

    async def _ledger(self, slug: str) -> Ledger:
        log_id = self._known.get(slug)
        if log_id is None:
            async with self._ledgers.connection() as connection:
                row = await _READ_TENANT(connection, slug)
            if row is None:
                raise NotFound(_NO_LEDGER)
            log_id = self._known[slug] = row.log_id
        return self._ledgers.of(log_id)


async def _published(
    connection: db.Connection, ledger: Ledger, epoch: str, credential: Credential | None
) -> tuple[ShownRow, bool]:
    """The latest checkpoint, and whether the ledger is public."""
    head = await read_head(connection, ledger.log_id)
    public = bool(head.policy) and (
        (await ledger.policies.get(connection, ledger.log_id, head.policy)).tenant.public_ledger
    )
    mine = credential is not None and credential.log_id == ledger.log_id and not AUDITORS.isdisjoint(credential.scopes)
    if not public and not mine:
        raise NotFound(_NO_LEDGER)
    if epoch != str(head.epoch):
        raise NotFound(f"The ledger is in epoch {head.epoch}: ask for /ledger/<tenant>/{head.epoch}/… instead.")
    shown = await _READ_SHOWN(connection, ledger.log_id, head.epoch)
    if shown is None:
        raise NotFound("Nothing was published yet. Ask again in some seconds.")
    return shown, public


def _parse(path: str) -> tuple[Place, int] | None:
    """Which tile, and how many of its hashes; None for what is none.

    The number is written in threes, all but the last with an `x` before them: tile 1234067 is `x001/x234/067`.
    """
    match = _TILE.fullmatch(path)
    if match is None or match[2].startswith("x000"):
        return None
    level = _BUNDLE if match[1] == "entries" else int(match[1])
    wide = WIDTH if match[3] is None else int(match[3])
    n = int(match[2].replace("x", "").replace("/", ""))
    whole = match[3] is None
    return (Place(level, n), wide) if level < tiles.LEVELS and (whole or wide < WIDTH) else None
