"""`consent import`: existing consents read in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from consent_service import imports
from consent_service.cli.options import as_json, service_options
from consent_service.cli.reach import InReach, for_ledger
from consent_service.cli.root import consent
from consent_service.cli.terminal import progress, tell
from consent_service.consents import Writer
from consent_service.devices import Devices


def import_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a list is to be read."""
    for option in reversed((
        click.option("--tenant", required=True, metavar="SLUG", help="The tenant whose people they are."),
        click.option("--map", "mapping", type=click.File("rb"), metavar="MAPPING",
                     help="A TOML file: what the columns mean."),
        click.option("--list", "name", metavar="NAME", help="Which list it is (default: the file's name)."),
        click.option("--rejects", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                     help="Where refused rows go (default: FILE.rejects.csv; of standard input import.rejects.csv)."),
        click.option("--ignore", multiple=True, metavar="COLUMN",
                     help="Leave a column out; may be given several times."),
        click.option("--delimiter", metavar="CHARACTER",
                     help="What divides the columns (default: a comma, a semicolon or TAB, as the header shows)."),
        click.option("--timezone", metavar="ZONE", help="Of times that name none, such as Europe/Berlin."),
        click.option("--dry-run", is_flag=True,
                     help="Record nothing: tell what would become of each row as things are."),
    )):  # fmt: skip
        command = option(command)
    return command


@consent.command("import")
@click.argument("file", type=click.File("rb"))
@import_options
@service_options
@as_json
def run_import(
    file: BinaryIO, tenant: str, as_json: bool, data: str | None, database_url: str | None, **given: Any
) -> None:
    """Read existing consents in from a CSV file; `-` is standard input.

    Columns: type, id, purpose, status, channel, contact, recipient, occurred_at, notice, notice_version, language,
    method and evidence.…; a mapping says what others mean. What was read before is not recorded again: start it again
    after a crash, or with a longer file. Exit code 1: some rows were refused.
    """
    job, size = _job(file, **given), os.fstat(file.fileno()).st_size

    async def read(reach: InReach) -> imports.Found:
        with progress(size if job.again and not as_json else None, "Importing") as advance:
            writer = Writer(reach.ledgers, Devices(reach.root))
            return await imports.run(reach.ledger, writer, file, job, _positions(advance))

    found = for_ledger(tenant, data, database_url, read)
    tell(as_json, found, imports.as_text(found, job))
    if found.tally.refusals:
        sys.exit(1)


def _job(
    file: BinaryIO, mapping: BinaryIO | None, name: str | None, rejects: Path | None, dry_run: bool, **said: Any
) -> imports.Job:
    """The list that the options describe."""
    known = imports.read_mapping(b"" if mapping is None else mapping.read())
    path, again = Path(file.name), file.seekable() and file is not sys.stdin.buffer
    refused = rejects or (path.with_name(f"{path.name}.rejects.csv") if again else Path("import.rejects.csv"))
    to = None if dry_run and rejects is None else refused
    return imports.Job(name or path.name, imports.override(known, **said), to, dry_run, again)


def _positions(advance: Callable[[int], None]) -> Callable[[int], None]:
    """Turns the place that was reached into steps."""
    at = 0

    def tell(position: int) -> None:
        nonlocal at
        advance(position - at)
        at = position

    return tell
