"""Records against what others say of them: the terms of DPV 2.3, the fields of ISO/IEC TS 27560:2023, JSON-LD 1.1."""

from __future__ import annotations

import csv
import io
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import SECRET, Tenants, external
from hypothesis import given, settings
from hypothesis import strategies as st
from pyld import jsonld

from consent_service import ids, records
from consent_service.auth import Credential
from consent_service.consents.batch import _event
from consent_service.consents.model import ConsentBody, Record, Shown
from consent_service.consents.prepare import Sent, prepare
from consent_service.policies import CHANNELS, METHODS, Policy, find, load
from consent_service.records.dpv import rights
from consent_service.records.terms import CONTEXT, RIGHTS
from consent_service.states import STATUSES
from consent_service.subjects import Hasher, Subject

TENANTS = ("demo", "demo-at", "demo-fr")
POLICIES = {name: load(find(name)) for name in TENANTS}

REST = {
    "dpv": """
        ConsentRecord ConsentReceipt Process DataSubject DataController LegalEntity DataProtectionOfficer Representative
        Recipient DataProcessor ThirdParty DataProtectionAuthority GuardianOfDataSubject Assessment
        AutomatedDecisionMaking SpecialCategoryPersonalData StorageLocation StorageDuration TemporalDuration
        UntilEventDuration Required Optional NotApplicable NotAvailable DataSubjectDataSource ThirdPartyDataSource
        PublicDataSource ContractActive ContractTerminationStatus Collect Store Use Share Aggregate Analyse
        Combine Profiling Observe Monitor Match Assess
        hasRecordOfActivity hasProcess hasDataSubject hasRelationWithDataSubject hasDataController
        hasJointDataControllers hasDataProtectionOfficer hasRepresentative hasRecipient hasAuthority hasName hasAddress
        hasContact hasCountry hasJurisdiction hasApplicableLaw hasPersonalData hasNecessity hasDataSource hasProcessing
        hasStorageCondition hasDuration hasLocation hasThirdCountry hasScope hasContext hasAlgorithmicLogic
        hasHumanInvolvement hasAssessment hasJustification hasApplicability
    """,
    "pd": """
        Age BrowsingBehavior CreditWorthiness DeviceBased EducationQualification EmailAddress Health IPAddress Interest
        Location Name Picture Preference Professional Purchase TelephoneNumber Transactional
    """,
    "loc": "AT CH DE FR US",
}
"""Terms of DPV 2.3, of its personal data and of its locations, that stand in none of the lists in the folder."""

PARTY = ("@type", "dct:identifier", "dpv:hasName", "dpv:hasAddress", "dpv:hasContact", "dpv:hasCountry")
PROCESS, EVENT = "dpv:hasProcess/", "dpv:hasProcess/dpv:hasConsentStatus|dpv:hasStatus/"
FIELDS = {
    "6.3.3 schema version": "dct:conformsTo",
    "6.3.3 record id": "dct:identifier",
    "6.3.3 pii principal id": "dpv:hasDataSubject/dct:identifier",
    "6.3.4 privacy notice": "dpv:hasNotice/dct:identifier",
    "6.3.4 language": "dct:language",
    "6.3.4 purpose": PROCESS + "dpv:hasPurpose/dct:identifier",
    "6.3.4 purpose type": PROCESS + "dpv:hasPurpose/@type",
    "6.3.4 lawful basis (GDPR)": PROCESS + "dpv:hasLegalBasis",
    "6.3.4 pii information": PROCESS + "dpv:hasPersonalData",
    "6.3.4 pii controllers": "dpv:hasDataController",
    "6.3.4 collection method (GDPR)": PROCESS + "dpv:hasDataSource",
    "6.3.4 processing method (GDPR)": PROCESS + "dpv:hasProcessing",
    "6.3.4 storage locations": PROCESS + "dpv:hasStorageCondition[dpv:StorageLocation]/dpv:hasLocation",
    "6.3.4 retention period": PROCESS + "dpv:hasStorageCondition[dpv:StorageDuration]/dpv:hasDuration/rdf:value",
    "6.3.4 processing locations (GDPR)": PROCESS + "dpv:hasLocation",
    "6.3.4 jurisdiction": "dpv:hasJurisdiction",
    "6.3.4 recipient third parties": PROCESS + "dpv:hasRecipient",
    "6.3.4 withdrawal method": "dpv:hasConsentControl/dpv:isExercisedAt",
    "6.3.4 privacy rights (GDPR)": PROCESS + "dpv:hasRight",
    "6.3.4 authority party (GDPR)": "dpv:hasAuthority/dpv:hasName",
    "6.3.5 pii type": PROCESS + "dpv:hasPersonalData/@type",
    **{f"6.3.6 controller {member}": f"dpv:hasDataController/{member}" for member in PARTY},
    "6.3.7 event time": EVENT + "dpv:isIndicatedAtTime",
    "6.3.7 validity duration": EVENT + "dpv:hasDuration",
    "6.3.7 entity id": EVENT + "dpv:isIndicatedBy",
    "6.3.7 event type and state": EVENT + "@type",
}
"""What a record must say, by clause; what only the GDPR makes compulsory says so. `a|b`: either; `a[t]`: of a type."""

