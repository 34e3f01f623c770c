"""The example tenant: set up at first start, kept at later ones, and a welcome that can be pasted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from consent_service import db, keys, policies, tenants
from consent_service.auth import Credential, Kind, Scope
from consent_service.errors import SetupError
from consent_service.ledger import lock_head, read_head
from consent_service.policies import store
from consent_service.settings import Settings, keep

TENANT = "demo"

KEYS: dict[str, tuple[Kind, frozenset[Scope]]] = {
    "service": ("service", frozenset({"check", "write:attested", "links", "events"})),
    "publishable": ("publishable", frozenset({"write:device"})),
    "dpo": ("officer", frozenset({"state", "events", "export", "requests", "requests:approve"})),
}
"""The demo's keys: kind and scopes. None has a rate limit."""


async def set_up(database_url: str, secret: bytes, chosen: Settings, base: str) -> dict[str, Any]:
    """Make the tenant, its policy and its keys where they are missing; returns them for the ready file."""
    policy, data = policies.load(policies.find(TENANT)), Path(chosen.data)
    async with await db.connect(database_url, size=1) as pool, db.connection(pool) as connection:
        log_id = await tenants.ensure(connection, TENANT, chosen.origin)
        if not (await read_head(connection, log_id)).policy:  # whoever applied another one keeps it
            await tenants.apply_policy(connection, log_id, store.Policies(), policy)
        async with connection.transaction():
            # Two starters at once agree on the keys of the first.
            head = await lock_head(connection, log_id, although_frozen=True)
            made = _kept(data / "keys.json")
            if head.frozen is None:
                for name, (kind, scopes) in KEYS.items():
                    one = Credential(log_id, name, kind, f"demo {name}", scopes, _origins(kind, base), None)
                    made[name] = await keys.add_key(connection, secret, one, made.get(name))
                _keep(data / "keys.json", made)
            live = {n: key for n, key in made.items() if await keys.is_valid(connection, secret, log_id, n, key)}
    return {"tenant": TENANT, "keys": live}


def _kept(file: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str]) if file.exists() else {}
    except (OSError, msgspec.DecodeError) as error:
        raise SetupError(f"{file} cannot be read ({error}). Move it away; the demo then makes new keys.") from None


def _keep(file: Path, keys: dict[str, str]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # with DATABASE_URL nobody has made it yet
    keep(file, msgspec.json.encode(keys).decode())


def _origins(kind: Kind, base: str) -> frozenset[str]:
    """Pages of the demo itself may use the publishable key; no browser may use the others."""
    return frozenset({base, base.replace("127.0.0.1", "localhost")}) if kind == "publishable" else frozenset()


def welcome(facts: dict[str, Any]) -> str:
    """What to try first; every line can be pasted."""
    url, service = facts["url"], facts["keys"].get("service", "KEY")  # it may have been rotated out since
    curl = f"curl -s {url}/v1/{{}} -H 'Authorization: Bearer {service}' -H 'Content-Type: application/json'"
    record = (
        '{"id":"first","subject":{"type":"login","id":"ada"},"method":"form",'
        '"notice":{"id":"web-banner","version":1,"language":"en"},'
        '"records":[{"purpose":"marketing.email","status":"given"}]}'
    )
    check = '{"subject":{"type":"login","id":"ada"},"purpose":"marketing.email"}'
    return "\n".join((
        f"The consent service answers on {url} (docs: {url}/docs). Stop it with Ctrl-C.",
        "",
        "Record a consent:",
        f"  {curl.format('consents')} -d '{record}'",
        "May we?",
        f"  {curl.format('check')} -d '{check}'",
        "",
        "Keys of the tenant `demo`:",
        *(f"  {name:12}{key}" for name, key in facts["keys"].items()),
    ))  # fmt: skip
