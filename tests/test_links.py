"""Links over HTTP, on a real database: made with proof, dated, ended, annulled, and what each does to decisions."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from conftest import NOTICE, Tenant, Tenants
from test_decisions import patched

from consent_service import auth, clock, demo
from consent_service.policies import Policy

GIVEN = {"purpose": "analytics", "status": "given", "channel": "web"}
NO = {"purpose": "analytics", "status": "withdrawn"}


@pytest.fixture
async def tenant(make_tenant: Tenants, demo_policy: Policy) -> Tenant:
    """With a second officer."""
    keys = {name: auth.Credential(0, name, kind, name, scopes, frozenset(), None)
            for name, (kind, scopes) in demo.KEYS.items()}  # fmt: skip
    keys["second"] = msgspec.structs.replace(keys["dpo"], id="second", name="second")
    return await make_tenant.make(demo_policy, keys)


class Device:
    """A device with its token."""

    def __init__(self, tenant: Tenant) -> None:
        minted = tenant.device()
        self.tenant = tenant
        self.subject: dict[str, str] = msgspec.to_builtins(minted.subject)
        self.token = minted.token

    async def say(self, *records: dict[str, Any], **more: Any) -> httpx.Response:
        body = {"id": uuid.uuid4().hex, "subject": self.subject, "records": list(records), "method": "banner_button",
                "notice": NOTICE, "proof": self.token, **more}  # fmt: skip
        return await self.tenant.post("/v1/consents", body, key="publishable")

    async def link(self, login: Any, **more: Any) -> dict[str, Any]:
        body = {"identifier": self.subject, "proof": self.token, "login": login, **more}
        answer = await self.tenant.post("/v1/links", body)
        assert answer.status_code == 201, answer.text
        return answer.json()


async def link(tenant: Tenant, identifier: dict[str, str], **more: Any) -> httpx.Response:
    return await tenant.post("/v1/links", {"identifier": identifier, **more})


async def end(tenant: Tenant, made: dict[str, Any]) -> dict[str, Any]:
    answer = await tenant.post(f"/v1/links/{made['link']}/end", {})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def annul(tenant: Tenant, made: dict[str, Any]) -> None:
    path, why = f"/v1/links/{made['link']}/annul", {"reason": "it was a neighbour's"}
    assert (await tenant.post(path, why, key="dpo")).status_code == 202
    assert (await tenant.post(path, why, key="dpo")).status_code == 202, "the same officer again is nobody else"
    assert (await tenant.post(path, why, key="second")).status_code == 200


def login(name: str = "") -> dict[str, str]:
    return {"type": "login", "id": name or uuid.uuid4().hex}


async def reason(tenant: Tenant, subject: dict[str, str], purpose: str = "analytics", **more: Any) -> str:
    return str((await tenant.check(subject, purpose, **{"channel": "web", **more}))["reason"])


async def test_what_was_agreed_before_the_log_in_counts_while_linked(tenant: Tenant) -> None:
    device, ada = Device(tenant), login()
    await device.say(GIVEN)
    assert await reason(tenant, ada) == "no_record"
    made = await device.link(ada)
    assert (made["kind"], made["grade"], made["anchor"], made["conflicts"]) == ("identity", "service_attested", ada, [])
    assert await reason(tenant, ada) == "consent"
    await end(tenant, made)
    assert await reason(tenant, ada) == "no_record"
    assert await reason(tenant, device.subject) == "consent", "its own stays its own"


async def test_a_no_while_linked_holds_for_both_after_the_end_until_annulled(tenant: Tenant) -> None:
    device, ada = Device(tenant), login()
    await device.say(GIVEN)
    await tenant.record(GIVEN, subject=ada)
    made = await device.link(ada)
    assert (await device.say(NO)).status_code == 201
    for who in (ada, device.subject):
        assert await reason(tenant, who) == "withdrawn"
    await end(tenant, made)
    for who in (ada, device.subject):
        assert await reason(tenant, who) == "withdrawn"
    await annul(tenant, made)
    assert await reason(tenant, ada) == "consent", "nothing of it stays"
    assert await reason(tenant, device.subject) == "withdrawn", "but what was said there"


async def test_the_next_renter_inherits_nothing(tenant: Tenant) -> None:
    drone = {"type": "asset", "id": uuid.uuid4().hex}
    flight = {"purpose": "telemetry.drone", "status": "given"}
    ada, eve = login(), login()
    first = (await link(tenant, drone, login=ada)).json()
    await tenant.record(flight, subject=drone, notice={"id": "drone-onboarding", "version": 1, "language": "en"})
    assert await reason(tenant, drone, "telemetry.drone", channel="device") == "consent"
    assert (await link(tenant, drone, login=eve)).status_code == 409
    await end(tenant, first)
    assert await reason(tenant, drone, "telemetry.drone", channel="device") == "no_record"
    await link(tenant, drone, login=eve)
    for who in (drone, eve, ada):
        assert await reason(tenant, who, "telemetry.drone", channel="device") == "no_record"


async def test_a_rental_ends_by_itself(tenant: Tenant) -> None:
    drone, ada = {"type": "asset", "id": uuid.uuid4().hex}, login()
    until = clock.now() + timedelta(seconds=1)
    assert (await link(tenant, drone, login=ada, until=until.isoformat())).status_code == 201
    await tenant.record({"purpose": "analytics", "status": "given", "channel": "web"}, subject=ada)
    inherited = await tenant.check(drone, "analytics", channel="web")
    assert (inherited["allow"], datetime.fromisoformat(inherited["valid_until"])) == (True, until.astimezone(UTC))
    await asyncio.sleep((until - clock.now()).total_seconds() + 0.05)  # the database's clock is the same machine's
    assert await reason(tenant, drone) == "no_record"
    assert (await link(tenant, drone, login=login())).status_code == 201


async def test_conflicts_deny_are_listed_and_settled_by_asking_again(tenant: Tenant) -> None:
    phone, ada = {"type": "phone", "id": uuid.uuid4().hex}, login()
    await tenant.record({**GIVEN, "status": "refused"}, subject=ada)
    await tenant.record(GIVEN, subject=phone)
    made = (await link(tenant, phone, login=ada)).json()
    assert made["conflicts"] == [{"purpose": "analytics", "channel": "web"}]
    for who in (ada, phone):
        answer = await tenant.check(who, "analytics", channel="web", explain=True)
        assert (answer["reason"], answer["explain"]["rule"]) == ("conflict_open", "conflict:strictest")
    listed = (await tenant.post("/v1/subjects/conflicts", {"subject": phone}, key="dpo")).json()["conflicts"]
    assert [(c["link"], c["purpose"], c["channel"]) for c in listed] == [(made["link"], "analytics", "web")]
    assert {(i["type"], i["id"]) for i in listed[0]["identifiers"]} == {("phone", phone["id"]), ("login", ada["id"])}
    again = await tenant.record(GIVEN, subject=ada)
    assert again.json()["effective"] is True
    assert await reason(tenant, phone) == "consent"
    assert (await tenant.post("/v1/subjects/conflicts", {"subject": phone}, key="dpo")).json()["conflicts"] == []


async def test_a_group_restricts_and_never_consents(tenant: Tenant) -> None:
    home, ada = {"type": "household", "id": uuid.uuid4().hex}, login()
    made = (await link(tenant, ada, group=home)).json()
    assert made["kind"] == "group"
    await tenant.record(GIVEN, subject=home)
    assert await reason(tenant, ada) == "no_record"
    await tenant.record(GIVEN, subject=ada)
    assert await reason(tenant, ada) == "consent"
    await tenant.record(NO, subject=home)
    assert await reason(tenant, ada) == "withdrawn"
    again = await tenant.record(GIVEN, subject=ada)
    assert again.json()["effective"] is False
    await end(tenant, made)
    assert await reason(tenant, ada) == "consent"


@pytest.fixture
async def school(make_tenant: Tenants) -> Tenant:
    """Where profiling takes a person of sixteen, or a guardian."""
    keys = {name: auth.Credential(0, name, kind, name, scopes, frozenset(), None)
            for name, (kind, scopes) in demo.KEYS.items()}  # fmt: skip
    keys["second"] = msgspec.structs.replace(keys["dpo"], id="second", name="second")
    return await make_tenant.make(patched({"purposes": {"profiling": {"age": {"minimum": 16}}}}), keys)


PROFILE = {"purpose": "profiling", "status": "given", "channel": "web"}


async def guardian_of(tenant: Tenant, child: dict[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """A guardian, and the link."""
    parent, day = login(), f"{clock.now().year + 3}-05-01"
    answer = await link(tenant, child, guardian=parent, age_out=day, evidence={"seen": "certificate of birth"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["until"].startswith(day)
    return parent, answer.json()


@pytest.mark.parametrize("age_out", [None, "05-02", "past", "far"])
async def test_a_childhood_ends_on_the_first_of_a_month(school: Tenant, age_out: str | None) -> None:
    year = clock.now().year
    dates = {"05-02": f"{year + 3}-05-02", "past": "2020-01-01", "far": f"{year + 40}-01-01"}
    body = {"guardian": login(), "evidence": {"seen": "passport"}, "age_out": dates.get(age_out or "")}
    answer = await link(school, login(), **body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/age_out")


async def test_a_guardian_agrees_for_the_child_while_he_is_one(school: Tenant) -> None:
    child = login()
    refused = await school.record(PROFILE, subject=child, guardian=login())
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/guardian")
    await school.record(PROFILE, subject=child)
    assert await reason(school, child, "profiling") == "consent", "nobody said that it is a child"
    parent, made = await guardian_of(school, child)
    assert await reason(school, child, "profiling") == "guardian_missing"
    assert (await school.record(PROFILE, subject=child, guardian=parent)).json()["effective"] is True
    answer = await school.check(child, "profiling", channel="web")
    assert (answer["allow"], answer["valid_until"] <= made["until"]) == (True, True)
    await school.record(PROFILE, subject=child)
    assert await reason(school, child, "profiling") == "consent", "what the child clicks takes nothing away"
    await school.post("/v1/consents", {"subject": child, "records": [{"purpose": "profiling", "status": "withdrawn"}]})
    assert await reason(school, child, "profiling") == "withdrawn", "but its no counts"


async def test_a_false_guardian_leaves_nothing(school: Tenant) -> None:
    child = login()
    parent, made = await guardian_of(school, child)
    await school.record(PROFILE, subject=child, guardian=parent)
    assert await reason(school, child, "profiling") == "consent"
    await annul(school, made)
    assert await reason(school, child, "profiling") == "no_record"


async def test_a_guardian_who_is_none_any_more_agreed_in_vain(school: Tenant) -> None:
    child = login()
    parent, made = await guardian_of(school, child)
    await school.record(PROFILE, subject=child, guardian=parent)
    await end(school, made)
    assert await reason(school, child, "profiling") == "no_record"
    assert (await school.record(PROFILE, subject=child, guardian=parent)).status_code == 422


async def test_a_guardian_may_always_say_no(school: Tenant) -> None:
    child = login()
    await school.record(PROFILE, subject=child)
    no = {"subject": child, "records": [{"purpose": "profiling", "status": "refused"}], "guardian": login()}
    assert (await school.post("/v1/consents", no)).status_code == 201
    assert await reason(school, child, "profiling") == "refused"
