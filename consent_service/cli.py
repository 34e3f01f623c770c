"""The command `consent`. Exit codes: 0 done, 1 refused or falsified, 2 usage or set-up."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, TypeVar

import click
import msgspec

from consent_service import (
    __version__,
    auth,
    db,
    decode,
    demo,
    erasures,
    imports,
    keys,
    log,
    policies,
    purge,
    records,
    server,
    settings,
    tenants,
)  # fmt: skip
from consent_service.consents import Writer
from consent_service.devices import Devices
from consent_service.errors import ConsentError, Frozen, NotFound, SetupError
from consent_service.ledger import Ledger, Ledgers, audit, container, receipt, standing, turns, verdict
from consent_service.ledger.anchor import Anchor, open_anchor
from consent_service.ledger.note import NoteError
from consent_service.ledger.outside import Outside
from consent_service.ledger.proof import MAX_PROOF
from consent_service.ledger.publish import Publisher
from consent_service.ledger.trust import MAX_TRUST, Trust, trusting
from consent_service.policies import store
from consent_service.settings import Settings
from consent_service.vault import Vault

Result = TypeVar("Result")

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
    new, chosen = policies.load(policies.find(folder)), _settings(given)

    async def run(url: str) -> tenants.Plan:
        await db.migrate(url)
        async with await db.connect(url, size=1) as pool, db.connection(pool) as connection:
            log_id = await tenants.find(connection, new.tenant.id)
            known = store.Policies()
            if log_id is None and not apply:
                return tenants.first_plan(new)
            log_id = log_id if log_id is not None else await tenants.ensure(connection, new.tenant.id, chosen.origin)
            act = tenants.apply_policy if apply else tenants.plan_policy
            return await act(connection, log_id, known, new)

    with server.database(chosen) as (url, _):
        plan = asyncio.run(run(url))
    _tell(as_json, plan.as_json(), plan.as_text())
    if any(change.refused for change in plan.changes):
        sys.exit(1)


@consent.group
def key() -> None:
    """Keys of a tenant: make, list, rotate, revoke."""


of_tenant = click.option("--tenant", required=True, metavar="SLUG", help="The tenant whose key it is.")
OBEYED = f"within {auth.FRESH_S:g} s all processes obey"


def credential_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a new key is to be."""
    for option in reversed((
        click.option("--kind", type=click.Choice(list(auth.PREFIX)),
                     help="service: for servers; publishable: for pages and apps, may be seen; officer: for staff."),
        click.option("--name", metavar="TEXT", help="What people know it by."),
        click.option("--id", "credential", metavar="ID",
                     help="What records and logs know it by, for ever: 1 to 32 of a-z, 0-9, -. Made up if not given."),
        click.option("--scope", "scopes", multiple=True, type=click.Choice(sorted(auth.SCOPES)),
                     help="What it may do; may be given several times."),
        click.option("--role", type=click.Choice(list(auth.ROLES)), help="For officers, instead of --scope."),
        click.option("--origin", "origins", multiple=True, metavar="URL",
                     help="A web origin whose pages may use it, such as https://shop.example; several times."),
        click.option("--no-origin", is_flag=True, help="Publishable, but for apps only: no web page may use it."),
        click.option("--rate", type=int, metavar="N", help="Requests per second; without it there is no limit."),
    )):  # fmt: skip
        command = option(command)
    return command


