"""Cross-checks of a policy: one small rule, one function, which names its source.

A rule about one purpose yields (key, what is wrong and what to write); a rule about the whole policy yields finished
errors with their file. Articles without a name are those of the GDPR.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from consent_service.errors import FieldError
from consent_service.policies.model import Notice, Policy, Purpose, Recipient, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Finding = tuple[str, str]

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

EEA = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IS", "IT", "LI", "LT",
    "LU", "LV", "MT", "NL", "NO", "PL", "PT", "RO", "SE", "SI", "SK",
})  # fmt: skip
"""The European Union, Iceland, Liechtenstein and Norway (ISO 3166-1)."""


def lint(policy: Policy, *, whole: bool = True) -> list[FieldError]:
    """Every rule that the policy breaks, in the order of its files.

    A policy that is not `whole` lacks what could not be read: rules about what is missing would be wrong about it.
    """
    rules = (*PRESENT_RULES, *(MISSING_RULES if whole else ()))
    found = [*lint_purposes(policy.purposes), *(error for rule in rules for error in rule(policy))]
    return sorted(found, key=lambda error: error.pointer)


def lint_purposes(purposes: dict[str, Purpose]) -> list[FieldError]:
    """The rules that need nothing but the purpose itself."""
    return [
        FieldError(f"{purpose_file(name)}#/{key}", detail)
        for name, purpose in purposes.items()
        for rule in PURPOSE_RULES
        for key, detail in rule(purpose)
    ]


def purpose_file(purpose: str) -> str:
    """Where a purpose is declared, seen from the policy's folder."""
    return f"purposes/{purpose}.toml"


def notice_file(notice: Notice) -> str:
    """Where a notice version is declared, seen from the policy's folder."""
    return f"notices/{notice.id}/{notice.version}/notice.toml"


def newest(versions: dict[int, Notice]) -> Notice:
    """The version of a notice that is shown now."""
    return versions[max(versions)]


# One purpose ----------------------------------------------------------------------------------------------------------


def consent_ends(purpose: Purpose) -> Iterator[Finding]:
    """Consent is refreshed at apt intervals, and a refusal is respected for a while (EDPB Guidelines 05/2020)."""
    if purpose.needs_consent and purpose.valid_for is None:
        yield "valid_for", 'is missing, but consents must end; add for example `valid_for = "P13M"`'
    if purpose.needs_consent and purpose.reask_after_refusal is None:
        yield "reask_after_refusal", 'is missing, but a refusal must rest; add `reask_after_refusal = "P6M"`'


def durations_last(purpose: Purpose) -> Iterator[Finding]:
    """A consent that lasts no time could never answer allow."""
    durations = {
        "valid_for": purpose.valid_for,
        "reask_after_refusal": purpose.reask_after_refusal,
        "on_outage/max_age": purpose.on_outage.max_age,
    }
    for key, duration in durations.items():
        if duration is not None and not (duration.months or duration.seconds):
            yield key, "lasts no time at all; write for example P13M, P30D or PT10M"


def interest_is_assessed(purpose: Purpose) -> Iterator[Finding]:
    """Art. 6(1)(f): a legitimate interest counts once it was weighed against the person's."""
    if purpose.legal_basis == "legitimate_interest" and purpose.assessment is None:
        yield "assessment", "is missing, but legitimate_interest needs one; add a table [assessment]: id, date, summary"


def special_category_by_consent(purpose: Purpose) -> Iterator[Finding]:
    """Art. 9(2)(a): of the exceptions for special categories this service knows explicit consent only."""
    if purpose.special_category and purpose.legal_basis != "consent":
        yield "legal_basis", f'is {purpose.legal_basis}, but special_category needs `legal_basis = "consent"`'


def significant_decision_is_allowed(purpose: Purpose) -> Iterator[Finding]:
    """Art. 22(2): contract, law or explicit consent."""
    if purpose.significant_adm and purpose.legal_basis not in ("consent", "contract", "legal_obligation"):
        detail = f"is {purpose.legal_basis}, but significant_adm needs `consent`, `contract` or `legal_obligation`"
        yield "legal_basis", detail