RECEIPT = {
    "schema version": "dct:conformsTo",
    "receipt id": "dct:identifier",
    "created": "dct:created",
    "publisher": "dct:publisher",
    "recipient": "schema:recipient",
    "record": "dpv:hasRecordOfActivity/@type",
}


def reached(node: Any, path: str) -> Iterator[Any]:
    """Every value at a path; None where a node on the way lacks it."""
    if isinstance(node, list):
        for one in node:
            yield from reached(one, path)
        return
    if not path:
        yield node
        return
    step, _, rest = path.partition("/")
    names, _, kind = step.removesuffix("]").partition("[")
    found = next((node[name] for name in names.split("|") if name in node), None)
    if kind:
        found = [one for one in found or () if one["@type"] == kind]
    if found in (None, [], {}, ""):
        yield None
    else:
        yield from reached(found, rest)


def lacking(receipt: dict[str, Any]) -> list[str]:
    """Which fields a receipt and its record lack."""
    record = receipt["dpv:hasRecordOfActivity"]
    told = {name: list(reached(receipt, path)) for name, path in RECEIPT.items()}
    told |= {name: list(reached(record, path)) for name, path in FIELDS.items()}
    for member in PARTY:
        if record["dpv:hasRecipient"] != {"dpv:hasApplicability": "dpv:NotApplicable"}:
            told[f"6.3.6 recipient {member}"] = list(reached(record, f"dpv:hasRecipient/{member}"))
    return [name for name, values in told.items() if not values or None in values]


def terms(node: Any) -> Iterator[str]:
    """Every term of DPV in a receipt, as it is written."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name != "@context":
                yield from terms(name)
                yield from terms(value)
    elif isinstance(node, list):
        for value in node:
            yield from terms(value)
    elif isinstance(node, str) and re.fullmatch(r"(dpv|eu-gdpr|pd|loc):[A-Za-z0-9-]+", node):
        yield node


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every term that there is."""
    lists = [
        csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))) for file in external("dpv-2.3").glob("*.csv")
    ]
    listed = {f"{row['vocab']}:{row['term']}" for rows in lists for row in rows if "term" in row}
    return listed | {f"{prefix}:{name}" for prefix, names in REST.items() for name in names.split()}


def test_no_term_is_declared_beside_the_lists_that_stands_in_them():
    listed = {f"{row['vocab']}:{row['term']}" for file in external("dpv-2.3").glob("*.csv") for row in rows_of(file)}
    beside = {f"{prefix}:{name}" for prefix, names in REST.items() for name in names.split()}
    assert beside & listed == set()
    assert "dpv:ConsentTerminated" not in listed | beside


def rows_of(file: Path) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))) if "term" in row]


def leaves(node: Any) -> int:
    """How many values a tree of JSON-LD has, each counted once, whether compact or expanded."""
    if isinstance(node, dict):
        if "@value" in node:
            return 1
        return sum(leaves(value) for name, value in node.items() if name != "@context")
    return sum(map(leaves, node)) if isinstance(node, list) else 1


def offline(address: str, _options: Any) -> Any:
    raise AssertionError(f"{address} would have to be loaded")


def expanded(receipt: dict[str, Any]) -> Any:
    return jsonld.expand(receipt, {"documentLoader": offline})


def names(node: Any) -> Iterator[str]:
    """Every property and every type of an expanded tree."""
    if isinstance(node, dict):
        yield from (name for name in node if not name.startswith("@"))
        found = node.get("@type", [])
        yield from (found if isinstance(found, list) else [found])
        for value in node.values():
            yield from names(value)
    elif isinstance(node, list):
        for value in node:
            yield from names(value)


