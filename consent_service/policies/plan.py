"""What applying a policy would change, in plain words. Pure: the caller counts the subjects of `purposes`.

What people were shown cannot change: a published notice version that differs or is gone is refused, with what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from consent_service.policies.model import Duration, Jurisdiction, Notice, Policy, Purpose, Recipient, canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference: what it is about, one sentence, and the purposes whose subjects may notice it."""

    kind: Literal["added", "changed", "removed", "published"]
    what: str
    """`tenant`, `jurisdiction DE`, `purpose analytics`, `notice web-banner 2`."""
    text: str
    purposes: tuple[str, ...] = ()
    refused: bool = False
    """Whether applying must stop here; the text then says what to do."""


def plan(old: Policy | None, new: Policy) -> list[Change]:
    """Every change from the applied policy to a new one; nothing changes: an empty list."""
    return [
        *_tenant(old, new),
        *_jurisdictions(old, new),
        *_purposes(old, new),
        *_notices(old, new),
    ]


# Tenant and jurisdictions ---------------------------------------------------------------------------------------------


def _tenant(old: Policy | None, new: Policy) -> Iterator[Change]:
    if old is None:
        text = f"tenant {new.tenant.id} is added ({new.tenant.controller.name})"
        yield Change(kind="added", what="tenant", text=text)
        return
    for field in _differences(old.tenant, new.tenant):
        text = f"tenant {old.tenant.id}: {_generic(field, old.tenant, new.tenant)}"
        if field == "id":
            text = f'tenant {old.tenant.id} keeps its id for ever; write `id = "{old.tenant.id}"` or make a new tenant'
        refused = field == "id"
        if field == "shared" and (gone := [name for name in old.tenant.shared if name not in new.tenant.shared]):
            refused = True  # what was said in earlier tenures would speak for whoever has the thing now
            text = f"tenant {old.tenant.id}: {', '.join(gone)} stays a namespace of things that change hands; keep it"
        yield Change(kind="changed", what="tenant", text=text, refused=refused)


def _jurisdictions(old: Policy | None, new: Policy) -> Iterator[Change]:
    before = old.jurisdictions if old else {}
    for iso in sorted(before.keys() | new.jurisdictions.keys()):
        what = f"jurisdiction {iso}"
        if iso not in before:
            age = new.jurisdictions[iso].digital_consent_age
            yield Change(kind="added", what=what, text=f"{what} is added; people consent alone from {age} years on")
        elif iso not in new.jurisdictions:
            yield Change(kind="removed", what=what, text=f"{what} is removed")
        else:
            yield from _jurisdiction(what, before[iso], new.jurisdictions[iso], new)


def _jurisdiction(what: str, old: Jurisdiction, new: Jurisdiction, policy: Policy) -> Iterator[Change]:
    for field in _differences(old, new):
        purposes: tuple[str, ...] = ()
        text = _generic(field, old, new)
        if field == "digital_consent_age":
            purposes = tuple(p.id for p in policy.purposes.values() if p.age and p.age.minimum == "digital_consent")
            ages = f"{new.digital_consent_age} instead of {old.digital_consent_age}"
            text = f"people now consent alone from {ages} years on"
        yield Change(kind="changed", what=what, text=f"{what}: {text}", purposes=purposes)


# Purposes -------------------------------------------------------------------------------------------------------------


def _purposes(old: Policy | None, new: Policy) -> Iterator[Change]:
    before = old.purposes if old else {}
    for name in sorted(before.keys() | new.purposes.keys()):
        what = f"purpose {name}"
        if name not in before:
            text = f"{what} is added; {_welcome(new.purposes[name])}"
            yield Change(kind="added", what=what, text=text, purposes=(name,))
        elif name not in new.purposes:
            text = f"{what} is removed: from then on every check answers deny `unknown_purpose`; its records stay"
            yield Change(kind="removed", what=what, text=text, purposes=_touched(old or new, name))
        else:
            yield from _purpose(before[name], new.purposes[name], new)
            if old is not None and (change := _untold(old, before[name], new.purposes[name])) is not None:
                yield change


def _purpose(old: Purpose, new: Purpose, policy: Policy) -> Iterator[Change]:
    for field in _differences(old, new):
        text = f"purpose {new.id}: {SENTENCES[field](old, new)}"
        purposes = () if field in DESCRIPTIVE else _touched(policy, new.id)
        yield Change(kind="changed", what=f"purpose {new.id}", text=text, purposes=purposes)