def service_is_not_bundled(purpose: Purpose) -> Iterator[Finding]:
    """Art. 7(4): a consent is not free where the service depends on it."""
    if purpose.required_for_service and purpose.needs_consent:
        detail = (
            "is true, but the purpose rests on consent; write `required_for_service = false`, or another legal_basis "
            "and an exemption for terminal_access"
        )
        yield "required_for_service", detail


def double_opt_in_is_consent(purpose: Purpose) -> Iterator[Finding]:
    """BGH I ZR 164/09: the double opt-in proves a consent; other bases have nothing to confirm."""
    if purpose.double_opt_in and purpose.legal_basis != "consent":
        yield "double_opt_in", 'is true, but the basis is no consent; write false or `legal_basis = "consent"`'


def fact_is_no_consent(purpose: Purpose) -> Iterator[Finding]:
    """A basis fact records that a basis *other than* consent applies."""
    if purpose.requires_fact and purpose.legal_basis == "consent":
        yield "requires_fact", "is true, but a consent is its own record; remove it"


def contact_has_a_channel(purpose: Purpose) -> Iterator[Finding]:
    """A contact is an e-mail address or a telephone number (UWG section 7)."""
    if purpose.contact == "required" and not {"email", "phone"} & set(purpose.channels):
        yield "channels", 'has neither email nor phone, but a contact is required; add one or write `contact = "none"`'


def channels_differ(purpose: Purpose) -> Iterator[Finding]:
    """States are kept per purpose and channel: each once."""
    for channel, count in Counter(purpose.channels).items():
        if count > 1:
            yield "channels", f"names `{channel}` {count} times; write it once"


def outage_is_declared_soundly(purpose: Purpose) -> Iterator[Finding]:
    """Promise: in an outage consent is never assumed (Art. 7(1)), and old knowledge has an end."""
    outage = purpose.on_outage
    if outage.behaviour == "allow" and purpose.needs_consent:
        yield "on_outage/behaviour", "is allow, but the purpose needs consent; write deny, or last_known with max_age"
    if outage.behaviour == "last_known" and outage.max_age is None:
        yield "on_outage/max_age", 'is missing, but last_known needs it; add for example `max_age = "PT15M"`'
    if outage.behaviour != "last_known" and outage.max_age is not None:
        yield "on_outage/max_age", f"has no meaning with {outage.behaviour}; remove it or write last_known"


def age_is_about_consent(purpose: Purpose) -> Iterator[Finding]:
    """Art. 8: the age rule says who can consent alone."""
    if purpose.age is not None and not purpose.needs_consent:
        yield "age", "is set, but the purpose needs no consent; remove it"


def transfers_are_safe(purpose: Purpose) -> Iterator[Finding]:
    """Art. 44 to 49: outside the EEA data needs a safeguard."""
    for index, recipient in enumerate(purpose.recipients):
        if recipient.country not in EEA and recipient.safeguard == "none_needed":
            detail = (
                f"is none_needed, but {recipient.country} lies outside the EEA; write `adequacy`, `standard_clauses`, "
                "`binding_rules` or `derogation`"
            )
            yield f"recipients/{index}/safeguard", detail


def recipients_differ(purpose: Purpose) -> Iterator[Finding]:
    """Consents are kept per recipient: each once."""
    for recipient, count in Counter(recipient.id for recipient in purpose.recipients).items():
        if count > 1:
            yield "recipients", f"names `{recipient}` {count} times; write it once"


def recipients_can_be_reached(purpose: Purpose) -> Iterator[Finding]:
    """ISO/IEC TS 27560, 6.3.6: the record of a consent names each party with its address and contact."""
    for index, recipient in enumerate(purpose.recipients):
        for key, example in (("address", "Musterkai 7, 10999 Berlin"), ("contact", "privacy@falke.example")):
            if not getattr(recipient, key):
                yield f"recipients/{index}/{key}", f'is missing; add for example `{key} = "{example}"`'