@key.command("create")
@of_tenant
@credential_options
@click.option("--replace", metavar="ID", help="Give this one a second key, like its first; then revoke its --old one.")
@service_options
@as_json
def create_key(
    tenant: str, replace: str | None, as_json: bool, data: str | None, database_url: str | None, **options: Any
) -> None:
    """Make a key and print it, which happens this one time only."""
    if replace is not None and any(value not in (None, ()) and value is not False for value in options.values()):
        raise click.UsageError("With --replace everything stays as it is: give no other option about the key.")
    wanted = None if replace is not None else _wanted(**options)

    async def make(connection: db.Connection, log_id: int, root: bytes) -> tuple[str, keys.Issued]:
        if wanted is None:
            return await keys.add_second_key(connection, root, log_id, str(replace))
        return await keys.create_key(connection, root, msgspec.structs.replace(wanted, log_id=log_id))

    made, issued = _for_tenant(tenant, data, database_url, make)
    text = f"{made}\nThis key is shown now and never again: put it where secrets are kept."
    if wanted is None:
        old = f"consent key revoke --tenant {tenant} --old {issued.id}"
        text += f"\nThe old key of `{issued.id}` is valid as well; when nobody uses it any more, end it: {old}"
    _tell(as_json, {"key": made, "tenant": tenant, **msgspec.structs.asdict(issued)}, text)


def _wanted(
    *, kind: auth.Kind | None, name: str | None, credential: str | None, scopes: tuple[str, ...],
    role: auth.Role | None, origins: tuple[str, ...], no_origin: bool, rate: int | None,
) -> auth.Credential:  # fmt: skip
    """The credential that the options describe, of no tenant yet."""
    if kind is None or name is None:
        raise click.UsageError("A new key needs --kind and --name.")
    if role is not None and (kind != "officer" or scopes):
        raise click.UsageError("--role is for officers, and stands instead of --scope.")
    if role is None and not scopes:
        raise click.UsageError("A new key needs one --scope or more" + (", or a --role." if kind == "officer" else "."))
    if no_origin and (origins or kind != "publishable"):
        raise click.UsageError("--no-origin is for publishable keys without --origin.")
    if kind == "publishable" and not origins and not no_origin:
        raise click.UsageError("A publishable key needs one --origin or more; or --no-origin, if no web page uses it.")
    granted = auth.ROLES[role] if role is not None else frozenset(scopes)
    chosen = keys.new_id(kind) if credential is None else credential
    wanted = auth.Credential(0, chosen, kind, name, granted, frozenset(origins), rate)
    keys.demand_sound(wanted)
    return wanted


@key.command("list")
@of_tenant
@service_options
@as_json
def list_keys(tenant: str, as_json: bool, data: str | None, database_url: str | None) -> None:
    """List the keys, the revoked ones too; never a secret."""

    async def read(connection: db.Connection, log_id: int, _root: bytes) -> list[keys.Issued]:
        return await keys.list_keys(connection, log_id)

    found = _for_tenant(tenant, data, database_url, read)
    head = ("ID", "KIND", "NAME", "SCOPES", "ORIGINS", "RATE", "CREATED", "LAST USED", "SECRETS", "REVOKED")
    rows = [
        (one.id, one.kind, one.name, ",".join(one.scopes), ",".join(one.origins), "" if one.rate is None else one.rate,
         _minute(one.created_at), _minute(one.last_used_at), one.secrets, _minute(one.revoked_at))
        for one in found
    ]  # fmt: skip
    _tell(as_json, found, _table([head, *rows]) if found else f"The tenant {tenant} has no keys.")


@key.command("revoke", help=f"Revoke a key at once and for good: {OBEYED}.")
@of_tenant
@click.argument("credential", metavar="ID")
@click.option("--old", is_flag=True, help="Only the older of its two keys.")
@service_options
@as_json
def revoke_key(
    tenant: str, credential: str, old: bool, as_json: bool, data: str | None, database_url: str | None
) -> None:
    """Revoke a key, or the older of two."""

    async def end(connection: db.Connection, log_id: int, root: bytes) -> tuple[keys.Issued, bool]:
        if old:
            return await keys.drop_old_key(connection, root, log_id, credential), True
        return await keys.revoke(connection, root, log_id, credential)

    issued, done = _for_tenant(tenant, data, database_url, end)
    if old:
        text = f"The older key of `{issued.id}` is revoked, the newer one stays: {OBEYED}."
    elif done:
        text = f"`{issued.id}` is revoked: {OBEYED}."
    else:
        text = f"`{issued.id}` is revoked already, since {_minute(issued.revoked_at)} UTC."
    facts = {"tenant": tenant, **msgspec.structs.asdict(issued), "done": done, "obeyed_within_s": auth.FRESH_S}
    _tell(as_json, facts, text)


