"""`consent key`: the keys of a tenant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

from consent_service import auth, db, keys
from consent_service.cli.options import as_json, service_options
from consent_service.cli.reach import for_ledger
from consent_service.cli.root import consent
from consent_service.cli.terminal import table, tell

Result = TypeVar("Result")


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
    tell(as_json, {"key": made, "tenant": tenant, **msgspec.structs.asdict(issued)}, text)


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
    tell(as_json, found, table([head, *rows]) if found else f"The tenant {tenant} has no keys.")


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
    tell(as_json, facts, text)


def _for_tenant(
    slug: str, data: str | None, database_url: str | None,
    work: Callable[[db.Connection, int, bytes], Awaitable[Result]],
) -> Result:  # fmt: skip
    """Do something with the keys of a tenant."""
    return for_ledger(slug, data, database_url, lambda reach: work(reach.connection, reach.ledger.log_id, reach.root))


def _minute(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"