def optional_data_is_data(purpose: Purpose) -> Iterator[Finding]:
    """Art. 13(2)(e): what a person need not give is part of what is processed."""
    for index, term in enumerate(purpose.optional_data):
        if term not in purpose.data_categories:
            yield f"optional_data/{index}", f"is {term}, which is not in data_categories; add it there or remove it"


# The whole policy -----------------------------------------------------------------------------------------------------


def there_is_a_purpose(policy: Policy) -> Iterator[FieldError]:
    """A policy without purposes would deny everything."""
    if not policy.purposes:
        yield FieldError("purposes#", "holds no purpose; write purposes/<id>.toml")


def tenant_is_known(policy: Policy) -> Iterator[FieldError]:
    """Ages and limits differ by country: the tenant's own must be declared."""
    country = policy.tenant.jurisdiction
    if country not in policy.jurisdictions:
        known = ", ".join(policy.jurisdictions) or "none"
        detail = f"is {country}; write jurisdictions/{country}.toml or name one that there is ({known})"
        yield FieldError("tenant.toml#/jurisdiction", detail)


def issuers_are_safe(policy: Policy) -> Iterator[FieldError]:
    """RFC 8725, section 3: keys come over a channel that vouches for the issuer, and each token means one thing."""
    seen: set[tuple[str, str]] = set()
    for place, issuer in enumerate(policy.tenant.issuers):
        here = f"tenant.toml#/issuers/{place}"
        for key, address in (("issuer", issuer.issuer), ("jwks_uri", issuer.jwks_uri)):
            if not address.startswith("https://") and urlsplit(address).hostname not in LOOPBACK:
                yield FieldError(f"{here}/{key}", f"is {address}; write https, because http is for loopback only")
        if (issuer.issuer, issuer.audience) in seen:
            yield FieldError(f"{here}/audience", "stands twice for this issuer; give each kind of caller its own")
        seen.add((issuer.issuer, issuer.audience))


def issuers_fit_their_kind(policy: Policy) -> Iterator[FieldError]:
    """What a token may carry belongs to whose tokens they are."""
    for place, issuer in enumerate(policy.tenant.issuers):
        here = f"tenant.toml#/issuers/{place}"
        fitting = {"login": set[str](), "service": {"scopes"}, "officer": {"roles", "assurance"}}
        for key in ("scopes", "roles", "assurance"):
            if getattr(issuer, key) and key not in fitting[issuer.kind]:
                yield FieldError(f"{here}/{key}", f"means nothing for the kind `{issuer.kind}`; leave it out")
        if issuer.kind == "service" and not issuer.scopes:
            yield FieldError(
                f"{here}/scopes", 'is empty, so no machine could do anything; add e.g. `scopes = ["check"]`'
            )
        if issuer.kind == "service" and not issuer.clients:
            yield FieldError(
                f"{here}/clients", 'is empty; name the machines whose tokens are taken: `clients = ["warehouse"]`'
            )
        if issuer.kind == "officer" and not issuer.roles:
            yield FieldError(f"{here}/roles", 'is empty, so nobody has a role; add e.g. `roles.dpo = "approver"`')
        for role, assurance in issuer.assurance.items():
            if issuer.kind == "officer" and role not in issuer.roles.values():
                yield FieldError(f"{here}/assurance/{role}", "is a role that nobody can get; leave it out")
            if not assurance.acr and not assurance.amr:
                yield FieldError(
                    f"{here}/assurance/{role}", 'demands nothing; add e.g. `amr = ["mfa"]`, or leave it out'
                )


def languages_differ(policy: Policy) -> Iterator[FieldError]:
    """Each language once."""
    for language, count in Counter(policy.tenant.languages).items():
        if count > 1:
            yield FieldError("tenant.toml#/languages", f"names `{language}` {count} times; write it once")


