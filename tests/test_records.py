"""The records room: what an act says in DPV's terms and in words, and receipts shown to whoever has them."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any, get_args

import msgspec
import pytest
from conftest import NOTICE, Tenant, Tenants

from consent_service import db, records, tenants
from consent_service.policies import (
    CHANNELS,
    METHODS,
    Basis,
    Duration,
    Policy,
    canonical,
    decode_policy,
    find,
    load,
    store,
)
from consent_service.records import dpv
from consent_service.records.prose import lasting, moment
from consent_service.records.terms import RIGHTS
from consent_service.records.words import ENGLISH, GERMAN, WORDS
from consent_service.states import STATUSES, Event, EventNotice, EventRecord, Status
from consent_service.subjects import Subject

NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
POLICIES = {name: load(find(name)) for name in ("demo", "demo-at", "demo-fr")}
DEMO = POLICIES["demo"]
WEB = {"purpose": "analytics", "status": "given", "channel": "web"}


def event(*said: tuple[str, Status], policy: Policy = DEMO, notice: str | None = "web-banner", **more: Any) -> Event:
    """An act."""
    shown = None
    if notice is not None:
        version = policy.notices[notice][1]
        shown = EventNotice(notice, 1, policy.tenant.languages[0], version.hash)
    made = Event(
        event=uuid.UUID(int=7), recorded_at=NOW, subject=Subject("login", "ada"),
        records=[EventRecord(purpose, status, None, None, None, NOW) for purpose, status in said],
        notice=shown, method="form", evidence=None, grade="login", guardian=None, credential="shop", policy=1,
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def record(act: Event, policy: Policy = DEMO) -> dict[str, Any]:
    """The record in its receipt."""
    found: dict[str, Any] = msgspec.json.decode(records.receipt(act, policy))["dpv:hasRecordOfActivity"]
    return found


def statuses(act: Event, policy: Policy = DEMO) -> dict[str, str]:
    """The first type of the status, by purpose."""
    return {
        process["dpv:hasPurpose"]["dct:identifier"]: (process.get("dpv:hasConsentStatus") or process["dpv:hasStatus"])[
            "@type"
        ][0]
        for process in record(act, policy)["dpv:hasProcess"]
    }


# -- in DPV's terms -------------------------------------------------------------------------------------------------

ON: dict[Basis, str] = {
    "consent": "analytics",
    "contract": "repair.call",
    "legitimate_interest": "fraud.prevention",
    "legal_obligation": "invoice.archive",
    "vital_interests": "rescue.position",
}
SAID: dict[tuple[Status, Basis], str] = {
    ("given", "consent"): "ConsentGiven",
    ("confirmed", "consent"): "ConsentGiven",
    ("renewed", "consent"): "RenewedConsentGiven",
    ("requested", "consent"): "ConsentRequested",
    ("refused", "consent"): "ConsentRefused",
    ("withdrawn", "consent"): "ConsentWithdrawn",
    ("objected", "consent"): "ConsentWithdrawn",
    ("given", "legitimate_interest"): "ConsentGiven",
    ("objected", "legitimate_interest"): "LegitimateInterestObjected",
    ("applies", "legitimate_interest"): "LegitimateInterestNotObjected",
    ("ceased", "legitimate_interest"): "ActivityCompleted",
    ("objected", "contract"): "RequestInitiated",
    ("applies", "contract"): "ContractActive",
    ("ceased", "contract"): "ContractTerminationStatus",
    ("applies", "legal_obligation"): "LegalObligationOngoing",
    ("ceased", "legal_obligation"): "LegalObligationCompleted",
    ("objected", "vital_interests"): "VitalInterestObjected",
    ("applies", "vital_interests"): "VitalInterestOngoing",
    ("ceased", "vital_interests"): "VitalInterestCompleted",
    ("objected", "public_task"): "PublicInterestObjected",
    ("applies", "public_task"): "PublicInterestOngoing",
    ("ceased", "public_task"): "PublicInterestCompleted",
    ("restricted", "consent"): "ActivityHalted",
    ("restriction_lifted", "consent"): "RequestFulfilled",
}


@pytest.mark.parametrize(
    ("said", "term"), SAID.items(), ids=lambda one: "-".join(one) if isinstance(one, tuple) else one
)
def test_a_status_has_its_term_on_each_legal_basis(said: tuple[Status, Basis], term: str):
    status, basis = said
    purpose = msgspec.structs.replace(DEMO.purposes["analytics"], legal_basis=basis, terminal_access="none")
    prop, found = dpv.status_term(status, purpose)
    assert found == f"dpv:{term}"
    assert (prop == "dpv:hasConsentStatus") == ("Consent" in term)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("basis", get_args(Basis))
def test_every_status_has_a_term_whatever_the_basis(status: Status, basis: Basis):
    purpose = msgspec.structs.replace(DEMO.purposes["analytics"], legal_basis=basis)
    assert dpv.status_term(status, purpose)[1].startswith("dpv:")
    assert RIGHTS[basis]


def test_one_act_gives_one_purpose_and_refuses_another():
    act = event(("analytics", "given"), ("personalisation", "refused"), ("marketing.email", "withdrawn"))
    assert statuses(act) == {
        "analytics": "dpv:ConsentGiven",
        "personalisation": "dpv:ConsentRefused",
        "marketing.email": "dpv:ConsentWithdrawn",
    }
    given, refused, _ = record(act)["dpv:hasProcess"]
    assert given["dpv:hasConsentStatus"]["dct:valid"] == "2027-06-01T12:30:00Z"
    assert "dct:valid" not in refused["dpv:hasConsentStatus"]
    assert given["dpv:hasConsentStatus"]["@type"][1] == "dpv:ExplicitlyExpressedConsent"
    click = event(("analytics", "given"), method="banner_button")
    assert record(click)["dpv:hasProcess"][0]["dpv:hasConsentStatus"]["@type"][1] == "dpv:ExpressedConsent"


def test_a_no_to_everything_is_a_no_to_what_can_be_refused():
    withdrawn = statuses(event(("*", "withdrawn"), notice=None))
    assert withdrawn.keys() == DEMO.purposes.keys() - {"repair.call"}
    assert statuses(event(("*", "restricted"), notice=None)).keys() == DEMO.purposes.keys()


def test_a_no_passes_down_and_a_yes_does_not():
    child = msgspec.structs.replace(DEMO.purposes["profiling"], parent="analytics")
    policy = msgspec.structs.replace(DEMO, purposes=DEMO.purposes | {"profiling": child})
    assert statuses(event(("analytics", "withdrawn"), notice=None), policy).keys() == {"analytics", "profiling"}
    assert statuses(event(("analytics", "given")), policy).keys() == {"analytics"}


def test_a_consent_to_one_recipient_names_that_one():
    act = event(("share.partner", "given"))
    both = record(act)["dpv:hasProcess"][0]
    assert both["dpv:hasRecipient"] == ["#recipient-aerosicher", "#recipient-skyward-academy"]
    assert both["dpv:hasThirdCountry"] == ["loc:US"]
    one = msgspec.structs.replace(act.records[0], recipient="aerosicher")
    process = record(msgspec.structs.replace(act, records=[one]))["dpv:hasProcess"][0]
    assert process["dpv:hasRecipient"] == ["#recipient-aerosicher"]
    assert "dpv:hasThirdCountry" not in process


def test_whoever_decides_for_a_child_is_told_as_that():
    link = uuid.uuid4()
    told = record(event(("analytics", "given"), guardian=link))
    assert told["dpv:hasRelationWithDataSubject"]["dct:identifier"] == f"urn:uuid:{link}"
    assert told["dpv:hasProcess"][0]["dpv:hasConsentStatus"]["dpv:isIndicatedBy"] == "#guardian"
    fact = record(event(("repair.call", "applies"), notice=None))
    assert fact["dpv:hasProcess"][0]["dpv:hasStatus"]["dpv:isIndicatedBy"] == "#controller"


def test_the_notice_is_the_one_that_was_shown_and_of_a_no_the_one_that_applies():
    shown = record(event(("analytics", "given")))["dpv:hasNotice"]
    assert (shown["dct:identifier"], shown["schema:sha256"]) == ("web-banner/1", DEMO.notices["web-banner"][1].hash)
    assert shown["dpv:hasNoticeStatus"] == "dpv:NoticeCommunicated"
    applies = record(event(("telemetry.drone", "withdrawn"), notice=None))["dpv:hasNotice"]
    assert "dpv:hasNoticeStatus" not in applies
    assert "telemetry.drone" in DEMO.notices[applies["dct:identifier"].partition("/")[0]][1].purposes


def test_an_old_policy_says_what_it_does_not_say():
    tree = msgspec.json.decode(canonical(DEMO))
    del tree["tenant"]["storage"]
    tree["notices"] = {}
    for purpose in tree["purposes"].values():
        for recipient in purpose["recipients"]:
            del recipient["address"], recipient["contact"]
    old = decode_policy(msgspec.json.encode(tree))
    told = record(event(("newsletter", "given"), notice=None), old)
    unknown = {"dpv:hasApplicability": "dpv:NotAvailable"}
    assert told["dpv:hasRecipient"][0]["dpv:hasAddress"] == told["dpv:hasRecipient"][0]["dpv:hasContact"] == unknown
    assert told["dpv:hasProcess"][0]["dpv:hasStorageCondition"][0] == {"@type": "dpv:StorageLocation"} | unknown
    assert told["dpv:hasNotice"] == {"@type": "dpv:PrivacyNotice"} | unknown
    assert told["dpv:hasConsentControl"] == {"@type": "dpv:WithdrawConsent"} | unknown
    assert told["dpv:hasAuthority"]["dpv:hasName"].startswith("Berliner Beauftragte")


def test_what_is_kept_between_receipts_has_an_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dpv, "_KNOWN", {})
    monkeypatch.setattr(dpv, "MAX_POLICIES", 2)
    monkeypatch.setattr(dpv, "MAX_PIECES", 3)
    acts = [event((purpose, "withdrawn"), policy=DEMO, notice=None) for purpose in DEMO.purposes]
    first = [records.receipt(act, policy) for policy in (DEMO,) for act in acts]
    for name in ("demo-at", "demo-fr"):
        records.receipt(event(("*", "withdrawn"), policy=POLICIES[name], notice=None), POLICIES[name])
    assert len(dpv._KNOWN) == 2
    assert DEMO.hash not in dpv._KNOWN
    assert [records.receipt(act, DEMO) for act in acts] == first
    assert len(dpv._KNOWN[DEMO.hash]._said) <= 3


# -- in the answer --------------------------------------------------------------------------------------------------


async def test_the_answer_carries_the_record_and_names_nobody_in_it(tenant: Tenant, person: dict[str, str]):
    mail = {
        "purpose": "marketing.email",
        "status": "given",
        "channel": "email",
        "contact": f"{person['id']}@shop.example",
    }
    answer = await tenant.record(WEB, mail, subject=person, evidence={"who": person["id"]})
    told = answer.json()
    assert list(told)[-2:] == ["receipt", "record"]
    assert told["record"]["dpv:hasRecordOfActivity"]["dct:identifier"] == f"urn:uuid:{told['event']}"
    assert told["record"]["dct:created"] == told["recorded_at"]
    assert person["id"] not in msgspec.json.encode(told["record"]).decode()


@pytest.mark.parametrize(
    ("prefer", "whole"),
    [
        ("return=minimal", False), ("Return=Minimal", False), ('respond-async, return="minimal"', False),
        ("return = minimal; foo=1", False), ("return=representation", True), ("respond-async", True), ("", True),
    ],
)  # fmt: skip
async def test_who_prefers_less_gets_no_record(tenant: Tenant, person: dict[str, str], prefer: str, whole: bool):
    body = {"id": uuid.uuid4().hex, "subject": person, "records": [WEB], "method": "form", "notice": NOTICE}
    brief = await tenant.post("/v1/consents", body, Prefer=prefer)
    assert (brief.json()["record"] is not None) is whole
    full = await tenant.post("/v1/consents", body)
    assert full.json() | {"record": None} == brief.json() | {"record": None}
    assert full.json()["record"] is not None


async def test_who_prefers_less_gets_it_beside_a_refusal_too(tenant: Tenant, person: dict[str, str]):
    no = {"purpose": "marketing.email", "status": "withdrawn"}
    body = {"id": uuid.uuid4().hex, "subject": person, "records": [WEB, no], "method": "form"}
    told = [
        (await tenant.post("/v1/consents", body, Prefer=wish)).json()["recorded"] for wish in ("return=minimal", "")
    ]
    assert [one["record"] is None for one in told] == [True, False]
    assert told[0]["event"] == told[1]["event"]


async def test_a_retry_gets_the_record_of_the_policy_of_then(tenant: Tenant, person: dict[str, str]):
    body = {"id": uuid.uuid4().hex, "subject": person, "records": [WEB], "method": "form", "notice": NOTICE}
    first = await tenant.post("/v1/consents", body)
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        renamed = msgspec.structs.replace(DEMO.purposes["analytics"], name={"de": "Anders", "en": "Other"})
        home = msgspec.structs.replace(DEMO.tenant, issuers=())
        policy = msgspec.structs.replace(DEMO, tenant=home, purposes=DEMO.purposes | {"analytics": renamed})
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), policy)
    again = await tenant.post("/v1/consents", body)
    assert again.content == first.content
    other = await tenant.post("/v1/consents", {**body, "id": uuid.uuid4().hex})
    assert "Anders" in other.text
    assert "Anders" not in again.text


async def test_a_device_and_its_first_act_have_a_record_and_a_link_has_none(tenant: Tenant):
    body = {"id": str(uuid.uuid4()), "records": [WEB], "method": "banner_button", "notice": NOTICE}
    minted = (await tenant.post("/v1/devices", body, "publishable")).json()
    assert minted["recorded"]["record"]["@type"] == "dpv:ConsentReceipt"
    brief = (await tenant.post("/v1/devices", body, "publishable", Prefer="return=minimal")).json()
    assert brief["recorded"] == minted["recorded"] | {"record": None}
    link = await tenant.post(
        "/v1/links", {"identifier": minted["identifier"], "proof": minted["token"], "login": uuid.uuid4().hex}
    )
    assert link.json()["record"] is None


# -- in words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_no_word_is_missing(words: Any):
    assert words.status.keys() == set(STATUSES)
    assert words.method.keys() == set(METHODS)
    assert words.channel.keys() == set(CHANNELS)
    assert words.basis.keys() == set(get_args(Basis))
    assert words.right.keys() == {article for articles in RIGHTS.values() for article in articles} | {"A14"}
    for table in ("label", "after", "role", "safeguard", "unit"):
        assert getattr(words, table).keys() == getattr(ENGLISH, table).keys(), table
    assert len(words.months) == 12
    for table in ("label", "status", "method", "channel", "basis", "after", "role", "right"):
        assert all(getattr(words, table).values()), table


def whole_act(policy: Policy) -> Event:
    """Something about every purpose."""
    said: list[tuple[str, Status]] = [
        (purpose.id, "given" if purpose.needs_consent else "objected") for purpose in policy.purposes.values()
    ]
    return event(*said, policy=policy, notice=next(iter(policy.notices)))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("language", ["de", "en", "fr"])
def test_what_is_told_holds_every_purpose_and_the_way_back(name: str, language: str):
    policy = POLICIES[name]
    told = records.sheet(whole_act(policy), policy, language, records.Place("consent.example/x", 41))
    text, page = records.as_text(told), seen(records.as_html(told))
    notice = next(iter(policy.notices.values()))[1]
    for said in (text, page.text):
        for purpose in policy.purposes.values():
            assert dpv.worded(purpose.name, language)[0] in said
            assert dpv.worded(purpose.retention.reason, language)[0] in said
            for recipient in purpose.recipients:
                assert recipient.name in said
        assert dpv.worded(notice.withdrawal, language)[0] in said
        for exact in (
            policy.tenant.controller.name,
            policy.tenant.controller.email,
            notice.hash,
            notice.complaint.name,
        ):
            assert exact in said
        for exact in ("consent.example/x", "41", str(uuid.UUID(int=7)), WORDS.get(language, ENGLISH).status["given"]):
            assert exact in said


class Page(HTMLParser):
    """What a page says, and what of it would load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def seen(page: str) -> Page:
    found = Page()
    found.feed(page)
    return found


