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
from consent_service.consents import write
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


# -- what a hostile reader tried --------------------------------------------------------------------------------------

ACCOUNT = {"id": "account", "version": 1, "language": "en"}
SCRIPT = {"id": "phone-script", "version": 1, "language": "de"}
ONBOARDING = {"id": "drone-onboarding", "version": 1, "language": "en"}
FLIGHT = {"purpose": "telemetry.drone", "status": "given"}


def thing() -> dict[str, str]:
    return {"type": "asset", "id": uuid.uuid4().hex}


def phone() -> dict[str, str]:
    return {"type": "phone", "id": uuid.uuid4().hex}


async def withdraw(tenant: Tenant, subject: dict[str, str], *records: dict[str, Any]) -> dict[str, Any]:
    answer = await tenant.post("/v1/consents", {"subject": subject, "records": list(records)})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def listed(tenant: Tenant, subject: dict[str, str]) -> list[tuple[str, str]]:
    found = (await tenant.post("/v1/subjects/conflicts", {"subject": subject}, key="dpo")).json()["conflicts"]
    return [(one["purpose"], one["channel"]) for one in found]


async def test_what_was_said_on_a_thing_in_an_earlier_tenure_is_not_said_in_this_one_however_late_it_comes(
    tenant: Tenant,
) -> None:
    drone, ada, eve, free = thing(), login(), login(), thing()
    for one in (drone, free):
        first = (await link(tenant, one, login=ada)).json()
        then = clock.now().isoformat()
        await withdraw(tenant, one, {"purpose": "telemetry.drone", "status": "withdrawn"})
        await end(tenant, first)
    await link(tenant, drone, login=eve)
    for one in (drone, free):
        replayed = await tenant.record({**FLIGHT, "occurred_at": then}, subject=one, notice=ONBOARDING)
        assert replayed.json()["effective"] is False
        assert await reason(tenant, one, "telemetry.drone", channel="device") == "no_record"
    await tenant.record(FLIGHT, subject=eve, notice=ONBOARDING)
    late = {"purpose": "telemetry.drone", "status": "withdrawn", "occurred_at": then}
    assert (await withdraw(tenant, drone, late))["effective"] is False
    assert await reason(tenant, eve, "telemetry.drone", channel="device") == "consent", "that was ada's no"
    await withdraw(tenant, drone, {"purpose": "telemetry.drone", "status": "withdrawn"})
    assert await reason(tenant, eve, "telemetry.drone", channel="device") == "withdrawn"


async def test_the_answer_to_a_device_tells_nothing_of_the_account(tenant: Tenant) -> None:
    device, ada = Device(tenant), login()
    await tenant.record({"purpose": "profiling", "status": "given", "channel": "web"}, subject=ada)
    await withdraw(tenant, ada, {"purpose": "fraud.prevention", "status": "objected"})
    call = {"purpose": "marketing.phone", "status": "given", "contact": "+4915112345"}
    await tenant.record(call, subject=ada, notice=SCRIPT, method="phone_script")
    made = await device.link(ada)
    asked = (await device.say({"purpose": "profiling", "status": "requested", "channel": "web"})).json()
    assert [state["reason"] for state in asked["states"]] == ["requested"]
    no = {"purpose": "fraud.prevention", "status": "refused", "channel": "web", "occurred_at": "1991-01-01T00:00:00Z"}
    said = (await device.say(no, notice=None, method=None)).json()
    assert [state["reason"] for state in said["states"]] == ["basis_applies"]
    for contact in ("+4915112345", "+4915199999"):
        probe = {"purpose": "marketing.phone", "status": "requested", "contact": contact}
        assert (await device.say(probe, notice=SCRIPT)).json()["states"][0]["reason"] == "requested"
    ended = await tenant.post(f"/v1/links/{made['link']}/end", {"proof": device.token}, key="publishable")
    assert (ended.status_code, ended.json()["anchor"]) == (200, None)