def texts_are_complete(policy: Policy) -> Iterator[FieldError]:
    """Art. 12(1): whoever is addressed in a language gets every text in it.

    Published versions of a notice cannot change, so a language that is added later binds the newest one only.
    """
    files: dict[str, msgspec.Struct] = {purpose_file(name): purpose for name, purpose in policy.purposes.items()}
    files |= {f"jurisdictions/{iso}.toml": jurisdiction for iso, jurisdiction in policy.jurisdictions.items()}
    files |= {notice_file(newest(v)): msgspec.structs.replace(newest(v), text={}) for v in policy.notices.values()}
    for file, struct in files.items():
        for pointer, text in _texts(struct, ""):
            for language in policy.tenant.languages:
                if text and language not in text:
                    yield FieldError(f"{file}#{pointer}", f'lacks the language {language}; add `{language} = "…"`')


def prose_is_complete(policy: Policy) -> Iterator[FieldError]:
    """Art. 7(1), 12(1): what is shown lies beside the notice, in each language of the tenant and in no other."""
    for versions in policy.notices.values():
        notice = newest(versions)
        folder = notice_file(notice).removesuffix("notice.toml")
        for language in policy.tenant.languages:
            if language not in notice.text:
                yield FieldError(f"{folder}{language}.md#", f"is missing; write what people read in `{language}`")
        for language in notice.text.keys() - set(policy.tenant.languages):
            detail = f"is in no language of the tenant; remove it or add `{language}` to languages in tenant.toml"
            yield FieldError(f"{folder}{language}.md#", detail)


def parents_exist(policy: Policy) -> Iterator[FieldError]:
    """A parent's withdrawal passes down: the line must lead somewhere."""
    for name, purpose in policy.purposes.items():
        if purpose.parent is not None and purpose.parent not in policy.purposes:
            known = ", ".join(policy.purposes)
            detail = f"is `{purpose.parent}`, which is no purpose; write one of {known}"
            yield FieldError(f"{purpose_file(name)}#/parent", detail)


def parents_have_an_end(policy: Policy) -> Iterator[FieldError]:
    """No purpose is its own ancestor."""
    for name, line in policy.lineage.items():
        if policy.purposes[line[-1]].parent == name:
            circle = " → ".join((*line, name))
            yield FieldError(f"{purpose_file(name)}#/parent", f"goes round in a circle ({circle}); remove one parent")


def inheritance_has_a_source(policy: Policy) -> Iterator[FieldError]:
    """L-5.1b: a child answers by its parent's consent only where there is one."""
    for name, purpose in policy.purposes.items():
        parent = policy.purposes.get(purpose.parent or "")
        if purpose.inherits_consent and (parent is None or parent.legal_basis != "consent"):
            detail = "is true, but no parent rests on consent; remove it or name such a parent"
            yield FieldError(f"{purpose_file(name)}#/inherits_consent", detail)


def recipients_agree(policy: Policy) -> Iterator[FieldError]:
    """Art. 13(1)(e): notices name recipients by id, so an id means one party."""
    first: dict[str, tuple[str, Recipient]] = {}
    for name, purpose in policy.purposes.items():
        for index, recipient in enumerate(purpose.recipients):
            there, known = first.setdefault(recipient.id, (name, recipient))
            said, before = (f"{it.name} ({it.country}; {it.address}; {it.contact})" for it in (recipient, known))
            if said != before:
                detail = f"is {before} in {purpose_file(there)}; write the same in both, or another id"
                yield FieldError(f"{purpose_file(name)}#/recipients/{index}", detail)