def _untold(policy: Policy, old: Purpose, new: Purpose) -> Change | None:
    """A new recipient, or one elsewhere or in another role, is a material change: no earlier consent stands for it."""
    known = {(it.id, it.role, it.country, it.safeguard) for it in old.recipients}
    untold = [it for it in new.recipients if (it.id, it.role, it.country, it.safeguard) not in known]
    if not untold or not new.needs_consent:
        return None
    newest = {
        name: max(number for number, notice in versions.items() if new.id in notice.purposes)
        for name, versions in policy.notices.items()
        if any(new.id in notice.purposes for notice in versions.values())
    }
    standing = [name for name, version in sorted(newest.items()) if new.required_notice.get(name, 1) <= version]
    if not standing:
        return None
    wanted = ", ".join(f"`required_notice.{name} = {newest[name] + 1}`" for name in standing)
    text = (
        f"purpose {new.id}: consents were given without knowing {_list([it.name for it in untold])}; publish a "
        f"material version of each notice that presents it and write {wanted}"
    )
    return Change(kind="changed", what=f"purpose {new.id}", text=text, purposes=(new.id,), refused=True)


def _welcome(purpose: Purpose) -> str:
    if purpose.needs_consent:
        return "everyone is denied until they consent"
    if purpose.needs_fact:
        return f"everyone is denied until their basis fact ({_basis(purpose)}) is on record"
    return f"everyone is allowed by {_basis(purpose)}" + (" until they object" if purpose.objectable else "")


def _touched(policy: Policy, purpose: str) -> tuple[str, ...]:
    """The purpose and those that inherit its consent, at any depth."""
    touched = [purpose]
    for parent in touched:
        touched += [p.id for p in policy.purposes.values() if p.inherits_consent and p.parent == parent]
    return tuple(dict.fromkeys(touched))


# One sentence per field of a purpose ----------------------------------------------------------------------------------


def _valid_for(old: Purpose, new: Purpose) -> str:
    if new.valid_for is None:
        return f"consents no longer end by themselves; they lasted {old.valid_for}"
    if old.valid_for is None:
        return f"consents now last {new.valid_for}; those older than that stop at once"
    text = f"consents now last {new.valid_for} instead of {old.valid_for}"
    return f"{text}; consents older than that stop at once" if old.valid_for.can_exceed(new.valid_for) else text


def _valid_from(old: Purpose, new: Purpose) -> str:
    if new.valid_from is None:
        return f"processing may start at once instead of {old.valid_from:%Y-%m-%d %H:%M %Z}"
    return f"processing may start at {new.valid_from:%Y-%m-%d %H:%M %Z}; until then every check denies `not_yet_valid`"


def _channels(old: Purpose, new: Purpose) -> str:
    gone = [channel for channel in old.channels if channel not in new.channels]
    added = [channel for channel in new.channels if channel not in old.channels]
    parts = [f"checks for {_list(gone)} now deny `channel_not_covered`"] if gone else []
    parts += [f"{_list(added)} can be consented to; nobody has yet"] if added else []
    return "; ".join(parts) or f"the channels are now listed as {_list(new.channels)}"


def _recipients(old: Purpose, new: Purpose) -> str:
    before, after = ({recipient.id: recipient for recipient in purpose.recipients} for purpose in (old, new))
    parts = [f"{_party(it)} now receives data, nobody knew yet" for name, it in after.items() if name not in before]
    parts += [f"{_party(it)} no longer receives data" for name, it in before.items() if name not in after]
    changed = [name for name in before if name in after and before[name] != after[name]]
    parts += [
        f"{_party(before[name])} is now {_party(after[name])}"
        if _party(before[name]) != _party(after[name])
        else f"how to reach {before[name].name} is written anew"
        for name in changed
    ]
    return "; ".join(parts) or "the recipients are listed in another order"


def _party(recipient: Recipient) -> str:
    return f"{recipient.name} ({recipient.role}, {recipient.country}, {recipient.safeguard})"


def _required_notice(old: Purpose, new: Purpose) -> str:
    parts = []
    for notice in sorted(old.required_notice.keys() | new.required_notice.keys()):
        before, after = old.required_notice.get(notice, 1), new.required_notice.get(notice, 1)
        if after > before:
            parts.append(f"consents given on {notice} below version {after} stop at once (`notice_outdated`)")
        elif after < before:
            parts.append(f"consents given on {notice} from version {after} on hold again")
    return "; ".join(parts) or "the required notices are written differently and mean the same"


def _evidence(old: Purpose, new: Purpose) -> str:
    return (
        f"consents now need evidence of grade {new.evidence} instead of {old.evidence}; "
        "weaker ones are denied `evidence_too_low`"
    )