async def answers(make_tenant: Tenants, policy: Policy) -> list[tuple[str, str, dict[str, Any]]]:
    """The record in the answer to every status that every purpose takes."""
    sealed = msgspec.structs.replace(policy, tenant=msgspec.structs.replace(policy.tenant, issuers=()))
    tenant, found = await make_tenant.make(sealed), []
    for purpose in policy.purposes.values():
        shown = next((v[1] for v in policy.notices.values() if purpose.id in v[1].purposes), None)
        notice = None if shown is None else {"id": shown.id, "version": 1, "language": policy.tenant.languages[0]}
        for status in STATUSES:
            channel = purpose.channels[0] if status in ("given", "confirmed", "renewed", "requested") else None
            contact = "ada@shop.example" if purpose.contact == "required" and channel else None
            record = {"purpose": purpose.id, "status": status, "channel": channel, "contact": contact}
            body = {"id": uuid.uuid4().hex, "subject": {"type": "login", "id": uuid.uuid4().hex}, "records": [record]}
            answer = await tenant.post("/v1/consents", {**body, "method": "form", "notice": notice})
            if answer.status_code == 201:
                found.append((purpose.id, status, answer.json()["record"]))
    return found


@pytest.mark.parametrize("name", TENANTS)
async def test_every_status_of_every_purpose_is_recorded_in_known_terms_and_whole(
    make_tenant: Tenants, known: set[str], name: str
):
    policy = POLICIES[name]
    found = await answers(make_tenant, policy)
    assert {status for _, status, _ in found} == set(STATUSES)
    assert {purpose for purpose, _, _ in found} == policy.purposes.keys()
    strange = {(purpose, status, term) for purpose, status, one in found for term in set(terms(one)) - known}
    assert strange == set()
    assert {(purpose, status): gaps for purpose, status, one in found if (gaps := lacking(one))} == {}
    for _, _, one in found:
        tree = expanded(one)
        assert leaves(tree) == leaves(one)
        assert [name for name in names(tree) if not name.startswith(("https://", "http://"))] == []


def test_the_lists_tell_a_wrong_term_and_a_missing_field(known: set[str]):
    receipt = a_receipt()
    assert set(terms(receipt)) <= known
    assert lacking(receipt) == []
    record = receipt["dpv:hasRecordOfActivity"]
    del record["dct:language"], record["dpv:hasProcess"][0]["dpv:hasRight"]
    record["dpv:hasProcess"][0]["dpv:hasConsentStatus"]["@type"] = "dpv:ConsentTerminated"
    assert lacking(receipt) == ["6.3.4 language", "6.3.4 privacy rights (GDPR)"]
    assert set(terms(receipt)) - known == {"dpv:ConsentTerminated"}


def test_control_a_member_that_the_context_does_not_know_is_lost():
    receipt = a_receipt()
    receipt["unknown"] = "x"
    assert leaves(expanded(receipt)) < leaves(receipt)


def test_expanded_it_says_who_decided_what_when():
    (receipt,) = expanded(a_receipt())
    base = receipt["@id"].removesuffix("#receipt")
    assert base.startswith("urn:uuid:")
    (record,) = receipt["https://w3id.org/dpv#hasRecordOfActivity"]
    (process,) = record["https://w3id.org/dpv#hasProcess"]
    (status,) = process["https://w3id.org/dpv#hasConsentStatus"]
    assert status["@type"] == ["https://w3id.org/dpv#ConsentGiven", "https://w3id.org/dpv#ExplicitlyExpressedConsent"]
    assert status["https://w3id.org/dpv#isIndicatedBy"] == [{"@id": f"{base}#subject"}]
    assert record["https://w3id.org/dpv#hasDataSubject"][0]["@id"] == f"{base}#subject"
    (at,) = status["https://w3id.org/dpv#isIndicatedAtTime"]
    assert at["@type"] == "http://www.w3.org/2001/XMLSchema#dateTime"
    (recipient,) = process["https://w3id.org/dpv#hasRecipient"]
    assert recipient["@id"] == record["https://w3id.org/dpv#hasRecipient"][0]["@id"] == f"{base}#recipient-postwerk"