@pytest.mark.parametrize(("name", "language"), [("demo", "de"), ("demo", "en"), ("demo-fr", "fr"), ("demo-at", "en")])
def test_a_page_can_be_read_by_everybody_and_loads_nothing(name: str, language: str):
    policy = POLICIES[name]
    told = records.sheet(whole_act(policy), policy, language, None)
    page = seen(records.as_html(told))
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "form", "a"} & set(tags)
    assert not [
        value
        for _, attrs in page.tags
        for key, value in attrs.items()
        if key in ("src", "href") or key.startswith("on")
    ]
    assert page.tags[0] == ("html", {"lang": "de" if language == "de" else "en"})
    assert [tag for tag in tags if tag[0] == "h" and tag[1:].isdigit()] == ["h1", *["h2"] * 9]
    scopes = [attrs.get("scope") for tag, attrs in page.tags if tag == "th"]
    assert scopes == ["col"] * 6 + ["row"] * len(told.decisions)
    spoken = {attrs["lang"] for tag, attrs in page.tags if tag == "span"}
    own = set(policy.tenant.languages) - {page.tags[0][1]["lang"]}
    assert spoken == (own & {language} or (own if language not in policy.tenant.languages else set()))


def test_what_people_wrote_is_text_on_a_page():
    act = event(("analytics", "given"), subject=Subject("login", "<script>alert(1)</script>"))
    page = records.as_html(records.sheet(act, DEMO, "en", None))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_moments_and_durations_in_words():
    assert moment(NOW, GERMAN) == "1. Mai 2026, 12:30 Uhr (UTC)"
    assert moment(NOW.astimezone(UTC), ENGLISH) == "1 May 2026, 12:30 (UTC)"
    assert lasting(Duration.parse("P13M"), GERMAN) == "1 Jahr, 1 Monat"
    assert lasting(Duration.parse("P24M"), ENGLISH) == "2 years"
    assert lasting(Duration.parse("P1DT2H3M4S"), ENGLISH) == "1 day, 2 hours, 3 minutes, 4 seconds"


