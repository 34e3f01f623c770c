"""The policies room: reading and refusing files, the rules, the plan in words, durations, canonical form."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent_service.errors import FieldError, PolicyError
from consent_service.policies import (
    CHANNELS,
    EXPLICIT_METHODS,
    GRADES,
    METHODS,
    Change,
    Duration,
    Issuer,
    Policy,
    Purpose,
    canonical,
    decode_policy,
    find,
    lint,
    load,
    plan,
)
from consent_service.policies.lint import MISSING_RULES, PRESENT_RULES, PURPOSE_RULES
from consent_service.policies.model import (
    AgeRule,
    Declared,
    OnOutage,
    Recipient,
    Retention,
    SignificantDecision,
    dec_hook,
)
from consent_service.policies.plan import SENTENCES

DEMO = load(find("demo"))
ANALYTICS, FRAUD, BANNER = (
    "purposes/analytics.toml",
    "purposes/fraud.prevention.toml",
    "notices/web-banner/1/notice.toml",
)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the example tenant to spoil."""
    return shutil.copytree(find("demo"), tmp_path / "demo")


def edit(folder: Path, file: str, old: str, new: str) -> None:
    """Replace a text that must be there; an empty `old` puts `new` in front, creating the file if need be."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def refusals(folder: Path) -> tuple[FieldError, ...]:
    with pytest.raises(PolicyError) as caught:
        load(folder)
    return caught.value.errors


# Loading the example --------------------------------------------------------------------------------------------------


def test_demo_has_what_the_interface_promises():
    assert set(DEMO.purposes) == {
        "analytics", "personalisation", "comfort.preferences", "marketing.email", "newsletter", "marketing.phone",
        "marketing.push", "profiling", "offer.automated", "telemetry.drone", "health.sensor", "repair.call",
        "fraud.prevention", "share.partner",
    }  # fmt: skip
    assert set(DEMO.notices) == {"web-banner", "account", "phone-script", "drone-onboarding"}
    assert {iso: one.digital_consent_age for iso, one in DEMO.jurisdictions.items()} == {
        "DE": 16, "AT": 14, "FR": 15, "NL": 16, "IE": 16,
    }  # fmt: skip
    assert DEMO.tenant.id == "demo"


def test_demo_banner_presents_every_web_and_email_purpose_and_account_all():
    shown = {name for name, purpose in DEMO.purposes.items() if {"web", "email"} & set(purpose.channels)}
    assert set(DEMO.notices["web-banner"][1].purposes) == shown
    assert set(DEMO.notices["account"][1].purposes) == set(DEMO.purposes)


def test_demo_purposes_declare_what_sets_them_apart():
    purposes = DEMO.purposes
    assert [name for name, purpose in purposes.items() if purpose.on_outage.behaviour != "deny"] == ["fraud.prevention"]
    assert [name for name, purpose in purposes.items() if purpose.reuse or purpose.parent] == []
    assert {name for name, purpose in purposes.items() if purpose.direct_marketing} == {
        "marketing.email", "marketing.phone", "marketing.push", "newsletter",
    }  # fmt: skip
    assert {name for name, purpose in purposes.items() if purpose.needs_explicit} == {
        "health.sensor",
        "offer.automated",
    }
    assert [name for name, purpose in purposes.items() if purpose.needs_fact] == ["repair.call"]
    assert purposes["newsletter"].double_opt_in
    assert purposes["newsletter"].contact == purposes["marketing.phone"].contact == "required"
    assert purposes["marketing.email"].contact == "optional"
    assert purposes["marketing.phone"].use_is_recorded
    assert [recipient.id for recipient in purposes["share.partner"].recipients] == ["aerosicher", "skyward-academy"]


def test_demo_prose_can_be_read_in_both_languages():
    for versions in DEMO.notices.values():
        for language, text in versions[1].text.items():
            assert 80 <= len(text.split()) <= 200, (versions[1].id, language)


def test_closed_lists_are_those_of_the_interface():
    assert CHANNELS == ("web", "app", "email", "phone", "push", "voice", "device", "shop")
    assert GRADES == ("imported", "anonymous_device", "signed_link", "service_attested", "login")
    assert len(METHODS) == 12
    assert set(METHODS) > EXPLICIT_METHODS


def test_find_takes_a_path_and_names_what_there_is(demo: Path):
    assert load(find(str(demo))) == DEMO
    with pytest.raises(PolicyError, match=r"no policy `demmo` and no such folder; did you mean `demo`\?"):
        find("demmo")


def test_missing_folder(tmp_path: Path):
    with pytest.raises(PolicyError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_dot_files_and_foreign_line_ends_change_nothing(demo: Path):
    (demo / ".DS_Store").write_bytes(b"\x00")
    prose = demo / "notices/account/1/de.md"
    prose.write_bytes(prose.read_bytes().replace(b"\n", b"\r\n"))
    assert load(demo).hash == DEMO.hash


# The country organisations --------------------------------------------------------------------------------------------

GROUP = {name: load(find(name)) for name in ("demo", "demo-at", "demo-fr")}


@pytest.mark.parametrize("name", GROUP)
def test_an_example_keeps_every_rule_and_presents_every_purpose(name: str):
    policy = GROUP[name]
    assert lint(policy) == []
    assert policy.tenant.id == name
    assert decode_policy(canonical(policy)).hash == policy.hash
    assert {shown for versions in policy.notices.values() for shown in versions[1].purposes} == set(policy.purposes)


def test_no_two_tenants_share_an_id_an_audience_or_a_site():
    tenants = [policy.tenant for policy in GROUP.values()]
    audiences = [(login.issuer, login.audience) for tenant in tenants for login in tenant.issuers]
    sites = [tenant.cookie_domain for tenant in tenants if tenant.cookie_domain is not None]
    for names in ([tenant.id for tenant in tenants], audiences, sites):
        assert len(set(names)) == len(names), names


@pytest.mark.parametrize("name", ["demo-at", "demo-fr"])
def test_customers_log_in_at_the_group_and_officers_with_two_factors(name: str):
    issuers = {one.kind: one for one in GROUP[name].tenant.issuers}
    assert issuers["login"].issuer == "https://login.falke.example"
    officer = issuers["officer"]
    assert {"approver", "admin"} <= set(officer.roles.values())
    assert all("mfa" in officer.assurance[role].amr for role in ("approver", "admin"))


def test_the_same_purpose_differs_by_country():
    def told(purpose: str) -> list[tuple[str, str]]:
        purposes = [GROUP[name].purposes[purpose] for name in ("demo", "demo-at", "demo-fr")]
        return [(purpose.legal_basis, str(purpose.retention.period)) for purpose in purposes]

    assert told("analytics") == [("consent", "P13M"), ("consent", "P6M"), ("legitimate_interest", "P25M")]
    assert told("marketing.phone") == [("consent", "P60M"), ("consent", "P36M"), ("consent", "P60M")]
    assert told("telemetry.drone") == [("consent", "P90D"), ("consent", "P60D"), ("contract", "P30D")]
    ages = {policy.jurisdictions[policy.tenant.jurisdiction].digital_consent_age for policy in GROUP.values()}
    assert ages == {16, 14, 15}
    for name in ("demo-at", "demo-fr"):
        rules = {purpose.conflict for purpose in GROUP[name].purposes.values()}
        assert rules == {"strictest", "latest_explicit", "account_wins"}


# What is refused ------------------------------------------------------------------------------------------------------

VALID_FOR = 'valid_for = "P13M"'
BROKEN = [
    # file, text that is there, text instead, pointer, what to write instead
    (ANALYTICS, VALID_FOR, 'vaild_for = "P13M"', "/vaild_for", "did you mean `valid_for`?"),
    (ANALYTICS, VALID_FOR, 'valid_for = "13 months"', "/valid_for", "write for example P13M"),
    (ANALYTICS, VALID_FOR, "valid_for = 13", "/valid_for", "such as P13M"),
    (ANALYTICS, VALID_FOR, 'valid_for = "P200Y"', "/valid_for", "longer than a hundred years"),
    (ANALYTICS, VALID_FOR, 'valid_for = "P0D"', "/valid_for", "write for example P13M"),
    (ANALYTICS, VALID_FOR, "", "/valid_for", 'add for example `valid_for = "P13M"`'),
    (ANALYTICS, 'reask_after_refusal = "P6M"', "", "/reask_after_refusal", 'add `reask_after_refusal = "P6M"`'),
    (ANALYTICS, 'basis = "consent"', 'basis = "consnt"', "/legal_basis", "did you mean `consent`?"),
    (ANALYTICS, '"web", "app"', '"web", "ap"', "/channels/1", "did you mean `app`?"),
    (ANALYTICS, '"web", "app"', "", "/channels", "write at least one value or character"),
    (ANALYTICS, '"web", "app"', '"web", "web"', "/channels", "names `web` 2 times; write it once"),
    (ANALYTICS, 'channels = ["web", "app"]', 'channels = "web"', "/channels", "write a list"),
    (ANALYTICS, "dpv:Service", "ServiceX:", "/dpv", "such as dpv:DirectMarketing"),
    (ANALYTICS, "pd:Browsing", "x:Browsing", "/data_categories/0", "such as pd:EmailAddress"),
    (ANALYTICS, VALID_FOR, VALID_FOR + "\ndirect_marketing = 1", "/direct_marketing", "write `true` or `false`"),
    (ANALYTICS, VALID_FOR, VALID_FOR + "\nvalid_from = 2026-01-31T00:00:00", "/valid_from", "with its zone"),
    (ANALYTICS, VALID_FOR, VALID_FOR + '\nage = {minimum = "digital"}', "/age/minimum", '"digital_consent"'),
    (ANALYTICS, 'en = "Usage statistics"', "", "/name", 'lacks the language en; add `en = "…"`'),
    (ANALYTICS, 'en = "Usage', 'english = "Usage', "/name", "two small letters"),
    (ANALYTICS, 'en = "Usage statistics"', 'en = "\\u0000"', "/name/en", "remove its escape sequence"),
    (ANALYTICS, 'period = "P13M"', "", "/retention/period", "add `period = …`"),
    (ANALYTICS, 'id = "analytics"', 'id = "analitics"', "/id", 'write `id = "analytics"` or rename'),
    (ANALYTICS, "id = ", "id == ", "", "is not TOML"),
    (FRAUD, "date = 2026-01-12", 'date = "soon"', "/assessment/date", "such as 2026-01-31"),
    ("tenant.toml", 'jurisdiction = "DE"', 'jurisdiction = "Germany"', "/jurisdiction", "two capital letters"),
    ("tenant.toml", 'jurisdiction = "DE"', 'jurisdiction = "DK"', "/jurisdiction", "write jurisdictions/DK.toml"),
    ("tenant.toml", '["de", "en"]', '["de", "en", "de"]', "/languages", "write it once"),
    ("jurisdictions/DE.toml", "age = 16", "age = 18", "/digital_consent_age", "write a smaller number"),
    ("jurisdictions/DE.toml", 'country = "DE"', 'country = "AT"', "/country", 'write `country = "DE"`'),
    (BANNER, "version = 1", "version = 2", "/version", "write `version = 1` or rename"),
    (BANNER, "material = true", "material = false", "/material", "write `material = true` in version 1"),
    (BANNER, "dpo = ", "dpo_name = ", "/dpo", "is missing; add `dpo = …`"),
    (BANNER, "dpo = ", 'text = {en = "x"}\ndpo = ', "/text", "prose lies beside it"),
    (BANNER, '"analytics"', '"analytic"', "/purposes/0", "remove it or write purposes/analytic.toml"),
    (BANNER, '["postwerk", ', "[", "/recipients", 'recipients = ["aerosicher", "skyward-academy", "postwerk"]'),
    ("purposes/readme.txt", "", "x", "", "name it `readme.toml` or remove it"),
    ("tenants.toml", "", "x", "", "did you mean `tenant.toml`?"),
    ("notices/readme.md", "", "x", "", "is no folder; remove it"),
    ("notices/account/v2/notice.toml", "", "x", None, "name the folders 1, 2, 3"),
    ("notices/account/1/english.md", "", "x", "", "prose files are named en.md"),
    ("notices/account/1/fr.md", "", "x", "", "remove it or add `fr` to languages"),
    ("notices/account/1/en.md", "# Privacy", "\x00", "", "U+0000; remove it"),
]


@pytest.mark.parametrize(("file", "old", "new", "key", "remedy"), BROKEN, ids=[f"{b[0]}:{b[2]!r}" for b in BROKEN])
def test_an_error_names_file_key_and_remedy(demo: Path, file: str, old: str, new: str, key: str | None, remedy: str):
    edit(demo, file, old, new)
    errors = refusals(demo)
    pointer = f"{file}#{key}" if key is not None else "notices/account/v2#"
    assert [error for error in errors if error.pointer == pointer and remedy in error.detail], errors


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("tenant.toml", "write this file"),
        ("purposes", "make this folder"),
        ("notices/account/1/notice.toml", "write this file"),
        ("notices/account/1/de.md", "write what people read in `de`"),
        ("notices/account/1", "write notices/account/1/notice.toml"),
    ],
)
def test_what_is_missing_is_named(demo: Path, file: str, remedy: str):
    path = demo / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    pointer = "notices/account#" if file == "notices/account/1" else f"{file}#"
    assert [error for error in refusals(demo) if error.pointer == pointer and remedy in error.detail]


def test_bytes_that_are_no_text_and_empty_prose(demo: Path):
    (demo / ANALYTICS).write_bytes(b'id = "\xff"')
    (demo / "purposes/folder.toml").mkdir()
    (demo / "notices/account/1/en.md").write_text(" \n")
    details = {error.pointer: error.detail for error in refusals(demo)}
    assert details[f"{ANALYTICS}#"] == "is not UTF-8 (byte 6); save it as UTF-8"
    assert "make it a readable file" in details["purposes/folder.toml#"]
    assert "write the text that people are shown" in details["notices/account/1/en.md#"]


def test_every_error_of_every_file_comes_at_once(demo: Path):
    edit(demo, ANALYTICS, 'basis = "consent"', 'basis = "consnt"')
    edit(demo, ANALYTICS, "dpv:Service", "Service")
    edit(demo, FRAUD, "[assessment", "[assessmnt")
    edit(demo, "purposes/newsletter.toml", 'valid_for = "P24M"', "")
    edit(demo, BANNER, "dpo = ", "dpo_name = ")
    (demo / "notices/account/1/de.md").unlink()
    errors = refusals(demo)
    assert {error.pointer for error in errors} == {
        f"{ANALYTICS}#/legal_basis",
        f"{ANALYTICS}#/dpv",
        f"{FRAUD}#/assessmnt",
        f"{FRAUD}#/assessment/id",
        f"{FRAUD}#/assessment/date",
        "purposes/newsletter.toml#/valid_for",
        f"{BANNER}#/dpo",
        f"{BANNER}#/dpo_name",
        "notices/account/1/de.md#",
    }
    assert not any("needs consent" in error.detail for error in errors), "what is merely unread is not called missing"


# Rules ----------------------------------------------------------------------------------------------------------------


def changed(purpose: str, **fields: Any) -> Policy:
    """The example with one purpose changed."""
    one = msgspec.structs.replace(DEMO.purposes[purpose], **fields)
    return msgspec.structs.replace(DEMO, purposes=DEMO.purposes | {purpose: one})


def next_version(policy: Policy, notice: str, **fields: Any) -> Policy:
    """The policy with one more version of a notice."""
    versions = policy.notices[notice]
    number = max(versions) + 1
    added = msgspec.structs.replace(versions[number - 1], version=number, **fields)
    return msgspec.structs.replace(policy, notices=policy.notices | {notice: versions | {number: added}})


def trusting(*issuers: dict[str, Any]) -> Policy:
    """The policy with issuers."""
    plain = {"issuer": "https://id.example", "kind": "login", "audience": "us", "jwks_uri": "https://id.example/keys"}
    made = tuple(msgspec.convert({**plain, **issuer}, Issuer, dec_hook=dec_hook) for issuer in issuers)
    return msgspec.structs.replace(DEMO, tenant=msgspec.structs.replace(DEMO.tenant, issuers=made))


OFFICER = {"kind": "officer", "roles": {"dpo": "approver"}}
ABROAD = Recipient(id="far", name="Far Inc.", role="processor", country="US")
ADM = DEMO.purposes["offer.automated"].significant_adm
CAPPED = msgspec.structs.replace(DEMO.jurisdictions["DE"], max_valid_for={"phone": Duration(months=6)})
LAST_KNOWN = OnOutage(behaviour="last_known")
PARENTS = {"analytics": "profiling", "profiling": "analytics"}
CIRCLE = DEMO.purposes | {
    name: msgspec.structs.replace(DEMO.purposes[name], parent=parent) for name, parent in PARENTS.items()
}

FIRING = {
    "issuers_are_safe": trusting({"issuer": "http://id.example"}),
    "issuers_fit_their_kind": trusting({"scopes": ["check"]}),
    "consent_ends": changed("analytics", valid_for=None),
    "durations_last": changed("analytics", reask_after_refusal=Duration()),
    "interest_is_assessed": changed("fraud.prevention", assessment=None),
    "special_category_by_consent": changed("repair.call", special_category=True),
    "significant_decision_is_allowed": changed("fraud.prevention", significant_adm=ADM),
    "service_is_not_bundled": changed("analytics", required_for_service=True),
    "double_opt_in_is_consent": changed("repair.call", double_opt_in=True),
    "fact_is_no_consent": changed("analytics", requires_fact=True),
    "contact_has_a_channel": changed("analytics", contact="required"),
    "channels_differ": changed("analytics", channels=("web", "web")),
    "outage_is_declared_soundly": changed("analytics", on_outage=OnOutage(behaviour="allow")),
    "age_is_about_consent": changed("repair.call", age=AgeRule(minimum=16)),
    "transfers_are_safe": changed("analytics", recipients=(ABROAD,)),
    "recipients_differ": changed("analytics", recipients=(ABROAD, ABROAD)),
    "there_is_a_purpose": msgspec.structs.replace(DEMO, purposes={}),
    "tenant_is_known": msgspec.structs.replace(DEMO, jurisdictions={}),
    "languages_differ": msgspec.structs.replace(
        DEMO, tenant=msgspec.structs.replace(DEMO.tenant, languages=("de", "en", "en"))
    ),
    "texts_are_complete": changed("share.partner", name={"de": "Nachweise"}),
    "prose_is_complete": next_version(DEMO, "account", text={"de": "Text"}),
    "parents_exist": changed("analytics", parent="analysis"),
    "parents_have_an_end": msgspec.structs.replace(DEMO, purposes=CIRCLE),
    "inheritance_has_a_source": changed("analytics", parent="repair.call", inherits_consent=True),
    "recipients_agree": changed("analytics", recipients=(msgspec.structs.replace(ABROAD, id="postwerk"),)),
    "country_caps_validity": msgspec.structs.replace(DEMO, jurisdictions=DEMO.jurisdictions | {"DE": CAPPED}),
    "consents_are_presented": msgspec.structs.replace(DEMO, notices={}),
    "notices_present_purposes": next_version(DEMO, "account", purposes=("analytics", "gone")),
    "versions_follow": msgspec.structs.replace(DEMO, notices={"account": {3: DEMO.notices["account"][1]}}),
    "first_version_is_material": msgspec.structs.replace(
        DEMO, notices={"account": {1: msgspec.structs.replace(DEMO.notices["account"][1], material=False)}}
    ),
    "new_recipients_are_material": next_version(DEMO, "phone-script", recipients=("far",), material=False),
    "notices_name_recipients": next_version(DEMO, "phone-script", recipients=()),
    "recipients_can_be_reached": changed("analytics", recipients=(ABROAD,)),
    "optional_data_is_data": changed("analytics", optional_data=("pd:Name",)),
    "storage_is_known": msgspec.structs.replace(DEMO, tenant=msgspec.structs.replace(DEMO.tenant, storage=())),
    "required_notices_exist": changed("analytics", required_notice={"phone-script": 1}),
    "material_versions_are_required": next_version(DEMO, "phone-script"),
}


@pytest.mark.parametrize("rule", [*PURPOSE_RULES, *PRESENT_RULES, *MISSING_RULES], ids=lambda rule: rule.__name__)
def test_each_rule_fires_where_it_should_and_not_on_the_example(rule: Any):
    def found(policy: Policy) -> list[Any]:
        subjects = policy.purposes.values() if rule in PURPOSE_RULES else [policy]
        return [error for subject in subjects for error in rule(subject)]

    assert found(FIRING[rule.__name__])
    assert found(DEMO) == []
    assert rule.__doc__


@pytest.mark.parametrize(
    ("policy", "pointer", "remedy"),
    [
        (changed("analytics", on_outage=LAST_KNOWN), "on_outage/max_age", 'add for example `max_age = "PT15M"`'),
        (changed("analytics", on_outage=OnOutage(max_age=Duration(seconds=9))), "on_outage/max_age", "remove it"),
        (changed("analytics", legal_basis="contract", on_outage=OnOutage(behaviour="allow")), "behaviour", "deny"),
        (changed("repair.call", terminal_access="consent"), "required_for_service", "exemption for terminal_access"),
        (changed("analytics", parent="analytics"), "analytics.toml#/parent", "analytics → analytics"),
        (changed("analytics", required_notice={"banner": 1}), "required_notice/banner", "write one of account"),
        (changed("analytics", required_notice={"account": 2}), "required_notice/account", "versions that do: 1"),
        (next_version(DEMO, "account"), "marketing.push.toml#/required_notice/account", "required_notice.account = 2"),
        (changed("analytics", recipients=(ABROAD,)), BANNER, "`required_notice.web-banner = 2`"),
        (changed("analytics", recipients=(ABROAD,)), "recipients/0/contact", 'add for example `contact = "privacy@'),
        (changed("analytics", storage=("US",)), "analytics.toml#/storage", "where no recipient is; name who stores it"),
        (trusting({"jwks_uri": "http://id.example/keys"}), "issuers/0/jwks_uri", "write https"),
        (trusting({}, {"kind": "service", "scopes": ["check"]}), "issuers/1/audience", "stands twice"),
        (trusting({"kind": "service"}), "issuers/0/scopes", 'add e.g. `scopes = ["check"]`'),
        (trusting({"kind": "officer"}), "issuers/0/roles", "nobody has a role"),
        (trusting({**OFFICER, "assurance": {"admin": {"amr": ["mfa"]}}}), "assurance/admin", "nobody can get"),
        (trusting({**OFFICER, "assurance": {"approver": {}}}), "assurance/approver", "demands nothing"),
    ],
)
def test_rules_say_what_to_write(policy: Policy, pointer: str, remedy: str):
    assert [error for error in lint(policy) if pointer in error.pointer and remedy in error.detail], lint(policy)


@pytest.mark.parametrize(
    "policy",
    [
        changed("repair.call", required_for_service=False, terminal_access="strictly_necessary"),
        changed("analytics", on_outage=OnOutage(behaviour="last_known", max_age=Duration(seconds=900))),
        changed("profiling", parent="analytics", inherits_consent=True),
        trusting({"issuer": "http://127.0.0.1:9", "jwks_uri": "http://localhost:9/keys", "clients": ["shop"]}),
        trusting({**OFFICER, "assurance": {"approver": {"amr": ["mfa"]}}}),
        next_version(DEMO, "phone-script", material=False, changes={"de": "Tippfehler.", "en": "Typing errors."}),
        changed("share.partner", storage=("DE", "US")),
        changed("analytics", optional_data=("pd:DeviceBased",)),
    ],
)
def test_rules_leave_sound_policies_alone(policy: Policy):
    assert lint(policy) == []


def test_a_material_version_is_accepted_once_its_purposes_require_it(demo: Path):
    shutil.copytree(demo / "notices/phone-script/1", demo / "notices/phone-script/2")
    edit(demo, "notices/phone-script/2/notice.toml", "version = 1", "version = 2")
    concerned = ("marketing.email", "marketing.phone", "newsletter")
    wanted = {f"purposes/{name}.toml#/required_notice/phone-script" for name in concerned}
    assert {error.pointer for error in refusals(demo)} == wanted
    for name in concerned:
        edit(demo, f"purposes/{name}.toml", "", "required_notice.phone-script = 2\n")
    policy = load(demo)
    published = next(change for change in plan(DEMO, policy) if change.kind == "published")
    assert published.purposes == concerned
    assert "material change" in published.text


def test_a_removed_purpose_may_stay_in_published_versions():
    policy = next_version(DEMO, "web-banner", material=False, purposes=DEMO.notices["web-banner"][1].purposes[1:])
    policy = next_version(policy, "account", material=False, purposes=DEMO.notices["account"][1].purposes[1:])
    rest = DEMO.notices["drone-onboarding"][1].purposes[1:]
    policy = next_version(policy, "drone-onboarding", material=False, purposes=rest)
    purposes = {name: purpose for name, purpose in policy.purposes.items() if name != "analytics"}
    assert lint(msgspec.structs.replace(policy, purposes=purposes)) == []


# Plan -----------------------------------------------------------------------------------------------------------------


def only(changes: list[Change]) -> Change:
    assert len(changes) == 1, changes
    return changes[0]


def told(changes: list[Change]) -> Change:
    """The one change, without the refusal that a new recipient brings along."""
    return only([change for change in changes if "without knowing" not in change.text])


@pytest.mark.parametrize("recipient", ["new", "moved"])
def test_a_new_recipient_needs_new_consents(recipient: str):
    known = DEMO.purposes["newsletter"].recipients
    others = DEMO.purposes["share.partner"].recipients
    named = (*known, others[0]) if recipient == "new" else (msgspec.structs.replace(known[0], country="DE"),)
    refused = [change for change in plan(DEMO, changed("newsletter", recipients=named)) if change.refused]
    notices = sorted(name for name, versions in DEMO.notices.items() if "newsletter" in versions[1].purposes)
    assert [name for name in notices if f"`required_notice.{name} = 2`" in only(refused).text] == notices
    policy = changed("newsletter", recipients=named, required_notice=dict.fromkeys(notices, 2))
    for name in notices:
        policy = next_version(policy, name, material=True)
    assert not [change for change in plan(DEMO, policy) if change.refused]


def test_nothing_changed_nothing_planned():
    assert plan(DEMO, DEMO) == []
    assert plan(DEMO, decode_policy(canonical(DEMO))) == []


def test_a_policy_that_was_stored_before_a_field_was_known_can_still_be_read():
    tree = msgspec.json.decode(canonical(DEMO))
    del tree["tenant"]["storage"]
    for purpose in tree["purposes"].values():
        for field in ("storage", "sources", "processing", "optional_data"):
            del purpose[field]
        for recipient in purpose["recipients"]:
            del recipient["address"], recipient["contact"]
    old = decode_policy(msgspec.json.encode(tree))
    assert old.tenant.storage == old.purposes["analytics"].storage == ()
    assert {change.what for change in plan(old, DEMO)} >= {"tenant", "purpose analytics", "purpose newsletter"}
    assert not any(change.refused for change in plan(old, DEMO))


def test_first_plan_adds_and_publishes_everything():
    changes = plan(None, DEMO)
    assert [change.kind for change in changes].count("added") == 1 + 5 + 14
    assert [change.kind for change in changes].count("published") == 4
    assert not any(change.refused for change in changes)
    texts = {change.what: change.text for change in changes}
    assert texts["purpose analytics"] == "purpose analytics is added; everyone is denied until they consent"
    assert "until their basis fact (contract) is on record" in texts["purpose repair.call"]
    assert "allowed by legitimate interest until they object" in texts["purpose fraud.prevention"]


NEW = {
    "name": {"de": "x", "en": "x"},
    "description": {"de": "x", "en": "x"},
    "dpv": "dpv:Marketing",
    "legal_basis": "contract",
    "assessment": DEMO.purposes["fraud.prevention"].assessment,
    "requires_fact": True,
    "direct_marketing": True,
    "special_category": True,
    "double_opt_in": True,
    "significant_adm": ADM,
    "required_for_service": True,
    "use_is_recorded": True,
    "runs_under_restriction": True,
    "data_categories": ("pd:Name",),
    "optional_data": ("pd:DeviceBased",),
    "sources": ("data_subject", "public"),
    "processing": ("dpv:Use",),
    "storage": ("AT", "DE"),
    "recipients": (ABROAD,),
    "joint_controllers": (DEMO.tenant.controller,),
    "channels": ("web", "shop"),
    "contact": "optional",
    "valid_from": datetime(2027, 1, 1, tzinfo=UTC),
    "valid_for": Duration(months=6),
    "reask_after_refusal": Duration(months=1),
    "reuse": Duration(seconds=300),
    "retention": Retention(period=Duration(months=1), after="collection", reason={"en": "x"}),
    "proof_kept": Duration(months=60),
    "evidence": "login",
    "age": AgeRule(minimum=18, age_unknown="deny"),
    "required_notice": {"account": 2},
    "conflict": "account_wins",
    "on_outage": OnOutage(behaviour="last_known", max_age=Duration(seconds=60)),
    "parent": "profiling",
    "inherits_consent": True,
    "terminal_access": "none",
}
SAID = {
    "valid_for": "purpose analytics: consents now last P6M instead of P13M; consents older than that stop at once",
    "legal_basis": "purpose analytics: now rests on contract instead of consent; everyone is denied until they consent",
    "channels": "purpose analytics: checks for app now deny `channel_not_covered`; "
    "shop can be consented to; nobody has yet",
    "recipients": "purpose analytics: Far Inc. (processor, US, none_needed) now receives data, nobody knew yet",
    "valid_from": "purpose analytics: processing may start at 2027-01-01 00:00 UTC; "
    "until then every check denies `not_yet_valid`",
    "required_notice": "purpose analytics: consents given on account below version 2 stop at once (`notice_outdated`)",
    "on_outage": "purpose analytics: in an outage checks now answer what was known last, for PT1M instead of deny",
    "reask_after_refusal": "purpose analytics: the rest after a refusal is now P1M instead of P6M",
    "data_categories": "purpose analytics: the data is now pd:Name instead of pd:BrowsingBehavior, pd:DeviceBased",
    "sources": "purpose analytics: the source of the data is now data_subject, public instead of data_subject",
    "storage": "purpose analytics: data is stored in AT, DE instead of where the tenant stores",
    "retention": "purpose analytics: data is kept P1M after collection instead of P13M after collection",
    "age": "purpose analytics: people now consent alone from 18 years on; "
    "those of unknown age are denied `age_unverified`",
}


def test_every_field_of_a_purpose_has_a_sentence():
    assert set(SENTENCES) == set(NEW) == set(Purpose.__struct_fields__) - {"id"}


@pytest.mark.parametrize("field", NEW)
def test_a_changed_field_is_told_in_words_both_ways(field: str):
    policy = changed("analytics", **{field: NEW[field]})
    there, back = told(plan(DEMO, policy)), told(plan(policy, DEMO))
    assert there.text.startswith("purpose analytics: ")
    assert there.text != back.text or field in {"name", "description", "assessment", "joint_controllers"}
    assert there.text == SAID.get(field, there.text)
    assert not there.refused
    assert "Struct" not in there.text + back.text


def test_what_children_inherit_touches_them_too():
    policy = changed("profiling", parent="analytics", inherits_consent=True)
    shorter = msgspec.structs.replace(policy.purposes["analytics"], valid_for=Duration(months=6))
    changes = plan(policy, msgspec.structs.replace(policy, purposes=policy.purposes | {"analytics": shorter}))
    assert only(changes).purposes == ("analytics", "profiling")


def test_remaining_turns_of_phrase():
    recipient = DEMO.purposes["newsletter"].recipients[0]
    moved = changed("newsletter", recipients=(msgspec.structs.replace(recipient, country="DE"),))
    assert "is now Postwerk Versand GmbH (processor, DE, none_needed)" in told(plan(DEMO, moved)).text
    reached = changed("newsletter", recipients=(msgspec.structs.replace(recipient, contact="post@postwerk.example"),))
    assert "how to reach Postwerk Versand GmbH is written anew" in only(plan(DEMO, reached)).text
    reviewed = changed("offer.automated", significant_adm=SignificantDecision(logic={"en": "x"}, human_contact="y"))
    assert "described anew" in only(plan(DEMO, reviewed)).text
    young = changed("profiling", age=AgeRule(minimum="digital_consent", age_unknown="deny"))
    assert "the age of digital consent" in only(plan(DEMO, young)).text
    longer = changed("analytics", valid_for=Duration(months=14))
    assert only(plan(DEMO, longer)).text == "purpose analytics: consents now last P14M instead of P13M"
    stated = changed("repair.call", required_notice={"account": 1})
    assert "mean the same" in only(plan(DEMO, stated)).text
    unbound = changed("comfort.preferences", legal_basis="contract")
    assert "fair only where this basis existed all along" in only(plan(DEMO, unbound)).text


def test_removing_a_purpose_says_what_checks_answer():
    purposes = {name: purpose for name, purpose in DEMO.purposes.items() if name != "share.partner"}
    change = only(plan(DEMO, msgspec.structs.replace(DEMO, purposes=purposes)))
    assert (change.kind, change.refused, change.purposes) == ("removed", False, ("share.partner",))
    assert "every check answers deny `unknown_purpose`" in change.text


def test_a_published_version_cannot_change_or_go(demo: Path):
    (demo / "notices/account/1/de.md").write_text("Ganz anderer Text.\n", encoding="utf-8")
    change = only(plan(DEMO, load(demo)))
    assert change.refused
    assert "publish version 2 in notices/account/2/" in change.text
    gone = {name: versions for name, versions in DEMO.notices.items() if name != "account"}
    change = only(plan(DEMO, msgspec.structs.replace(DEMO, notices=gone)))
    assert (change.kind, change.refused) == ("removed", True)
    assert "restore notices/account/1/" in change.text


def test_an_editorial_version_touches_nobody():
    change = only(plan(DEMO, next_version(DEMO, "account", material=False)))
    assert (change.kind, change.what, change.purposes) == ("published", "notice account 2", ())
    assert "earlier consents stay as they are" in change.text


def test_tenant_and_jurisdictions_are_told():
    renamed = msgspec.structs.replace(DEMO.tenant, id="other", jurisdiction="AT")
    changes = plan(DEMO, msgspec.structs.replace(DEMO, tenant=renamed))
    assert [(change.refused, change.text) for change in changes] == [
        (True, 'tenant demo keeps its id for ever; write `id = "demo"` or make a new tenant'),
        (False, "tenant demo: jurisdiction is now AT instead of DE"),
    ]
    older = msgspec.structs.replace(DEMO.jurisdictions["AT"], digital_consent_age=15)
    change = only(plan(DEMO, msgspec.structs.replace(DEMO, jurisdictions=DEMO.jurisdictions | {"AT": older})))
    assert change.text == "jurisdiction AT: people now consent alone from 15 instead of 14 years on"
    assert change.purposes == ("health.sensor", "profiling")
    change = only(plan(DEMO, msgspec.structs.replace(DEMO, jurisdictions=DEMO.jurisdictions | {"DE": CAPPED})))
    assert change.text == 'jurisdiction DE: max_valid_for is now {"phone":"P6M"} instead of {}'
    fewer = {iso: one for iso, one in DEMO.jurisdictions.items() if iso != "IE"}
    assert only(plan(DEMO, msgspec.structs.replace(DEMO, jurisdictions=fewer))).kind == "removed"


# Durations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("P13M", "P13M"), ("P1Y6M", "P18M"), ("P2W", "P14D"), ("P30D", "P30D"), ("PT10M", "PT10M"),
        ("PT36H", "P1DT12H"), ("P1MT1S", "P1MT1S"), ("P0D", "PT0S"), ("P100Y", "P1200M"),
    ],
)  # fmt: skip
def test_durations_are_read_and_written(text: str, written: str):
    assert str(Duration.parse(text)) == written
    assert repr(Duration.parse(text)) == f"Duration('{written}')"


@pytest.mark.parametrize("text", ["", "P", "PT", "P1", "1M", "P-1M", "P1.5D", "PT1D", "P1M2Y", "P١M", "P1M\n", "P101Y"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(ValueError, match="write for example P13M, P30D or PT10M"):
        Duration.parse(text)


durations = st.builds(Duration, st.integers(0, 1_200), st.integers(0, 36_525 * 86_400))
moments = st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


@given(durations)
def test_a_duration_survives_text_and_json(duration: Duration):
    assert Duration.parse(str(duration)) == duration
    assert hash(Duration.parse(str(duration))) == hash(duration)


@given(moments, st.integers(0, 1_200))
def test_months_end_on_the_same_day_or_the_last_of_the_month(start: datetime, months: int):
    end = Duration(months=months).after(start)
    assert (end.year - start.year) * 12 + end.month - start.month == months
    assert end.timetz() == start.timetz()
    assert end.day == start.day or (end.day < start.day and (end + timedelta(days=1)).day == 1)


@given(durations)
def test_a_second_more_is_longer(duration: Duration):
    longer = Duration(duration.months, duration.seconds + 1)
    assert longer.can_exceed(duration)
    assert not duration.can_exceed(longer)
    assert not duration.can_exceed(duration)


def test_leap_days_and_month_ends():
    assert Duration.parse("P1M").after(datetime(2026, 1, 31, tzinfo=UTC)).date() == date(2026, 2, 28)
    assert Duration.parse("P1Y").after(datetime(2024, 2, 29, tzinfo=UTC)).date() == date(2025, 2, 28)
    assert Duration.parse("P1M").can_exceed(Duration.parse("P30D"))
    assert not Duration.parse("P1M").can_exceed(Duration.parse("P31D"))
    assert Duration(months=1) != "P1M"


# Canonical form -------------------------------------------------------------------------------------------------------


def test_a_policy_survives_its_canonical_form():
    again = decode_policy(canonical(DEMO))
    assert again == DEMO
    assert again.hash == DEMO.hash
    assert canonical(again) == canonical(DEMO)
    assert again.family == DEMO.family


def test_many_versions_and_every_field_survive_too():
    policy = DEMO
    for _ in range(10):
        policy = next_version(policy, "account", material=False)
    policy = msgspec.structs.replace(policy, purposes=policy.purposes | changed("analytics", **NEW).purposes)
    again = decode_policy(canonical(policy))
    assert again == policy
    assert list(again.notices["account"]) == sorted(again.notices["account"], key=str)


def test_the_hash_follows_the_prose(demo: Path):
    edit(demo, "notices/account/1/en.md", "No switch is set in advance.", "No switch is set in advance!")
    policy = load(demo)
    assert policy.notices["account"][1].hash != DEMO.notices["account"][1].hash
    assert policy.notices["web-banner"][1].hash == DEMO.notices["web-banner"][1].hash
    assert policy.hash != DEMO.hash


def test_other_values_have_no_canonical_form():
    with pytest.raises(TypeError, match="no JSON for object"):
        canonical({"a": object()})


def test_structs_refuse_unknown_keys():
    assert Declared.__struct_config__.forbid_unknown_fields
    assert Policy.__struct_config__.forbid_unknown_fields
