"""`consent ledger`: the ledger of a tenant, and its export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from consent_service import decode, erasures
from consent_service.cli.options import as_json, service_options
from consent_service.cli.reach import InReach, for_ledger
from consent_service.cli.root import consent
from consent_service.cli.terminal import progress, table, tell
from consent_service.errors import Frozen, Invalid
from consent_service.ledger import standing, turns


@consent.group
def ledger() -> None:
    """The ledger of a tenant: how far it is, and what it signs."""


of_ledger = click.option("--tenant", required=True, metavar="SLUG", help="The tenant whose ledger it is.")


def _read_status(tenant: str, data: str | None, database_url: str | None) -> standing.Status:
    async def read(reach: InReach) -> standing.Status:
        return await standing.status(reach.connection, reach.ledger)

    return for_ledger(tenant, data, database_url, read)


@ledger.command("status")
@of_ledger
@service_options
@as_json
def ledger_status(tenant: str, as_json: bool, data: str | None, database_url: str | None) -> None:
    """Tell how many entries the ledger has, the hash of its tree, and the keys that it signs with, or once did."""
    status = _read_status(tenant, data, database_url)
    lines = [
        ("origin", status.origin), ("epoch", status.epoch), ("size", status.size), ("root", status.root),
        ("published", status.published), ("frozen", status.frozen or "no"), *(("key", key) for key in status.keys),
        *(("retired", key) for key in status.retired),
    ]  # fmt: skip
    tell(as_json, status, table(lines))


@ledger.command("checkpoint")
@of_ledger
@service_options
@as_json
def ledger_checkpoint(tenant: str, as_json: bool, data: str | None, database_url: str | None) -> None:
    """Print a signed checkpoint (c2sp.org/tlog-checkpoint) of the ledger as it is now."""
    status = _read_status(tenant, data, database_url)
    if status.checkpoint is None:
        raise Frozen(status.frozen or "")
    tell(as_json, {"checkpoint": status.checkpoint}, status.checkpoint.removesuffix("\n"))


@ledger.command("rotate")
@of_ledger
@click.option("--finish", is_flag=True, help="End the older of two keys.")
@service_options
@as_json
def rotate_key(tenant: str, finish: bool, as_json: bool, data: str | None, database_url: str | None) -> None:
    """Let another key sign beside the one that does; later, with --finish, end the older one."""

    async def turn(reach: InReach) -> turns.Rotated:
        return await (turns.retire_key if finish else turns.add_key)(reach.connection, reach.ledger)

    rotated = for_ledger(tenant, data, database_url, turn)
    lines = [("signs", key) for key in rotated.keys]
    if rotated.retired is not None:
        lines.append(("retired", rotated.retired))
    told = "" if finish else "\nGive the newer key out. When everybody has it, end the older one with --finish."
    tell(as_json, rotated, table(lines) + told)


@ledger.command("recover")
@of_ledger
@click.option("--yes", is_flag=True, help="Do not ask.")
@service_options
@as_json
def recover_ledger(tenant: str, yes: bool, as_json: bool, data: str | None, database_url: str | None) -> None:
    """Give up what a frozen ledger has lost: it goes on in a new epoch, and its first entry there says so."""
    if not yes and as_json:
        raise click.UsageError("With --json nobody is asked: say --yes.")
    if not yes:
        click.confirm("Entries that were signed, and for which people hold receipts, are lost then. Go on?", abort=True)

    async def turn(reach: InReach) -> tuple[turns.Recovered, int]:
        return await erasures.recover(reach.connection, reach.ledger, reach.anchor)

    made, repeated = for_ledger(tenant, data, database_url, turn)
    text = f"The ledger goes on as {made.origin}, from {made.kept} entries; {made.lost} or more are lost."
    again = f"\nErased once more: {repeated} people." if repeated else ""
    tell(as_json, {**msgspec.structs.asdict(made), "erasures_repeated": repeated}, text + again)


@ledger.command("export")
@of_ledger
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write (ZIP)."
)
@click.option("--format", "kind", type=click.Choice(["ndjson", "csv", "parquet"]), default="ndjson", show_default=True)
@click.option("--from", "from_", metavar="TIME", help="Recorded then or later (RFC 3339).")
@click.option("--until", metavar="TIME", help="Recorded before.")
@click.option("--purpose", "purposes", multiple=True, metavar="ID", help="This and the following: several times.")
@click.option("--channel", "channels", multiple=True, metavar="NAME")
@click.option("--status", "statuses", multiple=True, metavar="NAME")
@click.option("--subject", metavar="TYPE:ID", help="One person, as in login:ada; the file shows that all is there.")
@click.option("--actor", "actors", multiple=True, metavar="ID", help="Recorded with this credential.")
@click.option("--kind", "kinds", multiple=True, metavar="NAME", help="consent, link or read.")
@service_options
@as_json
def export_ledger(
    tenant: str, output: Path, kind: str, as_json: bool, data: str | None, database_url: str | None, **wanted: Any
) -> None:
    """Write the ledger and its events to a file that proves that nothing was changed or left out."""
    from consent_service import exports  # noqa: PLC0415 -- most commands need none of it

    kept = {name.rstrip("_"): value for name, value in wanted.items() if value not in (None, ())}
    if "subject" in kept:
        namespace, _, value = kept["subject"].partition(":")
        kept["subject"] = {"type": namespace, "id": value}
    try:
        body = decode.body(msgspec.json.encode({"format": kind, **kept}), exports.ExportBody)
    except Invalid as error:
        wrong = "; ".join(f"--{one.pointer.split('/')[1]} {one.detail}" for one in error.errors)
        raise click.UsageError(wrong) from None

    async def write(reach: InReach, take: Callable[[bytes], None]) -> exports.ExportRow:
        row = await exports.order(reach.ledger, body, exports.OPERATOR)
        with progress(None if as_json else 2 * (row.end - row.first), "Exporting") as advance:
            async for piece in await exports.fetch(reach.ledger, row, advance):
                take(piece)
        return row

    with exports.saving(output) as take:
        row = for_ledger(tenant, data, database_url, lambda reach: write(reach, take))
    facts = {"export": row.export, "file": str(output), "size": row.size, "first": row.first, "end": row.end}
    text = f"Written to {output}: entries {row.first} up to {row.end} of {row.size}."
    tell(as_json, facts, f"{text} Check: consent verify {output} --key VKEY")