async def test_a_device_cannot_tell_which_links_there_are(tenant: Tenant) -> None:
    device, other = Device(tenant), Device(tenant)
    theirs, family = await other.link(login()), (await link(tenant, login(), group={"type": "household", "id": "h"}))
    for made in (theirs["link"], family.json()["link"], str(uuid.uuid4())):
        answer = await tenant.post(f"/v1/links/{made}/end", {"proof": device.token}, key="publishable")
        assert answer.status_code == 404


async def test_what_an_account_confirmed_is_not_confirmed_on_the_device(tenant: Tenant) -> None:
    device, ada = Device(tenant), login()
    letter = {"purpose": "newsletter", "contact": "a@x.example"}
    await tenant.record({**letter, "status": "confirmed"}, subject=ada, method="double_opt_in")
    made = await device.link(ada)
    assert (await device.say({**letter, "status": "renewed"})).json()["states"][0]["reason"] == "requested"
    await annul(tenant, made)
    own = {"channel": "email", "contact": "a@x.example"}
    assert await reason(tenant, device.subject, "newsletter", **own) == "requested"


async def test_a_restriction_is_lifted_by_whoever_knew_of_it(tenant: Tenant) -> None:
    restricted = {"purpose": "analytics", "status": "restricted"}
    lifted = {"purpose": "analytics", "status": "restriction_lifted"}
    for own in ([restricted, lifted], [GIVEN]):
        mobile, ada = phone(), login()
        await tenant.record(GIVEN, subject=mobile)
        await tenant.record(restricted, subject=mobile)
        for record in own:
            await tenant.record(record, subject=ada)
        await link(tenant, mobile, login=ada)
        assert await reason(tenant, mobile) == "restricted"
        await tenant.record(lifted, subject=ada)
        assert await reason(tenant, mobile) == "consent"


async def test_a_conflict_is_listed_whatever_it_is_about_and_whenever_it_arises(tenant: Tenant) -> None:
    mobile, ada = phone(), login()
    await tenant.record({"purpose": "share.partner", "status": "refused"}, subject=ada, notice=ACCOUNT)
    yes = {"purpose": "share.partner", "status": "given", "recipient": "aerosicher"}
    await tenant.record(yes, subject=mobile, notice=ACCOUNT)
    made = (await link(tenant, mobile, login=ada)).json()
    assert {one["purpose"] for one in made["conflicts"]} == {"share.partner"}
    assert {purpose for purpose, _ in await listed(tenant, ada)} == {"share.partner"}
    settled = await tenant.record(yes, subject=ada, notice=ACCOUNT)
    assert settled.json()["effective"], "asked again"
    assert await listed(tenant, ada) == []


async def test_a_conflict_that_a_late_report_makes_is_listed_also_when_the_link_has_ended(tenant: Tenant) -> None:
    mobile, ada = phone(), login()
    await tenant.record(GIVEN, subject=mobile)
    made = (await link(tenant, mobile, login=ada)).json()
    earlier = (clock.now() - timedelta(hours=1)).isoformat()
    await withdraw(tenant, ada, {**NO, "occurred_at": earlier})
    assert await reason(tenant, ada) == "conflict_open"
    assert await listed(tenant, ada) == [("analytics", "web")]
    await end(tenant, made)
    assert await reason(tenant, mobile) == "conflict_open"
    assert await listed(tenant, mobile) == [("analytics", "web")]


async def test_a_group_lifts_no_more_of_its_no_than_it_says(tenant: Tenant) -> None:
    home, ada = {"type": "household", "id": uuid.uuid4().hex}, login()
    await link(tenant, ada, group=home)
    share = {"purpose": "share.partner", "status": "given"}
    await tenant.record({**share, "recipient": "skyward-academy"}, subject=ada, notice=ACCOUNT)
    await withdraw(tenant, home, {"purpose": "share.partner", "status": "refused"})
    asked = {"purpose": "share.partner", "recipient": "skyward-academy"}
    await tenant.record({**share, "recipient": "aerosicher"}, subject=home, notice=ACCOUNT)
    assert await reason(tenant, ada, **asked) == "refused"
    await tenant.record({**share, "recipient": "skyward-academy"}, subject=home, notice=ACCOUNT)
    assert await reason(tenant, ada, **asked) == "consent"


