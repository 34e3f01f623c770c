"""Devices over HTTP: minted with the first yes, proved ever after, and nothing kept before a choice."""

from __future__ import annotations

import asyncio
import uuid
from http.cookies import SimpleCookie
from typing import Any

import httpx
import msgspec
import pytest
from conftest import NOTICE, Tenant, Tenants

from consent_service import db
from consent_service.devices import COOKIE, Devices, cookie
from consent_service.policies import Policy
from consent_service.subjects import Subject

YES = {"purpose": "analytics", "status": "given", "channel": "web"}
NO = {"purpose": "analytics", "status": "refused"}


def first(*records: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"id": str(uuid.uuid4()), "records": list(records), "notice": NOTICE, "method": "banner_button"}
    return {name: value for name, value in {**body, **more}.items() if value is not None}


async def mint(tenant: Tenant, body: dict[str, Any]) -> httpx.Response:
    return await tenant.post("/v1/devices", body, key="publishable")


async def check(tenant: Tenant, device: dict[str, Any], proof: str | None, **more: Any) -> httpx.Response:
    body = {"subject": device, "purpose": "analytics", "channel": "web", "proof": proof, **more}
    return await tenant.post("/v1/check", body, key="publishable")


async def test_the_first_yes_mints_a_device_that_proves_itself(tenant: Tenant) -> None:
    answer = await mint(tenant, first(YES))
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["recorded"]["effective"] is True
    assert (await check(tenant, made["identifier"], made["token"])).json()["allow"] is True
    state = {"subject": made["identifier"], "proof": made["token"]}
    found = (await tenant.post("/v1/subjects/state", state, key="publishable")).json()
    assert [(s["purpose"], s["channel"]) for s in found["states"] if s["record"]] == [("analytics", "web")]
    taken_back = {"subject": made["identifier"], "records": [NO], "proof": made["token"]}
    assert (await tenant.post("/v1/consents", taken_back, key="publishable")).status_code == 201
    assert (await check(tenant, made["identifier"], made["token"])).json()["reason"] == "refused"


async def test_whoever_only_says_no_gets_nothing_to_keep(tenant: Tenant) -> None:
    made = (await mint(tenant, first(NO, {"purpose": "*", "status": "refused"}))).json()
    assert (made["identifier"], made["token"], made["cookie"]) == (None, None, None)
    assert made["recorded"]["event"]


async def test_a_yes_beside_a_no_is_a_yes(tenant: Tenant) -> None:
    made = (await mint(tenant, first(YES, {"purpose": "profiling", "status": "refused"}))).json()
    assert made["identifier"]["type"] == "device"


async def test_a_retry_gets_the_same_device_and_one_event(tenant: Tenant) -> None:
    body = first(YES)
    answers = [answer.json() for answer in await asyncio.gather(*(mint(tenant, body) for _ in range(20)))]
    assert all(answer == answers[0] for answer in answers)
    history = {"subject": answers[0]["identifier"]}
    assert len((await tenant.post("/v1/subjects/history", history, key="dpo")).json()["events"]) == 1


async def test_a_device_may_come_before_its_first_act_and_leaves_no_row(tenant: Tenant) -> None:
    made = (await mint(tenant, {})).json()
    assert (made["recorded"], made["identifier"]["type"]) == (None, "device")
    assert (await check(tenant, made["identifier"], made["token"])).json()["reason"] == "no_record"
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        assert await connection.fetchval("SELECT count(*) FROM strand") == 0


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (first(YES, id="1"), 422, "/id"),
        (first(YES, id="order-4711"), 422, "/id"),
        (first(YES, notice=None), 422, "/notice"),
        (first(YES, method=None), 422, "/method"),
        (first({**YES, "purpose": "unknown"}), 422, "/records/0/purpose"),
        (first(YES, subject={"type": "device", "id": "mine"}), 422, ""),
    ],
)
async def test_a_bad_first_act_is_refused(tenant: Tenant, body: dict[str, Any], status: int, pointer: str) -> None:
    answer = await mint(tenant, body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer)


async def test_an_act_without_a_key_is_refused(tenant: Tenant) -> None:
    answer = await mint(tenant, first(YES, id=None))
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/key-missing")