def _legal_basis(old: Purpose, new: Purpose) -> str:
    text = f"now rests on {_basis(new)} instead of {_basis(old)}"
    if old.needs_consent and not new.needs_consent:
        return f"{text}; no consent is needed any more, which is fair only where this basis existed all along"
    return f"{text}; {_welcome(new)}"


def _significant_adm(old: Purpose, new: Purpose) -> str:
    if new.significant_adm is None:
        return "no longer decides about people alone; a consent need not be explicit for that"
    if old.significant_adm is None:
        return "now decides about people alone; only explicit consents hold, others are denied `explicit_needed`"
    return "the logic of the automated decision, or who reviews it, is described anew"


def _age(_: Purpose, new: Purpose) -> str:
    if new.age is None:
        return "people of any age consent alone"
    minimum = "the age of digital consent" if new.age.minimum == "digital_consent" else f"{new.age.minimum} years"
    unknown = "are allowed" if new.age.age_unknown == "allow" else "are denied `age_unverified`"
    return f"people now consent alone from {minimum} on; those of unknown age {unknown}"


def _contact(old: Purpose, new: Purpose) -> str:
    meaning = {
        "none": "contacts no longer matter",
        "optional": "a consent may name a contact; one without holds for all of them",
        "required": "a consent holds for its contact only; those without one no longer hold",
    }
    return f"{meaning[new.contact]} (before: {old.contact})"


def _on_outage(old: Purpose, new: Purpose) -> str:
    now, before = (_outage(purpose) for purpose in (new, old))
    return f"in an outage checks now answer {now} instead of {before}"


def _outage(purpose: Purpose) -> str:
    outage = purpose.on_outage
    return f"what was known last, for {outage.max_age}" if outage.behaviour == "last_known" else outage.behaviour


def _reuse(old: Purpose, new: Purpose) -> str:
    now, before = (purpose.reuse or Duration() for purpose in (new, old))
    return f"callers may reuse an allow for {now} instead of {before}; a withdrawal holds everywhere that much later"


def _parent(old: Purpose, new: Purpose) -> str:
    if new.parent is None:
        return f"no longer belongs to {old.parent}, whose withdrawals no longer reach it"
    return f"now belongs to {new.parent} instead of {old.parent or 'none'}; withdrawals there reach it too"


def _retention(old: Purpose, new: Purpose) -> str:
    now, before = (f"{p.retention.period} after {p.retention.after.replace('_', ' ')}" for p in (new, old))
    return "the reason for the retention is given anew" if now == before else f"data is kept {now} instead of {before}"


def _storage(old: Purpose, new: Purpose) -> str:
    now, before = (_list(purpose.storage) or "where the tenant stores" for purpose in (new, old))
    return f"data is stored in {now} instead of {before}" if new.storage else f"data is stored {now}, not in {before}"


def _basis(purpose: Purpose) -> str:
    return purpose.legal_basis.replace("_", " ")


def _list(words: Any) -> str:
    return ", ".join(words)


def _switch(on: str, off: str, field: str) -> Callable[[Purpose, Purpose], str]:
    return lambda _, new: on if getattr(new, field) else off


def _from_to(label: str, field: str) -> Callable[[Purpose, Purpose], str]:
    return lambda old, new: f"{label} is now {_say(getattr(new, field))} instead of {_say(getattr(old, field))}"


def _anew(label: str) -> Callable[[Purpose, Purpose], str]:
    return lambda _, __: f"the {label} is written anew"


def _say(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(_say, value))
    if isinstance(value, msgspec.Struct | dict):
        return canonical(value).decode()
    return str(value)