async def test_a_yes_that_a_no_outweighs_is_told_so_whatever_came_after_the_no(tenant: Tenant) -> None:
    device = Device(tenant)
    await tenant.record(GIVEN, subject=device.subject)
    await withdraw(tenant, device.subject, NO)
    await tenant.record({"purpose": "analytics", "status": "requested", "channel": "web"}, subject=device.subject)
    for answer in (await device.say(GIVEN), await tenant.record(GIVEN, subject=device.subject, method="import")):
        said = answer.json()
        assert (said["effective"], said["states"][0]["effective"]) == (False, False)
        assert "no outweighs" in said["states"][0]["remedy"]


async def test_a_copy_on_a_third_identifier_makes_no_answer_of_what_was_none(tenant: Tenant) -> None:
    tablet, mobile, ada, bob = Device(tenant), phone(), login(), login()
    await tenant.record(GIVEN, subject=mobile)
    made = (await link(tenant, mobile, login=bob)).json()
    await tablet.link(bob)
    await withdraw(tenant, mobile, NO)
    await end(tenant, made)
    await tablet.link(ada, replace=True)
    await tenant.record(GIVEN, subject=ada)
    again = (await link(tenant, mobile, login=ada)).json()
    assert again["conflicts"] == [{"purpose": "analytics", "channel": "web"}]
    assert await reason(tenant, mobile) == "conflict_open"


async def test_a_thing_has_no_guardian_and_a_group_is_nobodys_identifier(tenant: Tenant) -> None:
    parent = {"guardian": login(), "age_out": f"{clock.now().year + 2}-05-01", "evidence": {"seen": "passport"}}
    refused = await link(tenant, thing(), **parent)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/identifier/type")
    home, other = ({"type": "household", "id": uuid.uuid4().hex} for _ in range(2))
    assert (await link(tenant, login(), group=home)).status_code == 201
    assert (await link(tenant, home, login=login())).status_code == 409
    assert (await link(tenant, other, login=login())).status_code == 201
    assert (await link(tenant, login(), group=other)).status_code == 409


@pytest.mark.parametrize(
    "until",
    ["9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "2300-01-01T00:00:00Z"],
)
async def test_an_end_that_nobody_can_mean_is_refused(tenant: Tenant, until: str) -> None:
    refused = await link(tenant, phone(), login=login(), until=until)
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["pointer"] == "/until"


async def test_a_childs_own_yes_does_not_come_to_hold_by_its_growing_up(school: Tenant) -> None:
    child = login()
    await guardian_of(school, child)
    async with school.services.ledgers.of(school.log_id).connection() as connection:
        await connection.execute("UPDATE link SET until = clock_timestamp() + interval '30 days'")
        recorded = (await school.record(PROFILE, subject=child)).json()["event"]
        assert await reason(school, child, "profiling") == "guardian_missing"
        ends = await connection.fetchval("SELECT expires_at FROM consent_state WHERE event = $1", recorded)
        assert ends == await connection.fetchval("SELECT until FROM link WHERE kind = 'guardian'")


async def test_a_no_of_before_the_end_is_carried_although_the_end_passes_meanwhile(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    mobile, ada = phone(), login()
    await tenant.record(GIVEN, subject=ada)
    until = clock.now() + timedelta(milliseconds=400)
    await link(tenant, mobile, login=ada, until=until.isoformat())
    find = write.find

    async def late(*args: Any) -> Any:
        await asyncio.sleep(max(0.0, (until - clock.now()).total_seconds()) + 0.02)
        return await find(*args)

    monkeypatch.setattr(write, "find", late)
    recorded = await withdraw(tenant, mobile, NO)
    assert datetime.fromisoformat(recorded["recorded_at"]) < until
    assert await reason(tenant, ada) == "withdrawn"
