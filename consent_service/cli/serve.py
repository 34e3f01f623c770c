"""`consent demo` and `consent serve`: the service started, with the example tenant or without."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec

from consent_service import db, demo, erasures, log, server, settings, tenants
from consent_service.cli.options import as_json, service_options
from consent_service.cli.root import consent
from consent_service.cli.terminal import tell
from consent_service.errors import SetupError
from consent_service.ledger import Ledgers
from consent_service.ledger.anchor import open_anchor
from consent_service.ledger.outside import Outside
from consent_service.ledger.publish import Publisher
from consent_service.settings import Settings
from consent_service.vault import Vault


def serving_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the commands that serve."""
    for option in reversed((
        click.option("--host", help="Address to listen on (default 127.0.0.1)."),
        click.option("--port", type=int, help="Port to listen on; 0 takes a free one (default 8080)."),
        click.option("--workers", type=int, help="Worker processes (default 1)."),
        click.option("--ready-file", type=click.Path(path_type=Path), help="Write how to call it, once it answers."),
    )):  # fmt: skip
        command = option(command)
    return service_options(command)


@consent.command("demo")
@serving_options
@as_json
def run_demo(ready_file: Path | None, as_json: bool, **given: Any) -> None:
    """Start everything on an embedded PostgreSQL, with the example tenant and its keys."""
    _serve(settings.read(os.environ, given, serving=True), ready_file, as_json, example=True)


@consent.command
@serving_options
@as_json
def serve(ready_file: Path | None, as_json: bool, **given: Any) -> None:
    """Serve the tenants of the database; settings come from CONSENT_… and consent.toml."""
    _serve(settings.read(os.environ, given, serving=True), ready_file, as_json, example=False)


def _serve(chosen: Settings, ready_file: Path | None, as_json: bool, *, example: bool) -> None:
    ending = server.Ending()
    log.configure(chosen.log_level)
    if ready_file is not None:
        _clear(ready_file)
    with closing(server.bind(chosen)) as listener, server.database(chosen) as (url, embedded):
        root = settings.secret(chosen)
        facts: dict[str, Any] = {"url": server.address(listener), "tenant": None, "keys": {}, "pid": os.getpid()}
        asyncio.run(_prepare(url, root, chosen))
        if example:
            facts |= asyncio.run(demo.set_up(url, root, chosen, facts["url"]))

        def ready() -> None:
            if ready_file is not None:
                _clear(ready_file)
                settings.keep(ready_file, msgspec.json.encode(facts).decode())
            tell(as_json, facts, demo.welcome(facts) if example else f"The consent service answers on {facts['url']}.")

        workers_url = url if embedded is None else embedded.workers_url
        server.Supervisor(chosen, workers_url, embedded, listener, ending).run(ready)


async def _prepare(url: str, root: bytes, chosen: Settings) -> None:
    """The schema brought forward, by the secret that it was filled under; and no ledger older than what it signed."""
    await db.migrate(url)
    vault = Vault(root, settings.key_file(chosen))
    async with await db.connect(url, size=2) as pool:
        async with db.connection(pool) as connection:
            await tenants.demand_secrets(connection, root, vault)
        anchor = open_anchor(settings.anchor(chosen))
        ledgers = Ledgers(pool, root, vault=vault)
        await Publisher(ledgers, Outside(anchor)).examine_all()
        if anchor is not None:
            await erasures.catch_up(ledgers, anchor)


def _clear(ready_file: Path) -> None:
    """Away with the file of an earlier run, which says nothing about this one; and see that a new one can be made."""
    try:
        draft = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        ready_file.unlink(missing_ok=True)
        draft.touch()
        draft.unlink()
    except (OSError, ValueError) as error:
        raise SetupError(f"The ready file {ready_file} cannot be written: {error}.") from None