def _for_tenant(
    slug: str, data: str | None, database_url: str | None,
    work: Callable[[db.Connection, int, bytes], Awaitable[Result]],
) -> Result:  # fmt: skip
    """Do something with the keys of a tenant."""
    return _for_ledger(slug, data, database_url, lambda reach: work(reach.connection, reach.ledger.log_id, reach.root))


def _minute(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns; what is empty is a dash."""
    cells = [[str(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


@consent.group("ledger")
def ledger_commands() -> None:
    """The ledger of a tenant: how far it is, and what it signs."""


of_ledger = click.option("--tenant", required=True, metavar="SLUG", help="The tenant whose ledger it is.")


class InReach(NamedTuple):
    """A ledger and what a command needs beside it."""

    connection: db.Connection
    ledger: Ledger
    anchor: Anchor | None
    root: bytes
    """The root secret."""
    ledgers: Ledgers


def _for_ledger(
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


def _read_status(tenant: str, data: str | None, database_url: str | None) -> standing.Status:
    async def read(reach: InReach) -> standing.Status:
        return await standing.status(reach.connection, reach.ledger)

    return _for_ledger(tenant, data, database_url, read)


@ledger_commands.command("status")
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
    _tell(as_json, status, _table(lines))


@ledger_commands.command("checkpoint")
@of_ledger
@service_options
@as_json
def ledger_checkpoint(tenant: str, as_json: bool, data: str | None, database_url: str | None) -> None:
    """Print a signed checkpoint (c2sp.org/tlog-checkpoint) of the ledger as it is now."""
    status = _read_status(tenant, data, database_url)
    if status.checkpoint is None:
        raise Frozen(status.frozen or "")
    _tell(as_json, {"checkpoint": status.checkpoint}, status.checkpoint.removesuffix("\n"))


@ledger_commands.command("rotate")
@of_ledger
@click.option("--finish", is_flag=True, help="End the older of two keys.")
@service_options
@as_json
def rotate_key(tenant: str, finish: bool, as_json: bool, data: str | None, database_url: str | None) -> None:
    """Let another key sign beside the one that does; later, with --finish, end the older one."""

    async def turn(reach: InReach) -> turns.Rotated:
        return await (turns.retire_key if finish else turns.add_key)(reach.connection, reach.ledger)

    rotated = _for_ledger(tenant, data, database_url, turn)
    lines = [("signs", key) for key in rotated.keys]
    if rotated.retired is not None:
        lines.append(("retired", rotated.retired))
    told = "" if finish else "\nGive the newer key out. When everybody has it, end the older one with --finish."
    _tell(as_json, rotated, _table(lines) + told)


@ledger_commands.command("recover")
@of_ledger
@click.option("--yes", is_flag=True, help="Do not ask.")
@service_options
@as_json
def recover_ledger(tenant: str, yes: bool, as_json: bool, data: str | None, database_url: str | None) -> None:
    """Give up what a frozen ledger has lost: it goes on in a new epoch, and its first entry there says so."""
    if not yes and not as_json:
        click.confirm("Entries that were signed, and for which people hold receipts, are lost then. Go on?", abort=True)

    async def turn(reach: InReach) -> tuple[turns.Recovered, int]:
        return await erasures.recover(reach.connection, reach.ledger, reach.anchor)

    made, repeated = _for_ledger(tenant, data, database_url, turn)
    text = f"The ledger goes on as {made.origin}, from {made.kept} entries; {made.lost} or more are lost."
    again = f"\nErased once more: {repeated} people." if repeated else ""
    _tell(as_json, {**msgspec.structs.asdict(made), "erasures_repeated": repeated}, text + again)


@ledger_commands.command("export")
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

    kept = {name.rstrip("_"): value for name, value in wanted.items() if value}
    if "subject" in kept:
        namespace, _, value = kept["subject"].partition(":")
        kept["subject"] = {"type": namespace, "id": value}
    body = decode.body(msgspec.json.encode({"format": kind, **kept}), exports.ExportBody)

    async def write(reach: InReach, take: Callable[[bytes], None]) -> exports.ExportRow:
        row = await exports.order(reach.ledger, body, exports.OPERATOR)
        with _progress(None if as_json else 2 * (row.end - row.first), "Exporting") as advance:
            async for piece in await exports.fetch(reach.ledger, row, advance):
                take(piece)
        return row

    with exports.saving(output) as take:
        row = _for_ledger(tenant, data, database_url, lambda reach: write(reach, take))
    facts = {"export": row.export, "file": str(output), "size": row.size, "first": row.first, "end": row.end}
    text = f"Written to {output}: entries {row.first} up to {row.end} of {row.size}."
    _tell(as_json, facts, f"{text} Check: consent verify {output} --key VKEY")


@consent.command("verify")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--key",
    "keys_given",
    multiple=True,
    metavar="VKEY",
    help="A log's key, as `consent ledger status` shows it; several times: of older files the `retired` ones too.",
)
@click.option(
    "--trust",
    type=click.File("r", encoding="utf-8", errors="surrogateescape"),
    metavar="POLICY",
    help="A file that says which logs and witnesses are trusted (c2sp.org/tlog-policy).",
)
@click.option("--policy", "folder", metavar="FOLDER", help="The policy in force then: tells in words what it says.")
@click.option("--language", metavar="LANGUAGE", help="Of those words: de, en (default), or another of the policy's.")
@as_json
def verify_file(
    file: BinaryIO, keys_given: tuple[str, ...], trust: TextIO | None, folder: str | None, language: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check an export or a receipt: offline, by itself and the keys that you trust. Exit code 0: genuine, 1: not.

    An export brings the key that it is signed with. Without one of yours it is checked against that: then 0 means no
    more than that it is consistent in itself, and whose it is was not checked.
    """
    if keys_given and trust is not None:
        raise click.UsageError("Name whom you trust once: by --key, or by a --trust file.")
    text = trust.read(MAX_TRUST + 1) if trust is not None else trusting(keys_given) if keys_given else None
    try:
        whom = None if text is None else Trust.parse(text)
    except NoteError as error:
        raise click.UsageError(f"That is nobody to trust: {error}.") from None
    if language is not None and folder is None:
        raise click.UsageError("--language is that of the words that --policy tells: name its folder too.")
    start = file.read(MAX_PROOF + 1)
    if start.startswith(container.MAGIC) and folder is not None:
        raise click.UsageError("--policy tells what a receipt says, and this is an export: leave it out.")
    if start.startswith(container.MAGIC):
        _verify_export(file, whom, as_json)
    elif whom is None:
        raise click.UsageError("Name whom you trust: one --key or more, or a --trust file. A receipt brings none.")
    else:
        _verify_receipt(start.decode(errors="surrogateescape"), whom, folder, language or "en", as_json)


def _verify_export(file: BinaryIO, whom: Trust | None, as_json: bool) -> None:
    if not file.seekable():
        raise click.UsageError("An export is read by its directory: give a file, not a pipe.")
    found = audit.verify(file, whom)
    _tell(as_json, found, verdict.as_text(found))
    if not found.consistent:
        sys.exit(1)


def _verify_receipt(text: str, whom: Trust, folder: str | None, language: str, as_json: bool) -> None:
    try:
        policy = None if folder is None else policies.load(policies.find(folder))
    except ConsentError as error:
        raise click.UsageError(str(error)) from None
    if policy is not None and language not in (known := records.languages(policy)):
        raise click.UsageError(f"There are no words in the language {language!r}: take one of {', '.join(known)}.")
    try:
        found = receipt.verify(text, whom)
    except NoteError as error:
        _tell(as_json, {"genuine": False, "why": str(error)}, f"Falsified or not a receipt: {error}.")
        sys.exit(1)
    facts, said = receipt.as_json(found), receipt.as_text(found)
    why = None
    if policy is not None:
        try:
            record, words = _record_of(found, policy, language)
            facts, said = {**facts, "record": msgspec.Raw(record), "text": words}, f"{said}\n\n{words}"
        except ConsentError as error:
            why = str(error)
    _tell(as_json, facts, said)
    if why is not None:
        raise click.UsageError(f"The receipt is genuine, but --policy cannot tell more of it. {why}")


def _record_of(found: receipt.Receipt, policy: policies.Policy, language: str) -> tuple[bytes, str]:
    """What a genuine receipt says under a policy: the record, and in words."""
    event = records.opened(found.payload)
    if not records.fits(event, policy):
        raise SetupError(
            f"The policy is not the one that it names (version {event.policy}): give the folder as it was then."
        )
    told = records.sheet(event, policy, language, records.Place(found.checkpoint.origin, found.index))
    return records.receipt(event, policy), records.as_text(told)


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
        with _progress(size if job.again and not as_json else None, "Importing") as advance:
            writer = Writer(reach.ledgers, Devices(reach.root))
            return await imports.run(reach.ledger, writer, file, job, _positions(advance))

    found = _for_ledger(tenant, data, database_url, read)
    _tell(as_json, found, imports.as_text(found, job))
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


@contextmanager
def _progress(length: int | None, label: str) -> Iterator[Callable[[int], None]]:
    """A bar that is told of each step, where a terminal is attached and the end is known."""
    if length is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update


def _positions(advance: Callable[[int], None]) -> Callable[[int], None]:
    """Turns the place that was reached into steps."""
    at = 0

    def tell(position: int) -> None:
        nonlocal at
        advance(position - at)
        at = position

    return tell


@consent.command("purge")
@service_options
@as_json
def run_purge(as_json: bool, **given: Any) -> None:
    """End what had to be kept until today, and destroy the key that wrapped what was erased.

    Run it once a month at least, and make a backup afterwards: those made before can be read no more.
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
    _tell(as_json, done, "\n".join(lines))


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


@consent.command("openapi")
@click.option("--json", is_flag=True, expose_value=False, help="Nothing else: the file is JSON.")
def print_openapi() -> None:
    """Print the OpenAPI file."""
    from consent_service import openapi, operations  # noqa: PLC0415 -- most commands need no framework

    click.echo(openapi.document(operations.ALL), nl=False)


@consent.command("bench")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default="bench.json", show_default=True)
@click.option("--export", "events", type=click.IntRange(1), metavar="N", help="Measure an export of N events instead.")
@as_json
def run_bench(output: Path, events: int | None, as_json: bool) -> None:
    """Measure what a record and a check cost beside the least that could do the same job; in about two minutes."""
    from consent_service import bench  # noqa: PLC0415 -- most commands need none of it

    if events is not None:
        measured = bench.run_export(events, lambda line: click.echo(line, err=True))
        _tell(as_json, measured, bench.export_table(measured))
        return
    report = bench.run(lambda line: click.echo(line, err=True))
    output.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    _tell(as_json, report, f"{bench.table(report)}\nWritten to {output}.")


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
            _tell(as_json, facts, demo.welcome(facts) if example else f"The consent service answers on {facts['url']}.")

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


def _settings(given: dict[str, Any]) -> Settings:
    """The settings; a command that serves needs the secret too, and says so together with whatever else is wrong."""
    return settings.read(os.environ, given, serving="port" in given)


def _tell(as_json: bool, facts: Any, text: str) -> None:
    try:
        click.echo(msgspec.json.encode(facts).decode() if as_json else text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it is tried, and fails, once more at exit
        raise SetupError(f"The output cannot be written ({error.strerror}). What was done stays done.") from None


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


if __name__ == "__main__":
    main()
