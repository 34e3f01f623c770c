"""Officers who read about people leave entries; nobody else does."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest
from conftest import Tenant

from consent_service.ledger.entry import personal, tag
from consent_service.subjects import Subject
from consent_service.vault import Place

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
CALLS = {"state": "/v1/subjects/state", "history": "/v1/subjects/history", "links": "/v1/subjects/links",
         "conflicts": "/v1/subjects/conflicts"}  # fmt: skip


async def events(tenant: Tenant, subject: dict[str, str]) -> list[dict[str, Any]]:
    """Of a strand, opened; each has its entry in the ledger."""
    ledger = tenant.services.ledgers.of(tenant.log_id)
    identifier, found = ledger.hasher.identifier(Subject(**subject)), []
    async with ledger.connection() as connection:
        rows = await connection.fetch(
            """SELECT event, sequence, payload, key, entry, kind, statuses, credential
               FROM event JOIN strand USING (log_id, identifier, tenure) JOIN ledger_entry USING (log_id, idx)
               WHERE identifier = $1 ORDER BY sequence""",
            identifier,
        )
    for row in rows:
        key = ledger.vault.open(Place(tenant.log_id, identifier, 1), row["key"])
        payload = key.open(row["event"].bytes, row["payload"])
        assert row["entry"] == personal(tag(key.tags, row["sequence"]), key.salt(row["event"]), payload)
        found.append({**msgspec.json.decode(payload), "kind": row["kind"], "what": row["statuses"]})
    return found


@pytest.mark.parametrize("what", CALLS)
async def test_an_officer_who_reads_about_a_person_stands_in_the_persons_history(
    tenant: Tenant, person: dict[str, str], what: str
) -> None:
    await tenant.record(WEB, subject=person)
    answer = await tenant.post(CALLS[what], {"subject": person}, key="dpo")
    assert answer.status_code == 200
    consent, read = await events(tenant, person)
    assert (consent["kind"], read["kind"], read["what"]) == ("consent", "read", [what])
    assert (read["read"], read["credential"], read["subject"]) == (what, "dpo", person)


async def test_what_is_about_nobody_known_stands_with_the_officer_and_makes_nobody_known(tenant: Tenant) -> None:
    stranger = {"type": "login", "id": uuid.uuid4().hex}
    for body in ({}, {"subject": stranger}):
        assert (await tenant.post(CALLS["conflicts"], body, key="dpo")).status_code == 200
    assert await events(tenant, stranger) == []
    own = await events(tenant, {"type": ":officer", "id": "dpo"})
    assert [one["read"] for one in own] == ["conflicts", "conflicts"]
    assert stranger["id"] not in str(own)


async def test_others_leave_no_trace_by_reading(tenant: Tenant) -> None:
    device = tenant.device()
    seen = {"type": "device", "id": device.subject.id}
    await tenant.record(WEB, subject=seen, proof=device.token)
    body = {"subject": seen, "proof": device.token}
    assert (await tenant.post(CALLS["state"], body, key="publishable")).status_code == 200
    assert (await tenant.post("/v1/check", {"subject": seen, "purpose": "analytics"})).status_code == 200
    assert [one["kind"] for one in await events(tenant, seen)] == ["consent"]


async def test_who_read_is_erased_with_the_person(tenant: Tenant, person: dict[str, str]) -> None:
    await tenant.record(WEB, subject=person)
    await tenant.post(CALLS["history"], {"subject": person}, key="dpo")
    done = await tenant.post("/v1/subjects/erase", {"subject": person}, key="dpo")
    assert done.json()["events"] == 2
    assert await events(tenant, person) == []


async def test_a_namespace_of_officers_cannot_be_written_by_callers(tenant: Tenant) -> None:
    officer = {"type": ":officer", "id": "dpo"}
    assert (await tenant.record(WEB, subject=officer)).status_code == 422
    assert (await tenant.post("/v1/subjects/erase", {"subject": officer}, key="dpo")).status_code == 422