def test_rights_follow_from_the_legal_basis_as_dpv_maps_them():
    table = external("dpv-2.3") / "eu-gdpr-legal_basis_rights_mapping.csv"
    mapped: dict[str, set[str]] = {}
    for row in csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))):
        mapped.setdefault(row["legal_basis"].rpartition("#")[2], set()).add(row["right"].rpartition("#")[2])
    letters = dict(zip("abcdef", RIGHTS, strict=True))
    for letter, basis in letters.items():
        assert set(RIGHTS[basis]) == mapped[f"A6-1-{letter}"] - {"A14"}, basis
    for policy in POLICIES.values():
        for purpose in policy.purposes.values():
            told = list(rights(purpose))
            assert len(told) == len(set(told))
            assert ("A14" in told) == (purpose.sources != ("data_subject",))
            assert ("A21" in told) == purpose.objectable
            assert ("A7-3" in told) == purpose.needs_consent


def test_the_context_knows_every_prefix_and_defines_nothing_twice():
    prefixes = {name for name in CONTEXT if ":" not in name}
    assert {name.partition(":")[0] for name in CONTEXT if ":" in name} <= prefixes


# -- whatever is accepted -------------------------------------------------------------------------------------------

HASHER = Hasher(SECRET.encode(), 1)
SERVICE = Credential(1, "shop", "service", "Shop", frozenset({"write:attested"}), frozenset(), None)
NOW = datetime(2026, 5, 1, tzinfo=UTC)
WHO = "erika.mustermann.canary"


def accepted(policy: Policy, body: ConsentBody) -> dict[str, Any] | None:
    """The receipt of an act, where it is one."""
    act, _ = prepare(policy, 1, Sent(body, range(len(body.records)), ()), SERVICE, "key", HASHER)
    if act is None:
        return None
    guardian = ids.event_id() if act.guardian else None
    event = _event(act, list(act.records), ids.event_id(), guardian, NOW)
    made = records.receipt(event, policy)
    assert made == records.receipt(msgspec.json.decode(msgspec.json.encode(event), type=type(event)), policy)
    return msgspec.json.decode(made)


def a_receipt() -> dict[str, Any]:
    """Of one consent."""
    record = Record(purpose="marketing.email", status="given", channel="email")
    shown = Shown("web-banner", 1, "de")
    made = accepted(
        POLICIES["demo"],
        ConsentBody(subject=Subject("login", WHO), records=(record,), notice=shown, method="form"),
    )
    assert made is not None
    return made


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, ConsentBody]:
    """An act that a service might report to one of the example tenants, sound or not."""
    name = draw(st.sampled_from(TENANTS))
    policy = POLICIES[name]
    notice = draw(
        st.sampled_from([None, *(version for versions in policy.notices.values() for version in versions.values())])
    )
    pool = [*policy.purposes, *(() if notice is None else notice.purposes * 3), "*"]

    def record() -> Record:
        purpose = policy.purposes.get(draw(st.sampled_from(pool)))
        recipients = [] if purpose is None else [it.id for it in purpose.recipients]
        return Record(
            purpose="*" if purpose is None else purpose.id,
            status=draw(st.sampled_from(STATUSES)),
            channel=draw(st.sampled_from([None, *(CHANNELS if purpose is None else purpose.channels)])),
            contact=draw(st.sampled_from([None, f"{WHO}@shop.example"])),
            recipient=draw(st.sampled_from([None, *recipients])),
            occurred_at=draw(st.sampled_from([None, NOW - timedelta(days=40)])),
        )

    return name, ConsentBody(
        subject=Subject("login", WHO),
        records=tuple(record() for _ in range(draw(st.integers(1, 5)))),
        notice=None if notice is None else Shown(notice.id, notice.version, draw(st.sampled_from(sorted(notice.text)))),
        method=draw(st.sampled_from([None, *METHODS])),
        evidence=draw(st.sampled_from([None, {"form": 1.5}])),
        guardian=draw(st.sampled_from([None, Subject("login", "eve")])),
    )


@given(bodies())
@settings(max_examples=400, deadline=None, database=None)
def test_whatever_is_accepted_has_a_whole_record_in_known_terms(known: set[str], told: tuple[str, ConsentBody]):
    name, body = told
    receipt = accepted(POLICIES[name], body)
    if receipt is None:
        return
    assert set(terms(receipt)) <= known
    assert lacking(receipt) == []
    assert leaves(expanded(receipt)) == leaves(receipt)
    assert WHO not in msgspec.json.encode(receipt).decode()
