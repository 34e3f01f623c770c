"""`consent bench`: what records, checks and exports cost."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from consent_service.cli.options import as_json
from consent_service.cli.root import consent
from consent_service.cli.terminal import tell


@consent.command("bench")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default="bench.json", show_default=True)
@click.option("--export", "events", type=click.IntRange(1), metavar="N", help="Measure an export of N events instead.")
@as_json
def run_bench(output: Path, events: int | None, as_json: bool) -> None:
    """Measure what a record and a check cost beside the least that could do the same job; in about two minutes."""
    from consent_service import bench  # noqa: PLC0415 -- most commands need none of it

    if events is not None:
        measured = bench.run_export(events, lambda line: click.echo(line, err=True))
        tell(as_json, measured, bench.export_table(measured))
        return
    report = bench.run(lambda line: click.echo(line, err=True))
    output.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    tell(as_json, report, f"{bench.table(report)}\nWritten to {output}.")