def storage_is_known(policy: Policy) -> Iterator[FieldError]:
    """ISO/IEC TS 27560, 6.3.4.11, and Art. 44: the record of a consent says where its data is stored.

    Outside the EEA it is stored by somebody whom a safeguard binds, or by a controller who is there itself.
    """
    for name, purpose in policy.purposes.items():
        if not purpose.storage and not policy.tenant.storage:
            detail = 'is missing here and in tenant.toml; add there for example `storage = ["DE"]`'
            yield FieldError(f"{purpose_file(name)}#/storage", detail)
        reached = {recipient.country for recipient in purpose.recipients} | {policy.tenant.controller.country}
        for country in purpose.storage or policy.tenant.storage:
            if country not in EEA and country not in reached:
                detail = f"names {country}, outside the EEA, where no recipient is; name who stores it, or remove it"
                yield FieldError(f"{purpose_file(name)}#/storage", detail)


def country_caps_validity(policy: Policy) -> Iterator[FieldError]:
    """A country may limit how long a consent for a channel lives."""
    country = policy.jurisdictions.get(policy.tenant.jurisdiction)
    for name, purpose in policy.purposes.items():
        for channel in dict.fromkeys(purpose.channels):
            cap = country.max_valid_for.get(channel) if country else None
            if cap and purpose.valid_for and purpose.needs_consent and purpose.valid_for.can_exceed(cap):
                place = policy.tenant.jurisdiction
                detail = f'is {purpose.valid_for}, but {place} allows {cap} for {channel}; write `valid_for = "{cap}"`'
                yield FieldError(f"{purpose_file(name)}#/valid_for", detail)


def consents_are_presented(policy: Policy) -> Iterator[FieldError]:
    """Art. 4(11), 7(1): a consent rests on a text that named the purpose."""
    shown = {purpose for versions in policy.notices.values() for purpose in newest(versions).purposes}
    for name, purpose in policy.purposes.items():
        if purpose.needs_consent and name not in shown:
            detail = f'needs consent, but no notice presents it; add "{name}" to the purposes of a newest version'
            yield FieldError(f"{purpose_file(name)}#/id", detail)


def notices_present_purposes(policy: Policy) -> Iterator[FieldError]:
    """A notice presents what the policy declares; published versions may keep what was removed since."""
    for versions in policy.notices.values():
        notice = newest(versions)
        for index, purpose in enumerate(notice.purposes):
            if purpose not in policy.purposes:
                detail = f"is `{purpose}`, which is no purpose; remove it or write {purpose_file(purpose)}"
                yield FieldError(f"{notice_file(notice)}#/purposes/{index}", detail)


def versions_follow(policy: Policy) -> Iterator[FieldError]:
    """Versions count 1, 2, 3 …: a missing one would be a text that nobody can prove."""
    for name, versions in policy.notices.items():
        for number in sorted(set(range(1, max(versions))) - versions.keys()):
            detail = f"is missing, but version {max(versions)} exists; number the versions without a gap"
            yield FieldError(f"notices/{name}/{number}#", detail)


def first_version_is_material(policy: Policy) -> Iterator[FieldError]:
    """What nobody has seen before cannot be an editorial change."""
    for versions in policy.notices.values():
        if 1 in versions and not versions[1].material:
            yield FieldError(f"{notice_file(versions[1])}#/material", "is false; write `material = true` in version 1")


def new_recipients_are_material(policy: Policy) -> Iterator[FieldError]:
    """Art. 13(1)(e): who consented without knowing a recipient has not consented to it."""
    for versions in policy.notices.values():
        for number, notice in versions.items():
            before = versions.get(number - 1)
            added = set(notice.recipients) - set(before.recipients) if before else set()
            if added and not notice.material:
                names = ", ".join(sorted(added))
                detail = f"is false, but version {number} adds the recipient {names}; write `material = true`"
                yield FieldError(f"{notice_file(notice)}#/material", detail)


def notices_name_recipients(policy: Policy) -> Iterator[FieldError]:
    """Art. 13(1)(e): the current text names everyone who receives data for what it presents."""
    for versions in policy.notices.values():
        notice = newest(versions)
        for name in notice.purposes:
            purpose = policy.purposes.get(name)
            for recipient in purpose.recipients if purpose else ():
                if recipient.id not in notice.recipients:
                    yield FieldError(f"{notice_file(notice)}#/recipients", _unnamed(notice, name, recipient.id))


