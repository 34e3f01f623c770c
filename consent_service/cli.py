"""The command `consent`. Exit codes: 0 done, 1 refused or falsified, 2 usage or set-up."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec

from consent_service import __version__, db, demo, log, policies, server, settings, tenants
from consent_service.errors import ConsentError, SetupError
from consent_service.policies import store
from consent_service.settings import Settings

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def service_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command with a database takes."""
    for option in reversed((
        click.option("--data", metavar="DIR", help="Folder of the embedded database (default .consent)."),
        click.option("--database-url", metavar="URL", help="Use this PostgreSQL instead of the embedded one."),
    )):  # fmt: skip
        command = option(command)
    return command


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def consent() -> None:
    """Record consents, answer may-we checks, prove both."""


@consent.command("demo")
@serving_options
@as_json
def run_demo(ready_file: Path | None, as_json: bool, **given: Any) -> None:
    """Start everything on an embedded PostgreSQL, with the example tenant and its keys."""
    _serve(_settings(given), ready_file, as_json, example=True)


@consent.command
@serving_options
@as_json
def serve(ready_file: Path | None, as_json: bool, **given: Any) -> None:
    """Serve the tenants of the database; settings come from CONSENT_… and consent.toml."""
    _serve(_settings(given), ready_file, as_json, example=False)


@consent.command
@service_options
@as_json
def migrate(as_json: bool, **given: Any) -> None:
    """Bring the database's schema forward."""
    with server.database(_settings(given)) as (url, _):
        applied = asyncio.run(db.migrate(url))
    _tell(as_json, {"applied": applied}, "\n".join(applied) or "The schema is up to date.")


@consent.group
def policy() -> None:
    """Policies as code: check, preview, put into force."""


@policy.command("lint")
@click.argument("folder")
@as_json
def lint_policy(folder: str, as_json: bool) -> None:
    """Check a policy folder; names every error by file and key."""
    found = policies.load(policies.find(folder))
    _tell(
        as_json,
        {"tenant": found.tenant.id, "purposes": len(found.purposes), "hash": found.hash},
        f"{found.tenant.id}: {len(found.purposes)} purposes, {len(found.notices)} notices, no errors.",
    )


@policy.command("plan")
@click.argument("folder")
@service_options
@as_json
def plan_policy(folder: str, as_json: bool, **given: Any) -> None:
    """Say in words what applying a policy folder would change, and how many subjects it touches."""
    _policy(folder, given, as_json, apply=False)


@policy.command("apply")
@click.argument("folder")
@service_options
@as_json
def apply_policy(folder: str, as_json: bool, **given: Any) -> None:
    """Put a policy folder into force."""
    _policy(folder, given, as_json, apply=True)


def _policy(folder: str, given: dict[str, Any], as_json: bool, *, apply: bool) -> None:
    new = policies.load(policies.find(folder))

    async def run(url: str) -> tenants.Plan:
        await db.migrate(url)
        async with await db.connect(url, size=1) as pool, db.connection(pool) as connection:
            log_id = await tenants.find(connection, new.tenant.id)
            known = store.Policies()
            if log_id is None and not apply:
                return tenants.first_plan(new)
            log_id = log_id if log_id is not None else await tenants.ensure(connection, new.tenant.id)
            act = tenants.apply_policy if apply else tenants.plan_policy
            return await act(connection, log_id, known, new)

    with server.database(_settings(given)) as (url, _):
        plan = asyncio.run(run(url))
    _tell(as_json, plan.as_json(), plan.as_text())
    if any(change.refused for change in plan.changes):
        sys.exit(1)


@consent.command("openapi")
@click.option("--json", is_flag=True, expose_value=False, help="Nothing else: the file is JSON.")
def print_openapi() -> None:
    """Print the OpenAPI file."""
    from consent_service import app, openapi  # noqa: PLC0415 -- most commands need no framework

    click.echo(openapi.document(app.OPERATIONS), nl=False)


@consent.command("bench")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default="bench.json", show_default=True)
@as_json
def run_bench(output: Path, as_json: bool) -> None:
    """Measure what a record and a check cost beside the least that could do the same job; under three minutes."""
    from consent_service import bench  # noqa: PLC0415 -- most commands need none of it

    report = bench.run(lambda line: click.echo(line, err=True))
    output.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    _tell(as_json, report, f"{bench.table(report)}\nWritten to {output}.")


def _serve(chosen: Settings, ready_file: Path | None, as_json: bool, *, example: bool) -> None:
    log.configure(chosen.log_level)
    if ready_file is not None:
        _clear(ready_file)
    with closing(server.bind(chosen)) as listener, server.database(chosen) as (url, embedded):
        root = settings.secret(chosen)
        facts: dict[str, Any] = {"url": server.address(listener), "tenant": None, "keys": {}, "pid": os.getpid()}
        asyncio.run(db.migrate(url))
        if example:
            facts |= asyncio.run(demo.set_up(url, root, Path(chosen.data), facts["url"]))

        def ready() -> None:
            if ready_file is not None:
                _clear(ready_file)
                settings.keep(ready_file, msgspec.json.encode(facts).decode())
            _tell(as_json, facts, demo.welcome(facts) if example else f"The consent service answers on {facts['url']}.")

        server.Supervisor(chosen, url, embedded, listener).run(ready)


def _clear(ready_file: Path) -> None:
    """Away with the file of an earlier run, which says nothing about this one; and see that a new one can be made."""
    draft = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
    try:
        ready_file.unlink(missing_ok=True)
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise SetupError(f"The ready file {ready_file} cannot be written: {error.strerror}.") from None


def _settings(given: dict[str, Any]) -> Settings:
    """The settings; a command that serves needs the secret too, and says so together with whatever else is wrong."""
    return settings.read(os.environ, given, serving="port" in given)


def _tell(as_json: bool, facts: Any, text: str) -> None:
    click.echo(msgspec.json.encode(facts).decode() if as_json else text)
    sys.stdout.flush()


def main() -> None:
    """Run the command; domain errors become one clear text, or with --json one object, and an exit code."""
    try:
        consent()
    except ConsentError as error:
        lines = [str(error), *(f"  {wrong.pointer}: {wrong.detail}" for wrong in error.errors)]
        click.echo("consent: " + "\n".join(lines), err=True)
        if "--json" in sys.argv:
            _tell(True, {"error": str(error), "errors": error.errors}, "")
        sys.exit(2 if isinstance(error, SetupError) else 1)
