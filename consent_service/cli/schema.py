"""`consent migrate`: the schema of the database."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from consent_service import db, server, settings
from consent_service.cli.options import as_json, service_options
from consent_service.cli.root import consent
from consent_service.cli.terminal import tell


@consent.command
@service_options
@as_json
def migrate(as_json: bool, **given: Any) -> None:
    """Bring the database's schema forward."""
    with server.database(settings.read(os.environ, given)) as (url, _):
        applied = asyncio.run(db.migrate(url))
    tell(as_json, {"applied": applied}, "\n".join(applied) or "The schema is up to date.")
