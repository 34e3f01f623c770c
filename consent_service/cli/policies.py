"""`consent policy`: policies as code."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import click

from consent_service import db, policies, server, settings, tenants
from consent_service.cli.options import as_json, service_options
from consent_service.cli.root import consent
from consent_service.cli.terminal import tell
from consent_service.policies import store


@consent.group
def policy() -> None:
    """Policies as code: check, preview, put into force."""


@policy.command("lint")
@click.argument("folder")
@as_json
def lint_policy(folder: str, as_json: bool) -> None:
    """Check a policy folder; names every error by file and key."""
    found = policies.load(policies.find(folder))
    tell(
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
    new, chosen = policies.load(policies.find(folder)), settings.read(os.environ, given)

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
    tell(as_json, plan.as_json(), plan.as_text())
    if any(change.refused for change in plan.changes):
        sys.exit(1)