def required_notices_exist(policy: Policy) -> Iterator[FieldError]:
    """A consent can only rest on a version that is there and presents the purpose."""
    for name, purpose in policy.purposes.items():
        for notice, version in purpose.required_notice.items():
            pointer = f"{purpose_file(name)}#/required_notice/{notice}"
            shown = [number for number, one in policy.notices.get(notice, {}).items() if name in one.purposes]
            if notice not in policy.notices:
                yield FieldError(pointer, f"names no notice; write one of {', '.join(policy.notices)}")
            elif version not in shown:
                known = ", ".join(map(str, shown)) or "none"
                detail = f"is {version}, which does not exist or does not present {name}; versions that do: {known}"
                yield FieldError(pointer, detail)


def material_versions_are_required(policy: Policy) -> Iterator[FieldError]:
    """A material change needs new consents: the purposes that it concerns say so."""
    for name, purpose in policy.purposes.items():
        for notice, versions in policy.notices.items():
            if not purpose.needs_consent or name not in newest(versions).purposes:
                continue
            wanted = max((n for n, one in versions.items() if one.material and name in one.purposes), default=1)
            if purpose.required_notice.get(notice, 1) != wanted:
                detail = (
                    f"must be {wanted}, the newest material version of {notice} that presents the purpose; "
                    f"write `required_notice.{_toml_key(notice)} = {wanted}`"
                )
                yield FieldError(f"{purpose_file(name)}#/required_notice/{notice}", detail)


PURPOSE_RULES: tuple[Callable[[Purpose], Iterable[Finding]], ...] = (
    consent_ends,
    durations_last,
    interest_is_assessed,
    special_category_by_consent,
    significant_decision_is_allowed,
    service_is_not_bundled,
    double_opt_in_is_consent,
    fact_is_no_consent,
    contact_has_a_channel,
    channels_differ,
    outage_is_declared_soundly,
    age_is_about_consent,
    transfers_are_safe,
    recipients_differ,
    recipients_can_be_reached,
    optional_data_is_data,
)

PRESENT_RULES: tuple[Callable[[Policy], Iterable[FieldError]], ...] = (
    issuers_are_safe,
    issuers_fit_their_kind,
    languages_differ,
    texts_are_complete,
    prose_is_complete,
    parents_have_an_end,
    recipients_agree,
    country_caps_validity,
    first_version_is_material,
    new_recipients_are_material,
    notices_name_recipients,
)
"""Rules about what is there."""

MISSING_RULES: tuple[Callable[[Policy], Iterable[FieldError]], ...] = (
    there_is_a_purpose,
    tenant_is_known,
    parents_exist,
    inheritance_has_a_source,
    consents_are_presented,
    notices_present_purposes,
    versions_follow,
    required_notices_exist,
    storage_is_known,
    material_versions_are_required,
)
"""Rules about what is missing; they need the whole policy."""


def _texts(struct: msgspec.Struct, pointer: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every text for people inside a Struct, with its JSON pointer."""
    for field in msgspec.structs.fields(struct):
        value: Any = getattr(struct, field.name)
        here = f"{pointer}/{field.encode_name}"
        if field.type == Text:
            yield here, value
        for index, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(item, msgspec.Struct):
                yield from _texts(item, f"{here}/{index}" if isinstance(value, tuple) else here)


def _unnamed(notice: Notice, purpose: str, recipient: str) -> str:
    names = ", ".join(f'"{name}"' for name in (*notice.recipients, recipient))
    following = notice.version + 1
    return (
        f"does not name `{recipient}`, who receives data for {purpose}; write `recipients = [{names}]` here, or, once "
        f"this version is published, in a new notices/{notice.id}/{following}/ with `material = true`, and then "
        f"`required_notice.{_toml_key(notice.id)} = {following}` in the purposes that it presents"
    )


def _toml_key(name: str) -> str:
    return f'"{name}"' if "." in name else name
