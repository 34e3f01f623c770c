"""A tenant's ledger within reach: what every command about one tenant opens first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from consent_service import db, server, settings, tenants
from consent_service.errors import NotFound
from consent_service.ledger import Ledger, Ledgers
from consent_service.ledger.anchor import Anchor, open_anchor
from consent_service.ledger.outside import Outside
from consent_service.ledger.publish import Publisher
from consent_service.vault import Vault

Result = TypeVar("Result")


class InReach(NamedTuple):
    """A ledger and what a command needs beside it."""

    connection: db.Connection
    ledger: Ledger
    anchor: Anchor | None
    root: bytes
    """The root secret."""
    ledgers: Ledgers


def for_ledger(
    slug: str, data: str | None, database_url: str | None, work: Callable[[InReach], Awaitable[Result]]
) -> Result:
    """Do something with the ledger of a tenant."""
    chosen = settings.read(os.environ, {"data": data, "database_url": database_url}, serving=True)

    async def run(url: str, root: bytes) -> Result:
        await db.migrate(url)
        async with await db.connect(url, size=2) as pool, db.connection(pool) as connection:
            vault = Vault(root, settings.key_file(chosen))
            await tenants.demand_secrets(connection, root, vault)
            log_id = await tenants.find(connection, slug) if slug.isascii() else None
            if log_id is None:
                raise NotFound("There is no such tenant. `consent policy apply` makes one from its policy.")
            ledgers, outside = Ledgers(pool, root, vault=vault), open_anchor(settings.anchor(chosen))
            await Publisher(ledgers, Outside(outside)).examine(log_id)
            return await work(InReach(connection, ledgers.of(log_id), outside, root, ledgers))

    with server.database(chosen) as (url, _):
        return asyncio.run(run(url, settings.secret(chosen)))