SENTENCES: dict[str, Callable[[Purpose, Purpose], str]] = {
    "name": _anew("name"),
    "description": _anew("description"),
    "dpv": _from_to("the DPV term", "dpv"),
    "legal_basis": _legal_basis,
    "assessment": _anew("assessment of the interest"),
    "requires_fact": _switch(
        "a basis fact must now be on record; without one checks deny `no_basis_fact`",
        "no basis fact needs to be on record any more, unless the legal basis is a contract",
        "requires_fact",
    ),
    "direct_marketing": _switch(
        "is now direct marketing: an objection beats every legal basis",
        "is no longer direct marketing: an objection counts by the legal basis only",
        "direct_marketing",
    ),
    "special_category": _switch(
        "now concerns special categories: only explicit consents hold, others are denied `explicit_needed`",
        "no longer concerns special categories; a consent need not be explicit for that",
        "special_category",
    ),
    "double_opt_in": _switch(
        "a consent now counts once the person confirmed it; a plain one is kept as `requested`",
        "a consent now counts without confirmation",
        "double_opt_in",
    ),
    "significant_adm": _significant_adm,
    "required_for_service": _switch(
        "the service now depends on this purpose",
        "the service no longer depends on this purpose",
        "required_for_service",
    ),
    "use_is_recorded": _switch(
        "each use is now recorded, and a check that allows may write one",
        "uses are no longer recorded",
        "use_is_recorded",
    ),
    "runs_under_restriction": _switch(
        "now goes on while a person's processing is restricted",
        "now stops while a person's processing is restricted",
        "runs_under_restriction",
    ),
    "data_categories": _from_to("the data", "data_categories"),
    "optional_data": _from_to("what a person need not give", "optional_data"),
    "sources": _from_to("the source of the data", "sources"),
    "processing": _from_to("what is done with the data", "processing"),
    "storage": _storage,
    "recipients": _recipients,
    "joint_controllers": _anew("list of joint controllers"),
    "channels": _channels,
    "contact": _contact,
    "valid_from": _valid_from,
    "valid_for": _valid_for,
    "reask_after_refusal": _from_to("the rest after a refusal", "reask_after_refusal"),
    "reuse": _reuse,
    "retention": _retention,
    "proof_kept": _from_to("how long proof outlives an erasure", "proof_kept"),
    "evidence": _evidence,
    "age": _age,
    "required_notice": _required_notice,
    "conflict": _from_to("the rule for consents of linked identifiers", "conflict"),
    "on_outage": _on_outage,
    "parent": _parent,
    "inherits_consent": _switch(
        "a consent to the parent now answers for this purpose too",
        "a consent to the parent no longer answers for this purpose",
        "inherits_consent",
    ),
    "terminal_access": _from_to("access to the person's device", "terminal_access"),
}
"""What a change of each field of a purpose means; a test sees to it that none is missing."""

DESCRIPTIVE = frozenset({
    "name", "description", "dpv", "assessment", "required_for_service", "joint_controllers", "proof_kept",
})  # fmt: skip
"""Fields that no decision and no processing follows."""


# Notices --------------------------------------------------------------------------------------------------------------


def _notices(old: Policy | None, new: Policy) -> Iterator[Change]:
    before = old.notices if old else {}
    for name in sorted(before.keys() | new.notices.keys()):
        was, now = before.get(name, {}), new.notices.get(name, {})
        following = max(was.keys() | now.keys()) + 1
        for number in sorted(was.keys() | now.keys()):
            if number not in was:
                yield _published(now[number], new)
            elif number not in now:
                yield _gone(was[number])
            elif was[number].hash != now[number].hash:
                yield _rewritten(was[number], following)


def _published(notice: Notice, policy: Policy) -> Change:
    what = f"notice {notice.id} {notice.version}"
    concerned = tuple(p for p in notice.purposes if p in policy.purposes and policy.purposes[p].needs_consent)
    text = f"{what} is published for {_list(notice.purposes)}"
    if notice.version == 1:
        return Change(kind="published", what=what, text=text)
    if notice.material and concerned:
        text = f"{text}; it is a material change: consents to {_list(concerned)} given on earlier versions stop"
        return Change(kind="published", what=what, text=text, purposes=concerned)
    return Change(kind="published", what=what, text=f"{text}; earlier consents stay as they are")


def _gone(notice: Notice) -> Change:
    what = f"notice {notice.id} {notice.version}"
    text = f"{what} is published and proves consents; restore notices/{notice.id}/{notice.version}/"
    return Change(kind="removed", what=what, text=text, purposes=notice.purposes, refused=True)


def _rewritten(notice: Notice, following: int) -> Change:
    what = f"notice {notice.id} {notice.version}"
    text = (
        f"{what} is published and cannot change; restore notices/{notice.id}/{notice.version}/ "
        f"and publish version {following} in notices/{notice.id}/{following}/"
    )
    return Change(kind="changed", what=what, text=text, purposes=notice.purposes, refused=True)


# Helpers --------------------------------------------------------------------------------------------------------------


def _differences(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    """The fields whose values differ, in the order of their declaration."""
    return [name for name in old.__struct_fields__ if getattr(old, name) != getattr(new, name)]


def _generic(field: str, old: msgspec.Struct, new: msgspec.Struct) -> str:
    return f"{field} is now {_say(getattr(new, field))} instead of {_say(getattr(old, field))}"