# -- shown ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["service", "publishable", "dpo"])
async def test_a_receipt_is_shown_to_whoever_has_it(tenant: Tenant, person: dict[str, str], key: str):
    made = (await tenant.record(WEB, subject=person)).json()
    asked = {"receipt": made["receipt"], "language": "de"}
    shown = (await tenant.post("/v1/receipts", asked, key)).json()
    assert shown["record"] == made["record"]
    assert shown["origin"] == f"localhost/{tenant.slug}"
    assert shown["html"] is None
    assert "Nutzung messen\n  Entscheidung: Einwilligung erteilt" in shown["text"]
    assert f"Eintrag: {shown['index']}\n" in shown["text"]
    page = (await tenant.post("/v1/receipts", asked | {"format": "html"}, key)).json()
    assert page["text"] is None
    assert page["html"].startswith('<!doctype html>\n<html lang="de">')
    bare = (await tenant.post("/v1/receipts", asked | {"format": "json"}, key)).json()
    assert bare == shown | {"text": None}


async def test_a_receipt_is_shown_under_the_policy_that_it_names(tenant: Tenant, person: dict[str, str]):
    made = (await tenant.record(WEB, subject=person)).json()
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        purposes = {name: purpose for name, purpose in DEMO.purposes.items() if name != "analytics"}
        home = msgspec.structs.replace(DEMO.tenant, issuers=())
        gone = msgspec.structs.replace(DEMO, tenant=home, purposes=purposes)
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), gone)
    shown = await tenant.post("/v1/receipts", {"receipt": made["receipt"]})
    assert shown.json()["record"] == made["record"]