@pytest.mark.parametrize("spoil", ["none", "other", "cut", "longer", "case", "padded", "other tenant", "not minted"])
async def test_nothing_is_said_or_told_without_the_devices_own_token(
    tenant: Tenant, make_tenant: Tenants, demo_policy: Policy, spoil: str
) -> None:
    device = tenant.device()
    other = await make_tenant.make(demo_policy)
    foreign = other.device()
    subject = device.subject
    proof = {
        "none": None, "other": tenant.device().token, "cut": device.token[:-1], "longer": device.token + "A",
        "case": device.token[:-4] + device.token[-4:].swapcase(), "padded": device.token + "=",
        "other tenant": foreign.token, "not minted": device.token,
    }[spoil]  # fmt: skip
    if spoil == "other tenant":
        subject = foreign.subject
    if spoil == "not minted":
        subject = Subject("device", "made-up")
    named = msgspec.to_builtins(subject)
    assert (await check(tenant, named, proof)).status_code == 403
    said = {"subject": named, "records": [NO], "proof": proof}
    assert (await tenant.post("/v1/consents", said, key="publishable")).status_code == 403
    told = {"subject": named, "proof": proof}
    assert (await tenant.post("/v1/subjects/state", told, key="publishable")).status_code == 403
    assert (await tenant.post("/v1/links/challenge", {"identifier": named, "proof": proof})).status_code == 403


def test_devices_differ_and_are_known_by_their_secret_alone() -> None:
    one, other = Devices(b"one secret"), Devices(b"another secret")
    minted = [one.mint(7) for _ in range(100)]
    assert len({device.subject.id for device in minted}) == len({device.token for device in minted}) == 100
    assert all(one.proves(7, device.subject, device.token) for device in minted)
    assert not any(other.proves(7, device.subject, device.token) for device in minted)
    assert not any(one.proves(8, device.subject, device.token) for device in minted)
    assert all(device.subject.id.startswith("dv_7_") for device in minted)


def test_the_cookie_stays_on_the_tenants_own_site() -> None:
    token = Devices(b"a secret").mint(1).token
    kept = SimpleCookie(cookie(token, "falke.example"))[COOKIE]
    assert (kept.value, kept["domain"], kept["samesite"], kept["path"]) == (token, "falke.example", "Lax", "/")
    assert kept["secure"] is True
    assert 0 < int(kept["max-age"]) <= 13 * 31 * 86_400


async def test_the_cookie_comes_where_the_policy_names_the_site(make_tenant: Tenants, demo_policy: Policy) -> None:
    site = msgspec.structs.replace(demo_policy.tenant, cookie_domain="falke.example")
    tenant = await make_tenant.make(msgspec.structs.replace(demo_policy, tenant=site))
    made = (await mint(tenant, first(YES))).json()
    assert made["cookie"] == cookie(made["token"], "falke.example")
    assert (await mint(tenant, first(NO))).json()["cookie"] is None


async def test_a_linked_device_sees_its_own_alone(tenant: Tenant) -> None:
    made = (await mint(tenant, first(YES))).json()
    ada = {"type": "login", "id": uuid.uuid4().hex}
    await tenant.record({"purpose": "profiling", "status": "given", "channel": "web"}, subject=ada)
    body = {"identifier": made["identifier"], "proof": made["token"], "login": ada}
    assert (await tenant.post("/v1/links", body)).status_code == 201
    assert (await tenant.check(made["identifier"], "profiling", channel="web"))["allow"] is True
    own = await check(tenant, made["identifier"], made["token"], purpose="profiling")
    assert own.json()["reason"] == "no_record", "what the account said is not the device's to tell"
    told = {"subject": made["identifier"], "proof": made["token"]}
    found = (await tenant.post("/v1/subjects/state", told, key="publishable")).json()
    assert [one["id"] for one in found["identifiers"]] == [made["identifier"]["id"]]
    await tenant.post("/v1/consents", {"subject": ada, "records": [{"purpose": "analytics", "status": "withdrawn"}]})
    assert (await check(tenant, made["identifier"], made["token"])).json()["reason"] == "withdrawn"
