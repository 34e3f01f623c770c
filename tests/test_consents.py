"""The write path over HTTP, on a real database."""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest
from conftest import NOTICE, Tenant, Tenants

from consent_service import auth, clock, db, demo, tenants
from consent_service.consents import Writer
from consent_service.consents.model import Record
from consent_service.devices import Devices
from consent_service.ledger import Ledgers
from consent_service.policies import Policy, store
from consent_service.states import STATUSES
from consent_service.subjects import Subject, normal_contact
from consent_service.vault import Place

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
NO = {"purpose": "analytics", "status": "withdrawn"}
ACCOUNT = {"id": "account", "version": 1, "language": "de"}
ADA = {"purpose": "newsletter", "status": "given", "contact": "ada@example.org"}


async def history(tenant: Tenant, subject: dict[str, str]) -> list[dict[str, Any]]:
    """Every event of a person, as the data protection officer sees them."""
    response = await tenant.post("/v1/subjects/history", {"subject": subject, "limit": 1000}, key="dpo")
    assert response.status_code == 200, response.text
    return response.json()["events"]


def call(subject: dict[str, str], *records: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A complete call; None takes a member away."""
    body = {"id": uuid.uuid4().hex, "subject": subject, "records": list(records), "method": "form", "notice": ACCOUNT}
    return {name: value for name, value in {**body, **more}.items() if value is not None}


def mine(tenant: Tenant) -> tuple[dict[str, str], dict[str, str]]:
    """A device, and what proves it."""
    device = tenant.device()
    return msgspec.to_builtins(device.subject), {"proof": device.token}


def pointers(response: httpx.Response) -> list[str]:
    return [error["pointer"] for error in response.json()["errors"]]


# -- record, check, withdraw ----------------------------------------------------------------------------------------


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


async def test_history_shows_the_act_as_it_was(tenant: Tenant, person: dict[str, str]) -> None:
    at = "2026-01-02T03:04:05.678901Z"
    evidence = {"form": "F-7", "pages": [1, 2], "nested": {"ü": None}}
    sent = {**WEB, "occurred_at": at}
    answer = await tenant.post("/v1/consents", call(person, sent, evidence=evidence))
    (found,) = await history(tenant, person)
    event = found["event"]
    assert found["sequence"] == 1
    assert event["event"] == answer.json()["event"]
    assert event["recorded_at"] == answer.json()["recorded_at"]
    assert event["records"] == [{**sent, "contact": None, "recipient": None}]
    assert (event["subject"], event["method"], event["evidence"]) == (person, "form", evidence)
    assert (event["grade"], event["credential"], event["policy"]) == ("service_attested", "service", 1)
    assert event["notice"].items() >= ACCOUNT.items()
    assert len(event["notice"]["hash"]) == 64


# -- what is refused ------------------------------------------------------------------------------------------------

AHEAD = (clock.now() + timedelta(days=1)).isoformat()
GRANT = {"subject": {"type": "login", "id": "x"}, "records": [WEB], "id": "k", "method": "form", "notice": ACCOUNT}


def but(**change: Any) -> dict[str, Any]:
    return {**GRANT, **change}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GRANT.items() if key != name}


def grant(**change: Any) -> dict[str, Any]:
    return but(records=[{**WEB, **change}])


def of(purpose: str, **change: Any) -> dict[str, Any]:
    return but(records=[{"purpose": purpose, "status": "given", **change}])


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no subject": (without("subject"), "/subject", "missing"),
    "subject without id": (but(subject={"type": "login"}), "/subject/id", "missing"),
    "subject without type": (but(subject={"id": "x"}), "/subject/type", "missing"),
    "subject is text": (but(subject="x"), "/subject", "object"),
    "subject with more": (but(subject={"type": "login", "id": "x", "name": "Ada"}), "/subject", "known"),
    "subject id empty": (but(subject={"type": "login", "id": ""}), "/subject/id", "length"),
    "subject id too long": (but(subject={"type": "login", "id": "x" * 257}), "/subject/id", "256"),
    "subject id with NUL": (but(subject={"type": "login", "id": "a\0b"}), "/subject/id", "control"),
    "subject id invisible": (but(subject={"type": "login", "id": "a\u200bb"}), "/subject/id", "format"),
    "subject id replaced": (but(subject={"type": "login", "id": "a\ufffdb"}), "/subject/id", "replacement"),
    "subject id decomposed": (but(subject={"type": "login", "id": "u\u0308"}), "/subject/id", "normal"),
    "subject id padded": (but(subject={"type": "login", "id": " x"}), "/subject/id", "white space"),
    "subject type upper case": (but(subject={"type": "Login", "id": "x"}), "/subject/type", ""),
    "subject id is a number": (but(subject={"type": "login", "id": 7}), "/subject/id", "str"),
    "no records": (without("records"), "/records", "missing"),
    "records empty": (but(records=[]), "/records", "length"),
    "records no list": (but(records=WEB), "/records", "array"),
    "too many records": (but(records=[WEB] * 101), "/records", "100"),
    "record without purpose": (but(records=[{"status": "given"}]), "/records/0/purpose", "missing"),
    "record without status": (but(records=[{"purpose": "analytics"}]), "/records/0/status", "missing"),
    "unknown status": (grant(status="implied"), "/records/0/status", "`given`"),
    "unknown member of a record": (grant(chanel="web"), "/records/0", "`channel`"),
    "unknown member": (but(methode="form"), "", "`method`"),
    "unknown purpose": (of("analytic"), "/records/0/purpose", "`analytics`"),
    "everything": (of("*"), "/records/0/purpose", "restrictive"),
    "channel of another purpose": (grant(channel="email"), "/records/0/channel", "`web`, `app`"),
    "no channel": (of("analytics"), "/records/0/channel", "`web`, `app`"),
    "channel is a number": (grant(channel=1), "/records/0/channel", "str"),
    "contact of none": (grant(contact="a@example.org"), "/records/0/contact", "leave it out"),
    "no contact": (of("newsletter"), "/records/0/contact", "address or number"),
    "contact with NUL": (of("newsletter", contact="a\0@example.org"), "/records/0/contact", "control"),
    "contact empty": (of("newsletter", contact=""), "/records/0/contact", "length"),
    "unknown recipient": (of("share.partner", recipient="eve"), "/records/0/recipient", "`aerosicher`"),
    "recipient of none": (grant(recipient="eve"), "/records/0/recipient", "none"),
    "future": (grant(occurred_at=AHEAD), "/records/0/occurred_at", "future"),
    "before 1990": (grant(occurred_at="1989-12-31T23:59:59Z"), "/records/0/occurred_at", "1990"),
    "after 9999": (grant(occurred_at="9999-12-31T23:59:59-01:00"), "/records/0/occurred_at", "9999"),
    "time without zone": (grant(occurred_at="2026-01-01T00:00:00"), "/records/0/occurred_at", "timezone"),
    "time is a number": (grant(occurred_at=1_700_000_000), "/records/0/occurred_at", ""),
    "no method": (without("method"), "/method", "`form`"),
    "implied method": (but(method="scrolling"), "/method", "`banner_button`"),
    "no notice": (without("notice"), "/notice", "what was shown"),
    "unknown notice": (but(notice={**ACCOUNT, "id": "banner"}), "/notice/id", "`web-banner`"),
    "unpublished version": (but(notice={**ACCOUNT, "version": 2}), "/notice/version", "newest is 1"),
    "version zero": (but(notice={**ACCOUNT, "version": 0}), "/notice/version", "1"),
    "version as text": (but(notice={**ACCOUNT, "version": "1"}), "/notice/version", "int"),
    "language not shown": (but(notice={**ACCOUNT, "language": "fr"}), "/notice/language", "`de`, `en`"),
    "purpose not presented": (but(notice={**ACCOUNT, "id": "phone-script"}), "/records/0/purpose", "not presented"),
    "fact about a consent": (grant(status="applies"), "/records/0/status", "rests on consent"),
    "consent to a contract": (of("repair.call"), "/records/0/status", "`applies`"),
    "key empty": (but(id=""), "/id", "length"),
    "key too long": (but(id="k" * 257), "/id", "256"),
    "evidence is text": (but(evidence="yes"), "/evidence", "object"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_grant_is_refused_with_pointer_and_remedy(name: str, tenant: Tenant) -> None:
    body, pointer, remedy = BAD[name]
    response = await tenant.post("/v1/consents", body)
    assert response.status_code == 422, response.text
    assert pointers(response) == [pointer]
    assert remedy in response.json()["errors"][0]["detail"]
    assert "recorded" not in response.json()
    assert await history(tenant, {"type": "login", "id": "x"}) == []


async def test_all_field_errors_come_at_once(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(
        person,
        {"purpose": "nothing", "status": "given"},
        {
            "purpose": "analytics",
            "status": "given",
            "contact": "a@example.org",
            "recipient": "eve",
            "occurred_at": AHEAD,
        },
        {"purpose": "repair.call", "status": "given", "channel": "web"},
        {"purpose": "analytics", "status": "ceased"},
        method=None,
        notice={"id": "banner", "version": 1, "language": "de"},
    )
    response = await tenant.post("/v1/consents", body)
    assert response.status_code == 422
    assert pointers(response) == [
        "/method", "/notice/id", "/records/0/purpose", "/records/1/channel", "/records/1/contact",
        "/records/1/recipient", "/records/1/occurred_at", "/records/2/status", "/records/2/channel",
        "/records/3/status",
    ]  # fmt: skip
    assert await history(tenant, person) == []


async def test_all_errors_of_shape_come_at_once(tenant: Tenant) -> None:
    body = {"subject": {"type": 1}, "records": [{"status": "no", "x": 1}], "method": "implied", "more": 1}
    response = await tenant.post("/v1/consents", body)
    assert response.status_code == 422
    # A member that is not known is told at its object: its name may be somebody's.
    assert set(pointers(response)) == {
        "/subject/type", "/subject/id", "/records/0", "/records/0/status", "/records/0/purpose", "/method", "",
    }  # fmt: skip


async def test_grants_of_a_call_stand_or_fall_together(tenant: Tenant, person: dict[str, str]) -> None:
    response = await tenant.post("/v1/consents", call(person, WEB, {**WEB, "channel": "email"}))
    assert (response.status_code, pointers(response)) == (422, ["/records/1/channel"])
    assert await history(tenant, person) == []
    assert (await tenant.check(person, "analytics", channel="web"))["reason"] == "no_record"


@pytest.mark.parametrize("body", [b"", b"{", b"[]x", b'{"subject": "\xff"}', b'{"a":1,}', b"NaN"])
async def test_what_is_no_json_is_400(body: bytes, tenant: Tenant) -> None:
    assert (await tenant.post("/v1/consents", body)).status_code == 400


async def test_namespace_ends_where_it_ends(tenant: Tenant) -> None:
    response = await tenant.post("/v1/consents", but(subject={"type": "login\n", "id": "x"}))
    assert (response.status_code, pointers(response)) == (422, ["/subject/type"])


async def test_errors_of_shape_and_of_policy_come_at_once(tenant: Tenant) -> None:
    response = await tenant.post("/v1/consents", {**of("nothing"), "method": "implied"})
    assert set(pointers(response)) == {"/method", "/records/0/purpose"}


# -- a no always stands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["withdrawn", "refused", "objected"])
async def test_a_no_needs_subject_and_purpose_only(status: str, tenant: Tenant, person: dict[str, str]) -> None:
    body = {"subject": person, "records": [{"purpose": "marketing.email", "status": status}]}
    response = await tenant.post("/v1/consents", body)
    assert response.status_code == 201
    assert response.json()["effective"] is True
    assert (await tenant.check(person, "marketing.email"))["reason"] == status


BESIDE: dict[str, dict[str, Any]] = {
    "unknown purpose": {"purpose": "nothing", "status": "given"},
    "no channel": {"purpose": "analytics", "status": "given"},
    "future": {**WEB, "occurred_at": AHEAD},
    "no status": {"purpose": "analytics"},
    "unknown status": {"purpose": "analytics", "status": "implied"},
    "status is a number": {"purpose": "analytics", "status": 1},
    "purpose is a number": {"purpose": 1, "status": "given"},
    "unknown member": {**WEB, "chanel": "web"},
    "time is nonsense": {**WEB, "occurred_at": "yesterday"},
    "a restriction that is malformed": {"purpose": 1, "status": "withdrawn"},
}


@pytest.mark.parametrize("name", BESIDE)
async def test_a_no_stands_beside_a_refused_grant(name: str, tenant: Tenant, person: dict[str, str]) -> None:
    given = {"purpose": "marketing.push", "status": "given"}
    assert (await tenant.post("/v1/consents", call(person, given))).status_code == 201
    no = {"purpose": "marketing.push", "status": "withdrawn"}
    response = await tenant.post("/v1/consents", call(person, BESIDE[name], no))
    assert response.status_code == 422
    assert all(pointer.startswith("/records/0") for pointer in pointers(response))
    recorded = response.json()["recorded"]
    assert [(state["purpose"], state["allow"]) for state in recorded["states"]] == [("marketing.push", False)]
    assert (await tenant.check(person, "marketing.push"))["record"] == recorded["event"]
    assert [event["event"]["records"][0]["status"] for event in await history(tenant, person)] == ["given", "withdrawn"]


@pytest.mark.parametrize(
    "entry",
    [7, None, "withdrawn", [], {"purpose": "analytics", "status": ["given"]}],
)
async def test_a_no_stands_beside_nonsense(entry: Any, tenant: Tenant, person: dict[str, str]) -> None:
    response = await tenant.post("/v1/consents", call(person, entry, NO))
    assert response.status_code == 422
    assert "recorded" in response.json()
    assert (await tenant.check(person, "analytics", channel="web"))["reason"] == "withdrawn"


@pytest.mark.parametrize(
    "change",
    [
        {"method": "implied"}, {"notice": {"id": 7}}, {"evidence": 7}, {"more": 1}, {"id": 7}, {"id": ""},
        {"notice": {"id": "nothing", "version": 1, "language": "de"}},
    ],
    ids=str,
)  # fmt: skip
async def test_a_no_stands_in_a_call_that_is_wrong_elsewhere(
    change: dict[str, Any], tenant: Tenant, person: dict[str, str]
) -> None:
    response = await tenant.post("/v1/consents", {**call(person, WEB, NO), **change})
    assert response.status_code == 422
    assert "recorded" in response.json()
    answer = await tenant.check(person, "analytics", channel="web")
    assert (answer["allow"], answer["reason"]) == (False, "withdrawn")


async def test_a_no_beside_a_grant_without_key_stands(tenant: Tenant, person: dict[str, str]) -> None:
    response = await tenant.post("/v1/consents", call(person, {**WEB, "channel": "app"}, NO, id=None))
    assert (response.status_code, pointers(response)) == (422, ["/id"])
    assert (await tenant.check(person, "analytics", channel="app"))["reason"] == "withdrawn"


async def test_a_malformed_no_is_recorded_as_far_as_it_is_clear(tenant: Tenant, person: dict[str, str]) -> None:
    no = {**NO, "channel": 7, "occurred_at": "yesterday", "more": 1}
    response = await tenant.post("/v1/consents", {"subject": person, "records": [no]})
    assert response.status_code == 422
    assert (await tenant.check(person, "analytics", channel="app"))["reason"] == "withdrawn"


async def test_errors_keep_the_place_of_their_record(tenant: Tenant, person: dict[str, str]) -> None:
    unknown = {"purpose": "nothing", "status": "withdrawn"}
    response = await tenant.post("/v1/consents", call(person, {**WEB, "chanel": 1}, unknown, NO))
    assert set(pointers(response)) == {"/records/0", "/records/1/purpose"}


async def test_every_no_of_a_call_that_is_too_long_stands(tenant: Tenant, person: dict[str, str]) -> None:
    push = {"purpose": "marketing.push", "status": "withdrawn"}
    response = await tenant.post("/v1/consents", {"subject": person, "records": [*[NO] * 100, push]})
    assert response.status_code == 422
    assert (await tenant.check(person, "marketing.push"))["reason"] == "withdrawn"


async def test_a_no_with_a_key_and_an_error_is_written_once(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(person, {**WEB, "channel": "email"}, NO)
    answers = [(await tenant.post("/v1/consents", body)).json()["recorded"]["event"] for _ in range(2)]
    assert len(set(answers)) == len(await history(tenant, person)) == 1


async def test_future_time_is_refused_for_grants_and_clamped_for_a_no(tenant: Tenant, person: dict[str, str]) -> None:
    grant_ahead = await tenant.post("/v1/consents", call(person, {**WEB, "occurred_at": AHEAD}))
    assert (grant_ahead.status_code, pointers(grant_ahead)) == (422, ["/records/0/occurred_at"])
    no_ahead = await tenant.post("/v1/consents", call(person, {**NO, "occurred_at": AHEAD}, id=None, notice=None))
    assert no_ahead.status_code == 201
    (event,) = await history(tenant, person)
    assert event["event"]["records"][0]["occurred_at"] == event["event"]["recorded_at"]
    regrant = await tenant.record(WEB, subject=person)
    assert regrant.json()["effective"] is True


@pytest.mark.parametrize("at", ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"])
async def test_a_no_at_a_time_that_cannot_be_is_a_no_from_now(at: str, tenant: Tenant, person: dict[str, str]) -> None:
    await tenant.record(WEB, subject=person)
    response = await tenant.post("/v1/consents", {"subject": person, "records": [{**NO, "occurred_at": at}]})
    assert response.status_code == 201
    assert (await tenant.check(person, "analytics", channel="web"))["reason"] == "withdrawn"


async def test_withdrawal_without_channel_covers_all_channels_and_children(
    make_tenant: Tenants, demo_policy: Policy, person: dict[str, str]
) -> None:
    child = msgspec.structs.replace(demo_policy.purposes["personalisation"], parent="analytics")
    family = {**demo_policy.purposes, "personalisation": child}
    tenant = await make_tenant.make(msgspec.structs.replace(demo_policy, purposes=family))
    both = [
        {"purpose": p, "status": "given", "channel": c}
        for p in ("analytics", "personalisation")
        for c in ("web", "app")
    ]
    given = await tenant.record(*both, subject=person)
    assert [state["allow"] for state in given.json()["states"]] == [True] * 4
    withdrawn = await tenant.post("/v1/consents", {"subject": person, "records": [NO]})
    found = {(state["purpose"], state["channel"]): state["reason"] for state in withdrawn.json()["states"]}
    assert found == {(entry["purpose"], entry["channel"]): "withdrawn" for entry in both}
    for purpose, channel in found:
        assert (await tenant.check(person, purpose, channel=channel))["reason"] == "withdrawn"


async def test_star_withdraws_everything_and_shows_it(
    tenant: Tenant, demo_policy: Policy, person: dict[str, str]
) -> None:
    await tenant.record(WEB, {"purpose": "marketing.push", "status": "given"}, subject=person, notice=ACCOUNT)
    response = await tenant.post(
        "/v1/consents", {"subject": person, "records": [{"purpose": "*", "status": "withdrawn"}]}
    )
    states = response.json()["states"]
    assert {(state["purpose"], state["channel"]) for state in states} == {
        (purpose.id, channel) for purpose in demo_policy.purposes.values() for channel in purpose.channels
    }
    assert {state["purpose"] for state in states if state["allow"]} == {"fraud.prevention"}
    assert {state["reason"] for state in states if not state["allow"]} == {"withdrawn", "no_basis_fact"}


async def test_publishable_key_may_withdraw_everything_of_its_device(tenant: Tenant) -> None:
    device, proof = mine(tenant)
    body = {"subject": device, "records": [{"purpose": "*", "status": "withdrawn"}], **proof}
    assert (await tenant.post("/v1/consents", body, key="publishable")).status_code == 201
    assert (await tenant.check(device, "analytics", channel="web"))["reason"] == "withdrawn"


# -- double opt-in, requests ----------------------------------------------------------------------------------------


async def test_requested_never_replaces_what_allows(tenant: Tenant, person: dict[str, str]) -> None:
    await tenant.record(WEB, subject=person)
    asked = await tenant.record({**WEB, "status": "requested"}, subject=person)
    assert asked.json()["states"][0]["allow"] is True
    assert (await tenant.check(person, "analytics", channel="web"))["allow"] is True


async def test_double_opt_in_asks_and_the_confirmation_allows(tenant: Tenant, person: dict[str, str]) -> None:
    asked = await tenant.record(ADA, subject=person)
    assert (asked.status_code, asked.json()["effective"]) == (201, True)
    (state,) = asked.json()["states"]
    assert (state["status"], state["allow"], state["reason"]) == ("requested", False, "requested")
    (event,) = await history(tenant, person)
    assert event["event"]["records"][0]["status"] == "requested"
    confirmed = await tenant.record({**ADA, "status": "confirmed"}, subject=person, method="double_opt_in")
    assert confirmed.json()["states"][0]["allow"] is True
    answer = await tenant.check(person, "newsletter", contact="Ada@Example.ORG")
    assert (answer["allow"], answer["record"]) == (True, confirmed.json()["event"])
    assert (await tenant.check(person, "newsletter", contact="eve@example.org"))["reason"] == "contact_not_covered"


# -- publishable keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["login", "email", "asset"])
async def test_publishable_key_writes_for_devices_only(kind: str, tenant: Tenant) -> None:
    subject = {"type": kind, "id": uuid.uuid4().hex}
    for body in (call(subject, WEB), {"subject": subject, "records": [NO]}):
        assert (await tenant.post("/v1/consents", body, key="publishable")).status_code == 403
    assert await history(tenant, subject) == []


@pytest.mark.parametrize("status", ["confirmed", "applies", "ceased", "restricted", "restriction_lifted"])
async def test_publishable_key_attests_nothing(status: str, tenant: Tenant) -> None:
    device, proof = mine(tenant)
    body = call(device, {"purpose": "fraud.prevention", "status": status, "channel": "web"}, **proof)
    response = await tenant.post("/v1/consents", body, key="publishable")
    assert (response.status_code, pointers(response)) == (422, ["/records/0/status"])
    assert "write:attested" in response.json()["errors"][0]["detail"]


async def test_publishable_key_gives_the_grade_of_a_device(tenant: Tenant) -> None:
    device, proof = mine(tenant)
    first = await tenant.post("/v1/consents", call(device, WEB, **proof), key="publishable")
    assert first.json()["effective"] is True
    assert (await tenant.record(WEB, subject=device)).status_code == 201
    await tenant.record(WEB, subject=device, method="import")
    grades = [event["event"]["grade"] for event in await history(tenant, device)]
    assert grades == ["anonymous_device", "service_attested", "imported"]
    answer = await tenant.check(device, "analytics", channel="web", explain=True)
    assert {record["evidence_grade"] for record in answer["explain"]["considered"]} == set(grades)


# -- idempotency ----------------------------------------------------------------------------------------------------


async def test_fifty_at_once_write_one_event(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(person, WEB)
    answers = await asyncio.gather(*(tenant.post("/v1/consents", body) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len(await history(tenant, person)) == 1
    later = await tenant.post("/v1/consents", body)
    assert later.content == answers[0].content


async def test_a_retry_after_a_withdrawal_grants_nothing(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(person, WEB)
    first = await tenant.post("/v1/consents", body)
    await tenant.post("/v1/consents", {"subject": person, "records": [NO]})
    assert (await tenant.post("/v1/consents", body)).content == first.content
    assert (await tenant.check(person, "analytics", channel="web"))["reason"] == "withdrawn"


async def test_same_key_with_another_body_is_refused(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(person, WEB)
    assert (await tenant.post("/v1/consents", body)).status_code == 201
    for other in (
        {**body, "method": "api"},
        {**body, "records": [{**WEB, "channel": "app"}]},
        {**body, "evidence": {}},
    ):
        response = await tenant.post("/v1/consents", other)
        assert (response.status_code, response.json()["type"]) == (422, "/problems/key-reused")
    assert len(await history(tenant, person)) == 1


async def test_of_two_bodies_at_once_with_one_key_one_is_refused(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(person, WEB)
    bodies = [body, {**body, "method": "api"}] * 20
    answers = await asyncio.gather(*(tenant.post("/v1/consents", one) for one in bodies))
    assert sorted(answer.status_code for answer in answers) == [201] * 20 + [422] * 20
    assert len(await history(tenant, person)) == 1


async def test_the_order_of_members_makes_no_other_body(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(person, WEB, evidence={"a": 1, "b": 2})
    turned = {**dict(reversed(body.items())), "evidence": {"b": 2, "a": 1}}
    first, second = [await tenant.post("/v1/consents", one) for one in (body, turned)]
    assert first.content == second.content


async def test_keys_of_other_credentials_are_separate(make_tenant: Tenants, demo_policy: Policy) -> None:
    kind, scopes = demo.KEYS["service"]
    keys = {name: auth.Credential(0, name, kind, name, scopes, frozenset(), None) for name in ("service", "shop")}
    kind, scopes = demo.KEYS["dpo"]
    keys["dpo"] = auth.Credential(0, "dpo", kind, "dpo", scopes, frozenset(), None)
    tenant = await make_tenant.make(demo_policy, keys)
    person = {"type": "login", "id": "ada"}
    body = call(person, WEB)
    answers = [(await tenant.post("/v1/consents", body, key=key)).json()["event"] for key in ("service", "shop")]
    assert len(set(answers)) == len(await history(tenant, person)) == 2


async def test_keys_of_other_tenants_and_devices_are_separate(
    tenant: Tenant, make_tenant: Tenants, demo_policy: Policy
) -> None:
    other = await make_tenant.make(demo_policy)
    events = {
        (await where.post("/v1/consents", call(device, WEB, id="1", **proof), key="publishable")).json()["event"]
        for where in (tenant, other)
        for device, proof in (mine(where), mine(where))
    }
    assert len(events) == 4


@pytest.mark.parametrize(
    ("in_body", "in_header"),
    [("k-1", "k-1"), ("k-1", '"k-1"'), (None, "k-1"), (None, '"k-1"'), (None, ' "k-1" '), ("k-1", None)],
)
async def test_key_in_body_or_header_is_the_same(
    in_body: str | None, in_header: str | None, tenant: Tenant, person: dict[str, str]
) -> None:
    first = await tenant.post("/v1/consents", call(person, WEB, id="k-1"))
    headers = {} if in_header is None else {"Idempotency-Key": in_header}
    second = await tenant.post("/v1/consents", call(person, WEB, id=in_body), **headers)
    assert second.status_code == 201
    assert second.content == first.content


@pytest.mark.parametrize("header", ["", '""', "k" * 257, "\x7f"])
async def test_bad_key_in_the_header_is_refused(header: str, tenant: Tenant, person: dict[str, str]) -> None:
    raw = {"Idempotency-Key": header.encode("latin-1")}
    response = await tenant.post("/v1/consents", call(person, WEB, id=None), **raw)
    assert (response.status_code, pointers(response)) == (422, ["/id"])


async def test_two_keys_that_differ_are_refused(tenant: Tenant, person: dict[str, str]) -> None:
    response = await tenant.post("/v1/consents", call(person, WEB, id="a"), **{"Idempotency-Key": "b"})
    assert (response.status_code, pointers(response)) == (422, ["/id"])


async def test_missing_key_is_400_with_an_example(tenant: Tenant, person: dict[str, str]) -> None:
    response = await tenant.post("/v1/consents", call(person, WEB, id=None))
    assert (response.status_code, response.json()["type"]) == (400, "/problems/key-missing")
    assert 'Idempotency-Key: "' in response.json()["detail"]
    assert await history(tenant, person) == []


async def test_a_no_with_a_key_is_written_once(tenant: Tenant, person: dict[str, str]) -> None:
    body = {"subject": person, "records": [NO], "id": "n-1"}
    answers = [await tenant.post("/v1/consents", body) for _ in range(3)]
    assert len({answer.content for answer in answers}) == 1
    assert len(await history(tenant, person)) == 1


async def test_a_no_without_key_is_written_each_time(tenant: Tenant, person: dict[str, str]) -> None:
    for _ in range(3):
        assert (await tenant.post("/v1/consents", {"subject": person, "records": [NO]})).status_code == 201
    assert [event["sequence"] for event in await history(tenant, person)] == [1, 2, 3]


# -- the answer is what a check then says ---------------------------------------------------------------------------


def random_record(rng: random.Random, policy: Policy) -> dict[str, Any]:
    purpose = rng.choice(list(policy.purposes.values()))
    status = rng.choice(("given", "given", *STATUSES))
    record: dict[str, Any] = {"purpose": purpose.id, "status": status}
    if status in {"withdrawn", "refused", "objected"}:
        record["purpose"] = rng.choice((purpose.id, purpose.id, "*"))
    if status in {"given", "requested", "renewed", "confirmed"} or rng.random() < 0.5:
        record["channel"] = rng.choice(purpose.channels)
    if purpose.contact != "none":
        record["contact"] = rng.choice(("ada@example.org", "eve@example.org"))
    if purpose.recipients and rng.random() < 0.3:
        record["recipient"] = rng.choice(purpose.recipients).id
    if rng.random() < 0.5:
        record["occurred_at"] = (clock.now() - timedelta(days=rng.choice((1, 2, 3, 40, 800)))).isoformat()
    return record


@pytest.mark.parametrize("seed", range(6))
async def test_resulting_states_are_what_a_check_then_says(seed: int, tenant: Tenant, demo_policy: Policy) -> None:
    rng = random.Random(seed)
    people = [{"type": "login", "id": f"{seed}-{n}"} for n in range(3)]
    compared = 0
    for _ in range(60):
        person = rng.choice(people)
        records = [random_record(rng, demo_policy) for _ in range(rng.choice((1, 1, 2)))]
        response = await tenant.post(
            "/v1/consents", call(person, *records, method=rng.choice(("form", "api", "import")))
        )
        answer = response.json()
        answer = answer if response.status_code == 201 else answer.get("recorded")
        if answer is None:
            continue
        asked = [{"subject": person, **_place(state)} for state in answer["states"]]
        found = (await tenant.post("/v1/checks", {"checks": asked})).json()["decisions"]
        for state, decision in zip(answer["states"], found, strict=True):
            for name in ("allow", "reason", "valid_until", "record"):
                assert state[name] == decision[name], (state, decision, records)
            assert decision["rev"] == answer["rev"]
            assert bool(state["remedy"]) is not state["effective"]
            compared += 1
        assert answer["effective"] is all(state["effective"] for state in answer["states"])
    assert compared > 60


def _place(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("purpose", "channel", "contact", "recipient")}


# -- the ledger's order ---------------------------------------------------------------------------------------------

EVENTS = """SELECT e.*, s.key FROM event e JOIN strand s USING (log_id, identifier, tenure)
            WHERE log_id = $1 ORDER BY idx"""
HEAD = """SELECT size, recorded_at FROM ledger_head WHERE log_id = $1"""


async def events_of(tenant: Tenant) -> tuple[list[Any], Any]:
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        return await connection.fetch(EVENTS, tenant.log_id), await connection.fetchrow(HEAD, tenant.log_id)


def opened(tenant: Tenant, row: Any) -> Any:
    """The payload of an event, as JSON."""
    place = Place(tenant.log_id, row["identifier"], row["tenure"])
    key = tenant.services.ledgers.of(tenant.log_id).vault.open(place, row["key"])
    return msgspec.json.decode(key.open(row["event"].bytes, row["payload"]))


async def test_index_and_sequence_have_no_gap_and_time_never_goes_back(tenant: Tenant) -> None:
    people = [{"type": "login", "id": f"p{n}"} for n in range(7)]
    bodies = [call(people[n % 7], WEB if n % 3 else {**WEB, "channel": "email"}) for n in range(300)]
    bodies += [{"subject": people[n % 7], "records": [NO]} for n in range(100)]
    random.Random(1).shuffle(bodies)
    answers = await asyncio.gather(*(tenant.post("/v1/consents", body) for body in bodies))
    written = [answer.json() for answer in answers if answer.status_code == 201]
    events, head = await events_of(tenant)
    start = head["size"] - 300
    """The entries before are about keys and the policy."""
    assert [row["idx"] for row in events] == list(range(start, start + len(written)))
    assert len(written) == 300
    assert head["recorded_at"] == events[-1]["recorded_at"]
    assert all(one["recorded_at"] <= other["recorded_at"] for one, other in pairwise(events))
    sequences: dict[bytes, list[int]] = {}
    for row in events:
        sequences.setdefault(row["identifier"], []).append(row["sequence"])
    assert len(sequences) == 7
    assert all(found == list(range(1, len(found) + 1)) for found in sequences.values())
    by_event = {opened(tenant, row)["event"]: row for row in events}
    for answer in written:
        row = by_event[answer["event"]]
        assert answer["rev"] == f"1.{row['idx'] + 1}"
        assert datetime.fromisoformat(answer["recorded_at"]) == row["recorded_at"].astimezone(UTC)


async def test_concurrent_yes_and_no_leave_what_the_last_event_says(tenant: Tenant, person: dict[str, str]) -> None:
    bodies = [call(person, WEB) if n % 2 else {"subject": person, "records": [NO]} for n in range(60)]
    await asyncio.gather(*(tenant.post("/v1/consents", body) for body in bodies))
    events = [event["event"] for event in await history(tenant, person)]
    grants = max(event["recorded_at"] for event in events if event["records"][0]["status"] == "given")
    noes = max(event["recorded_at"] for event in events if event["records"][0]["status"] == "withdrawn")
    # Events of one commit share their time, and a tie goes to the no.
    assert (await tenant.check(person, "analytics", channel="web"))["allow"] is (grants > noes)


async def apply(tenant: Tenant, policy: Policy) -> None:
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), policy)


def with_purpose(policy: Policy, name: str) -> Policy:
    """The policy with one more purpose that needs no notice: a contract."""
    purpose = msgspec.structs.replace(policy.purposes["repair.call"], id=name)
    return msgspec.structs.replace(policy, purposes={**policy.purposes, name: purpose})


async def test_every_event_names_the_policy_in_force_at_its_index(tenant: Tenant, demo_policy: Policy) -> None:
    applied = asyncio.Event()
    sent = 0

    async def write(n: int) -> None:
        nonlocal sent
        while not applied.is_set():
            sent += 1
            body = call({"type": "login", "id": f"w{n}-{sent}"}, WEB)
            assert (await tenant.post("/v1/consents", body)).status_code == 201

    async def some_more(size: int) -> None:
        """Until something was recorded under the policy in force."""
        async with asyncio.timeout(30):
            while True:
                async with db.connection(tenant.services.pool, tenant.log_id) as connection:
                    if (await connection.fetchrow(HEAD, tenant.log_id))["size"] > size:
                        return
                await asyncio.sleep(0.01)

    async def change() -> list[int]:
        async with db.connection(tenant.services.pool, tenant.log_id) as connection:
            sizes = [(await connection.fetchrow(HEAD, tenant.log_id))["size"]]
        policy = demo_policy
        for n in range(6):
            await some_more(sizes[-1])
            policy = with_purpose(policy, f"more.{n}")
            async with db.connection(tenant.services.pool, tenant.log_id) as connection, connection.transaction():
                await tenants.apply_policy(connection, tenant.log_id, store.Policies(), policy)
                sizes.append((await connection.fetchrow(HEAD, tenant.log_id))["size"])
        await some_more(sizes[-1])
        applied.set()
        return sizes

    sizes, *_ = await asyncio.gather(change(), *(write(n) for n in range(8)))
    events, _head = await events_of(tenant)
    assert len(events) == sent
    for row in events:
        in_force = sum(size <= row["idx"] for size in sizes)
        assert opened(tenant, row)["policy"] == in_force
    assert {opened(tenant, row)["policy"] for row in events} == set(range(1, 8))


async def test_a_purpose_that_was_just_added_is_known(tenant: Tenant, demo_policy: Policy) -> None:
    subject = {"type": "login", "id": "ada"}
    assert (await tenant.record(WEB, subject=subject)).status_code == 201
    await apply(tenant, with_purpose(demo_policy, "new.contract"))
    response = await tenant.record({"purpose": "new.contract", "status": "applies"}, subject=subject)
    assert response.status_code == 201, response.text
    assert (await tenant.check(subject, "new.contract"))["allow"] is True


async def test_a_purpose_that_was_just_removed_is_refused(tenant: Tenant, demo_policy: Policy) -> None:
    subject = {"type": "login", "id": "ada"}
    await apply(tenant, with_purpose(demo_policy, "old.contract"))
    applies = {"purpose": "old.contract", "status": "applies"}
    assert (await tenant.record(applies, subject=subject)).status_code == 201
    await apply(tenant, demo_policy)
    response = await tenant.record(applies, subject=subject)
    assert (response.status_code, pointers(response)) == (422, ["/records/0/purpose"])
    assert (await tenant.check(subject, "old.contract"))["reason"] == "unknown_purpose"
    withdrawn = {"subject": subject, "records": [{"purpose": "old.contract", "status": "withdrawn"}]}
    assert (await tenant.post("/v1/consents", withdrawn)).status_code == 422


# -- contacts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "normal"),
    [
        ("Ada@Example.ORG", "ada@example.org"),
        ("ada@example.org", "ada@example.org"),
        ("+49 (30) 123-45/67", "+49301234567"),
        ("+49.30.1234567", "+49301234567"),
        ("0049 30 1234567", "+49301234567"),
        ("(00) 49 30 1234567", "+49301234567"),
        ("030 1234567", "0301234567"),
        ("+49\u00a030 1234567", "+49301234567"),
        ("@ada", "@ada"),
        ("ada-b", "ada-b"),
        ("-", "-"),
    ],
)
def test_a_contact_has_one_spelling(sent: str, normal: str) -> None:
    assert normal_contact(sent) == normal
    assert normal_contact(normal) == normal


async def test_any_spelling_of_a_contact_finds_the_consent(tenant: Tenant, person: dict[str, str]) -> None:
    phone = {"purpose": "marketing.phone", "status": "given", "contact": "+49 (30) 123-45"}
    assert (await tenant.record(phone, subject=person, notice=ACCOUNT)).status_code == 201
    for spelling in ("+493012345", "+49 30 123 45", "+49.30.12345"):
        assert (await tenant.check(person, "marketing.phone", contact=spelling))["allow"] is True
    assert (await tenant.check(person, "marketing.phone", contact="03012345"))["reason"] == "contact_not_covered"
    state = await tenant.post("/v1/subjects/state", {"subject": person}, key="dpo")
    contacts = {row["contact"] for row in state.json()["states"] if row["purpose"] == "marketing.phone"}
    assert contacts == {"+493012345"}


async def test_a_call_shows_the_contact_as_it_was_sent(tenant: Tenant, person: dict[str, str]) -> None:
    answer = await tenant.record({**ADA, "contact": "Ada@Example.ORG"}, subject=person, notice=NOTICE)
    assert answer.json()["states"][0]["contact"] == "Ada@Example.ORG"


async def test_a_retry_gets_its_answer_though_the_policy_would_refuse_it_now(
    tenant: Tenant, demo_policy: Policy, person: dict[str, str]
) -> None:
    body = call(person, WEB)
    first = await tenant.post("/v1/consents", body)
    assert first.status_code == 201
    without = {name: purpose for name, purpose in demo_policy.purposes.items() if name != "analytics"}
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        changed = msgspec.structs.replace(demo_policy, purposes=without)
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), changed)
    assert (await tenant.post("/v1/consents", call(person, WEB))).status_code == 422
    again = await tenant.post("/v1/consents", body)
    assert (again.status_code, again.content) == (201, first.content)


# -- what a hostile or careless caller tried -------------------------------------------------------------------------


async def test_one_subject_has_no_more_contacts_than_can_be_weighed(tenant: Tenant, person: dict[str, str]) -> None:
    def grants(first: int, count: int) -> list[dict[str, Any]]:
        each = {"purpose": "marketing.email", "status": "given"}
        return [{**each, "contact": f"a{number}@example.org"} for number in range(first, first + count)]

    assert (await tenant.record(*grants(0, 32), subject=person)).status_code == 201
    assert (await tenant.record(*grants(10, 20), subject=person)).status_code == 201, "known ones may be renewed"
    refused = await tenant.record(*grants(32, 1), NO, subject=person)
    assert (refused.status_code, pointers(refused)) == (422, ["/records"])
    assert refused.json()["recorded"]["effective"] is True, "the no beside it stands"
    assert (await tenant.check(person, "analytics", channel="web"))["reason"] == "withdrawn"


async def test_a_no_to_everything_with_an_unknown_recipient_covers_every_recipient(
    tenant: Tenant, person: dict[str, str], demo_policy: Policy
) -> None:
    recipient = demo_policy.purposes["share.partner"].recipients[0].id
    given = {"purpose": "share.partner", "status": "given", "recipient": recipient}
    assert (await tenant.record(given, subject=person)).json()["effective"] is True
    for unknown in ("typo", "\0"):
        no = {"purpose": "*", "status": "withdrawn", "recipient": unknown}
        assert (await tenant.post("/v1/consents", {"subject": person, "records": [no]})).status_code == 201
        assert (await tenant.check(person, "share.partner", recipient=recipient))["reason"] == "withdrawn"


@pytest.mark.parametrize("language", ["\0", "zz"])
async def test_a_no_beside_a_notice_that_was_never_shown_names_none(
    tenant: Tenant, person: dict[str, str], language: str
) -> None:
    body = {**call(person, WEB, NO), "notice": {**NOTICE, "language": language}}
    response = await tenant.post("/v1/consents", body)
    assert (response.status_code, pointers(response)) == (422, ["/notice/language"])
    answer = await tenant.check(person, "analytics", channel="web", explain=True)
    assert (answer["reason"], answer["explain"]["record"]["notice"]) == ("withdrawn", None)


async def test_noes_under_a_used_key_are_written_once(tenant: Tenant, person: dict[str, str]) -> None:
    body = call(person, WEB)
    assert (await tenant.post("/v1/consents", body)).status_code == 201
    other = {**body, "records": [NO]}
    events = {(await tenant.post("/v1/consents", other)).json()["recorded"]["event"] for _ in range(3)}
    assert len(events) == 1


async def test_a_list_that_is_too_long_leaves_one_record_for_each_no(tenant: Tenant, person: dict[str, str]) -> None:
    everything = {"purpose": "*", "status": "withdrawn"}
    response = await tenant.post("/v1/consents", {"subject": person, "records": [everything] * 1500})
    assert (response.status_code, pointers(response)) == (422, ["/records"])
    history = (await tenant.post("/v1/subjects/history", {"subject": person}, key="dpo")).json()
    assert [len(entry["event"]["records"]) for entry in history["events"]] == [1]


async def test_a_service_without_attestation_speaks_for_devices_only(
    make_tenant: Tenants, demo_policy: Policy, person: dict[str, str]
) -> None:
    scopes = frozenset({"write:device", "check"})
    weak = auth.Credential(0, "weak", "service", "weak", scopes, frozenset(), None)
    tenant = await make_tenant.make(demo_policy, {"weak": weak})
    assert (await tenant.post("/v1/consents", call(person, WEB), key="weak")).status_code == 403
    device, proof = mine(tenant)
    assert (await tenant.post("/v1/consents", call(device, WEB, **proof), key="weak")).status_code == 201
    question = {"subject": device, "purpose": "analytics", "channel": "web", "explain": True}
    answer = (await tenant.post("/v1/check", question, key="weak")).json()
    assert answer["explain"]["record"]["evidence_grade"] == "anonymous_device"


async def test_a_plain_yes_waits_for_its_confirmation_once_the_purpose_asks_for_one(
    tenant: Tenant, demo_policy: Policy, person: dict[str, str]
) -> None:
    assert (await tenant.record({"purpose": "marketing.email", "status": "given"}, subject=person)).status_code == 201
    stricter = msgspec.structs.replace(demo_policy.purposes["marketing.email"], double_opt_in=True)
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        purposes = {**demo_policy.purposes, "marketing.email": stricter}
        changed = msgspec.structs.replace(demo_policy, purposes=purposes)
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), changed)
    assert (await tenant.check(person, "marketing.email"))["reason"] == "requested"


async def test_many_checks_are_explained_a_hundred_at_a_time(tenant: Tenant, person: dict[str, str]) -> None:
    check = {"subject": person, "purpose": "analytics", "channel": "web", "explain": True}
    assert (await tenant.post("/v1/checks", {"checks": [check] * 100})).status_code == 200
    refused = await tenant.post("/v1/checks", {"checks": [check] * 101})
    assert (refused.status_code, pointers(refused)) == (422, ["/checks/100/explain"])


async def test_two_processes_that_overtake_each_other_lose_and_double_nothing(tenant: Tenant, settings: Any) -> None:
    """Each reads the ledger without a lock; whoever is overtaken must write nothing of what it read."""
    secret = settings.secret.encode()
    writers = [Writer(Ledgers(tenant.services.pool, secret), Devices(secret)) for _ in range(2)]
    credential = await tenant.services.keyring.authenticate(tenant.keys["service"])
    person = {"type": "login", "id": "shared"}

    async def write(number: int) -> str:
        body = msgspec.json.encode(call(person, WEB))
        return str(msgspec.json.decode(await writers[number % 2].record(body, credential, None))["rev"])

    for start in range(0, 120, 2):  # one act each: a batch of several would hide a collision by halving itself
        revisions = await asyncio.gather(write(start), write(start + 1))
        assert len(set(revisions)) == 2
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        rows = await connection.fetch("SELECT idx, sequence FROM event WHERE log_id = $1 ORDER BY idx", tenant.log_id)
    start = rows[0]["idx"]
    assert [(row["idx"], row["sequence"]) for row in rows] == [(start + n, n + 1) for n in range(120)]


async def test_an_act_that_cannot_be_worked_on_fails_alone(tenant: Tenant, person: dict[str, str]) -> None:
    """A damaged key of one strand is nobody else's matter."""
    yes = {"purpose": "analytics", "status": "given", "channel": "web"}
    assert (await tenant.record(yes, subject=person)).status_code == 201
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        await connection.execute("UPDATE strand SET key = set_byte(key, 20, 255 - get_byte(key, 20))")
    others = [{"type": "login", "id": uuid.uuid4().hex} for _ in range(20)]
    answers = await asyncio.gather(*(tenant.record(yes, subject=one) for one in [*others[:10], person, *others[10:]]))
    assert [answer.status_code for answer in answers] == [201] * 10 + [500] + [201] * 10


async def test_what_tells_two_bodies_apart_cannot_be_guessed_from(tenant: Tenant, person: dict[str, str]) -> None:
    """Telephone numbers are few: a plain hash of a body would name them."""
    assert (await tenant.post("/v1/consents", {"subject": person, "records": [NO]})).status_code == 201
    subject, record = Subject(**person), Record(purpose="analytics", status="withdrawn")
    said = msgspec.json.encode((subject, (record,), None, None, None, None), order="sorted")
    hasher = tenant.services.ledgers.of(tenant.log_id).hasher
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection:
        (body,) = [row["body"] for row in await connection.fetch("SELECT body FROM idempotency")]
    assert body == hasher.body(said), "this is what was hashed"
    assert body != hashlib.sha256(said).digest()


async def test_people_who_say_the_same_at_once_are_each_told_of_their_own(tenant: Tenant) -> None:
    """What holds after a first act is worked out once for all who say the same in one batch."""
    grants = [
        {"purpose": "analytics", "status": "given", "channel": "web"},
        {"purpose": "profiling", "status": "refused", "channel": "web"},
    ]
    mails = [
        {"purpose": "marketing.email", "status": "given", "channel": "email", "contact": f"{name}@shop.example"}
        for name in ("ada", "bob")
    ]
    said = [grants, grants, [*grants, mails[0]], [*grants, mails[1]], grants[:1], grants[1:]] * 4
    people = [{"type": "login", "id": uuid.uuid4().hex} for _ in said]
    alone = [
        (await tenant.record(*records, subject=person)).json() for records, person in zip(said, people, strict=True)
    ]
    others = [{"type": "login", "id": uuid.uuid4().hex} for _ in said]
    answers = await asyncio.gather(
        *(tenant.record(*records, subject=person) for records, person in zip(said, others, strict=True))
    )
    for answer, one in zip(answers, alone, strict=True):
        told = answer.json()
        assert {state["record"] for state in told["states"]} == {told["event"]}
        same = ("purpose", "channel", "contact", "status", "allow", "reason", "effective", "remedy")
        assert [[state[name] for name in same] for state in told["states"]] == [
            [state[name] for name in same] for state in one["states"]
        ]
        assert (told["effective"], told["receipt"] != one["receipt"]) == (one["effective"], True)
