"""The write path over HTTP, on a real database."""

from __future__ import annotations

import asyncio
from typing import Any

from conftest import NOTICE, Tenant

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}


async def test_record_check_withdraw_check(tenant: Tenant, person: dict[str, str]) -> None:
    given = await tenant.record(WEB, subject=person)
    assert given.status_code == 201
    assert given.json()["effective"] is True
    answer = await tenant.check(person, "analytics", channel="web")
    assert (answer["allow"], answer["reason"], answer["record"]) == (True, "consent", given.json()["event"])
    withdrawn = await tenant.post(
        "/v1/consents", {"subject": person, "records": [{"purpose": "analytics", "status": "withdrawn"}]}
    )
    assert withdrawn.status_code == 201
    answer = await tenant.check(person, "analytics", channel="web")
    assert (answer["allow"], answer["reason"]) == (False, "withdrawn")