async def test_what_proves_nothing_here_is_refused(
    tenant: Tenant, make_tenant: Tenants, demo_policy: Policy, person: dict[str, str]
):
    other = await make_tenant.make(demo_policy)
    made = (await tenant.record(WEB, subject=person)).json()["receipt"]
    foreign = (await other.record(WEB, subject=person)).json()["receipt"]
    linked = (await tenant.post("/v1/links", {"identifier": person, "login": uuid.uuid4().hex})).json()["receipt"]
    extra = made.split("\n")[1]
    opening = base64.b64decode(extra.removeprefix("extra "))
    twice = b'{"payload":{"status":"withdrawn"},' + opening[1:]  # who takes the first of two reads something else
    deep = b'{"payload":' + b"[" * 20_000 + b"]" * 20_000 + b',"salt":"","tag":""}'
    otherwise = [made.replace(extra, f"extra {base64.b64encode(raw).decode()}") for raw in (twice, deep)]
    head, sign, rest = made.partition("index ")
    wrong = {
        "is of another ledger": foreign,
        "this is no proof": "hello",
        "not in the tree": f"{head}{sign}{int(rest.partition(chr(10))[0]) - 1}\n{rest.partition(chr(10))[2]}",
        "is about a link": linked,
    }
    for why, receipt in [*wrong.items(), *(("does not open the entry", one) for one in otherwise)]:
        answer = await tenant.post("/v1/receipts", {"receipt": receipt})
        assert answer.status_code == 422, why
        (error,) = answer.json()["errors"]
        assert error["pointer"] == "/receipt"
        assert why in error["detail"]
    shape = await tenant.post("/v1/receipts", {"receipt": 1, "language": "deutsch", "format": "pdf"})
    assert {error["pointer"] for error in shape.json()["errors"]} == {"/receipt", "/language", "/format"}


