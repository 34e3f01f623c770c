"""`consent purge`: what had to be kept until today is ended."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from consent_service import db, purge, server, settings, tenants
from consent_service.cli.options import as_json, service_options
from consent_service.cli.root import consent
from consent_service.cli.terminal import tell
from consent_service.ledger import Ledgers
from consent_service.ledger.anchor import open_anchor
from consent_service.settings import Settings
from consent_service.vault import Vault


@consent.command("purge")
@service_options
@as_json
def run_purge(as_json: bool, **given: Any) -> None:
    """End what had to be kept until today, and destroy the key that wrapped what was erased.

    Run it once a month at least, and make a backup afterwards: those made before can be read no more. While the
    database rewrites its table of keys, at the end, it answers nothing that needs one: seconds for each million people.
    """
    chosen = settings.read(os.environ, given, serving=True)
    with server.database(chosen) as (url, embedded):
        admin = url if embedded is None else embedded.admin_url
        done = asyncio.run(_purge(chosen, url, admin))
    lines = [
        f"{done.released} entries whose proof was kept until today; {done.tombstones} tombstones.",
        "The key-encryption key follows from the root secret: name a file with CONSENT_KEY_FILE to have it rotated."
        if done.rewrapped is None
        else f"{done.rewrapped} keys are wrapped anew; the key-encryption key before is destroyed.",
    ]
    if done.rewrapped is not None and not done.turned:
        lines.append("As an administrator of the database, run: " + "; ".join(purge.TURN) + ";")
    tell(as_json, done, "\n".join(lines))


async def _purge(chosen: Settings, url: str, admin: str) -> purge.Purged:
    await db.migrate(url)
    root, key_file = settings.secret(chosen), settings.key_file(chosen)
    vault = Vault(root, key_file)
    async with await db.connect(url, size=2) as pool, await db.connect(admin, size=1, role=None) as other:
        async with db.connection(pool) as connection:
            await tenants.demand_secrets(connection, root, vault)
        async with db.connection(other) as owner:
            anchor = open_anchor(settings.anchor(chosen))
            return await purge.purge(Ledgers(pool, root, vault=vault), vault, key_file, owner, anchor)