@pytest.mark.parametrize(
    ("changed", "fitting"),
    [
        ({}, True),
        ({"records": [EventRecord("*", "withdrawn", None, None, None, NOW)], "notice": None}, True),
        ({"records": [EventRecord("gone", "given", None, None, None, NOW)]}, False),
        ({"notice": EventNotice("web-banner", 2, "de", "x")}, False),
        ({"notice": EventNotice("web-banner", 1, "de", "x")}, False),
        ({"notice": EventNotice("gone", 1, "de", "x")}, False),
    ],
)
def test_a_policy_fits_an_act_that_it_can_explain(changed: dict[str, Any], fitting: bool):
    act = msgspec.structs.replace(event(("analytics", "given")), **changed)
    assert records.fits(act, DEMO) is fitting


def test_a_grant_that_is_reported_late_ends_by_the_time_of_the_act():
    act = event(("analytics", "given"))
    early = NOW - timedelta(days=31)
    late = msgspec.structs.replace(act, records=[msgspec.structs.replace(act.records[0], occurred_at=early)])
    status = record(late)["dpv:hasProcess"][0]["dpv:hasConsentStatus"]
    assert (status["dpv:isIndicatedAtTime"], status["dct:valid"]) == ("2026-03-31T12:30:00Z", "2027-04-30T12:30:00Z")
