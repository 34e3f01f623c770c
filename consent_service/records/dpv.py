"""The receipt of an act as JSON-LD: the record of the consent after ISO/IEC TS 27560:2023, and what makes it a receipt.

It is made from the event and the policy in force then, and is the same bytes whenever it is made. What is the same for
many acts is encoded once: a receipt is mostly put together from pieces.

Whoever is meant stands in it as `#subject` of this very act, never by identifier or contact: it travels further than
the tlog-proof beside it, to processors and authorities, and outlives an erasure. Who has the tlog-proof has the name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from consent_service.policies import EEA, EXPLICIT_METHODS, Duration, Notice, Party, Policy, Purpose, Recipient
from consent_service.records.terms import (
    BASIS_STATUS,
    CONSENT_STATUS,
    CONTEXT,
    GDPR,
    OTHER_STATUS,
    RECEIPT_PROFILE,
    RECORD_PROFILE,
    RIGHTS,
    ROLE_TERM,
    SOURCE_TERM,
)
from consent_service.states import ALL_PURPOSES, FOR_ALL, GRANTS, RESTRICTIVE, Event, EventRecord, Status

Node = dict[str, Any]

MAX_POLICIES = 256
MAX_PIECES = 4_096
_ENCODER = msgspec.json.Encoder()
_NONE = {"dpv:hasApplicability": "dpv:NotApplicable"}
_UNKNOWN = {"dpv:hasApplicability": "dpv:NotAvailable"}
"""What an older policy does not say: the fields of the standard may not be left out."""
_BY_CONTROLLER = frozenset({"applies", "ceased", "restricted", "restriction_lifted"})


def receipt(event: Event, policy: Policy) -> bytes:
    """The receipt of an act under the version of the policy that it names: compact JSON in UTF-8."""
    pieces = _of(policy)
    uuid, now = str(event.event).encode(), _ENCODER.encode(event.recorded_at)
    parts = [
        _START, uuid, _AFTER_BASE, uuid, _AFTER_RECEIPT, now, _AFTER_CREATED, uuid, _AFTER_RECORD, now,
        _AFTER_NOW, uuid, _AFTER_SUBJECT,
    ]  # fmt: skip
    if event.guardian is not None:
        parts += (_GUARDIAN, str(event.guardian).encode(), _AFTER_GUARDIAN)
    said = [pieces.said(event, record) for record in event.records]
    parts.append(pieces.about(event, tuple([process.purpose for processes in said for process in processes])))
    for record, processes in zip(event.records, said, strict=True):
        moment = _ENCODER.encode(record.occurred_at)
        for process in processes:
            parts += (process.start, moment)
            if process.lasts is not None:
                parts += (_VALID, _ENCODER.encode(process.lasts.after(record.occurred_at)))
            parts.append(_END_OF_PROCESS)
    parts[-1] = _END  # after the last process stands no comma
    return b"".join(parts)


def spoken(policy: Policy, record: EventRecord) -> list[str]:
    """The purposes that a record speaks about: a no to one is a no to all that belong to it."""
    if record.purpose == ALL_PURPOSES:
        purposes: Sequence[str] = tuple(policy.purposes)
        if record.status in RESTRICTIVE:  # what can be withdrawn
            free = [p.id for p in policy.purposes.values() if p.needs_consent or p.objectable]
            purposes = free or purposes
    elif record.status in FOR_ALL:
        purposes = policy.family[record.purpose]
    else:
        purposes = (record.purpose,)
    return [p for p in purposes if record.channel is None or record.channel in policy.purposes[p].channels]


def status_term(status: Status, purpose: Purpose) -> tuple[str, str]:
    """By which property a status is told, and as which term.

    An objection to what rests on consent (direct marketing, Art. 21(2)) ends it as a withdrawal does.
    """
    if status == "objected" and purpose.needs_consent:
        status = "withdrawn"
    term = CONSENT_STATUS.get(status)
    if term is not None:
        return "dpv:hasConsentStatus", term
    return "dpv:hasStatus", BASIS_STATUS.get(status, {}).get(purpose.legal_basis, OTHER_STATUS[status])


def shown(event: Event, policy: Policy, purposes: Sequence[str]) -> tuple[Notice | None, str]:
    """The notice that people had before them, and in which language; of a no that names none the one that applies."""
    if event.notice is not None:
        return policy.notices[event.notice.id][event.notice.version], event.notice.language
    newest = [versions[max(versions)] for versions in policy.notices.values()]
    fitting = [notice for notice in newest if any(purpose in notice.purposes for purpose in purposes)]
    return next(iter(fitting or newest), None), policy.tenant.languages[0]


def worded(texts: dict[str, str], language: str) -> tuple[str, str]:
    """A text in a language, or else in the first one that there is; with the language."""
    found = language if language in texts else next(iter(texts), language)
    return texts.get(found, ""), found


class _Process(NamedTuple):
    """What is said about one purpose, up to the moment."""

    purpose: str
    start: bytes
    lasts: Duration | None
    """How long a grant holds. Of a child it may end sooner, on the day when the child decides alone."""


class _Pieces:
    """What the receipts under one policy have in common."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._said: dict[tuple[Any, ...], list[_Process]] = {}
        self._about: dict[tuple[Any, ...], bytes] = {}

    def said(self, event: Event, record: EventRecord) -> list[_Process]:
        """What a record says, by purpose."""
        key = (
            record.purpose, record.status, record.channel, record.recipient, event.method, event.guardian is None,
        )  # fmt: skip
        found = self._said.get(key)
        if found is None:
            if len(self._said) >= MAX_PIECES:
                self._said.clear()
            purposes = spoken(self._policy, record)
            found = self._said[key] = [self._process(purpose, event, record) for purpose in purposes]
        return found

    def about(self, event: Event, purposes: tuple[str, ...]) -> bytes:
        """What a record says of all its purposes: who, on which notice, who receives, how to withdraw, whom to ask."""
        notice = event.notice
        key = (purposes, None if notice is None else (notice.id, notice.version, notice.language))
        found = self._about.get(key)
        if found is None:
            if len(self._about) >= MAX_PIECES:
                self._about.clear()
            found = self._about[key] = _members(_about(event, self._policy, purposes)) + b',"dpv:hasProcess":['
        return found

    def _process(self, purpose: str, event: Event, record: EventRecord) -> _Process:
        declared = self._policy.purposes[purpose]
        prop, term = status_term(record.status, declared)
        types = [term]
        if prop == "dpv:hasConsentStatus":
            explicit = event.method in EXPLICIT_METHODS if record.status in GRANTS else declared.needs_explicit
            types.append("dpv:ExplicitlyExpressedConsent" if explicit else "dpv:ExpressedConsent")
        lasts = declared.valid_for if record.status in GRANTS else None
        person = "#subject" if event.guardian is None else "#guardian"
        status: Node = {
            "@type": types,
            "dpv:isIndicatedBy": "#controller" if record.status in _BY_CONTROLLER else person,
            "dpv:hasScope": declared.channels if record.channel is None else record.channel,
            "dpv:hasDuration": {"@type": "dpv:UntilEventDuration"} if lasts is None else _lasting(lasts),
        }
        if event.method is not None:
            status["dpv:hasIndicationMethod"] = event.method
        node = _declared(self._policy, declared, record.recipient)
        start = b"{" + _members(node) + b',"%s":{' % prop.encode() + _members(status) + b',"dpv:isIndicatedAtTime":'
        return _Process(purpose, start, lasts)


_KNOWN: dict[str, _Pieces] = {}


def _of(policy: Policy) -> _Pieces:
    found = _KNOWN.get(policy.hash)
    if found is None:
        if len(_KNOWN) >= MAX_POLICIES:
            del _KNOWN[next(iter(_KNOWN))]
        found = _KNOWN[policy.hash] = _Pieces(policy)
    return found


def _about(event: Event, policy: Policy, purposes: tuple[str, ...]) -> Node:
    notice, language = shown(event, policy, purposes)
    tenant, home = policy.tenant, policy.jurisdictions.get(policy.tenant.jurisdiction)
    controller = _party("#controller", ("dpv:LegalEntity", "dpv:DataController"), tenant.id, tenant.controller)
    authority = home.authority if notice is None and home is not None else None
    node: Node = {"dpv:hasDataController": controller, "dpv:hasJurisdiction": f"loc:{tenant.jurisdiction}"}
    if notice is not None:
        authority = notice.complaint
        text, spoken_in = worded(notice.withdrawal, language)
        controller["dpv:hasDataProtectionOfficer"] = {
            "@type": "dpv:DataProtectionOfficer",
            "dpv:hasContact": notice.dpo,
        }
        if notice.representative is not None:
            party = _party("#representative", ("dpv:LegalEntity", "dpv:Representative"), None, notice.representative)
            controller["dpv:hasRepresentative"] = party
        node["dpv:hasConsentControl"] = {"@type": "dpv:WithdrawConsent", "dpv:isExercisedAt": {spoken_in: text}}
    else:
        node["dpv:hasConsentControl"] = {"@type": "dpv:WithdrawConsent"} | _UNKNOWN
    node |= {
        "dpv:hasNotice": _notice(notice, language, communicated=event.notice is not None),
        "dct:language": language,
        "dpv:hasApplicableLaw": GDPR,
        "dpv:hasAuthority": _UNKNOWN if authority is None else _authority(authority),
    }
    parties = {it.id: it for purpose in purposes for it in policy.purposes[purpose].recipients}
    return node | {"dpv:hasRecipient": [_recipient(it) for it in parties.values()] or _NONE}


def _notice(notice: Notice | None, language: str, *, communicated: bool) -> Node:
    if notice is None:
        return {"@type": "dpv:PrivacyNotice"} | _UNKNOWN
    node: Node = {
        "@id": "#notice",
        "@type": "dpv:ConsentNotice" if communicated else "dpv:PrivacyNotice",
        "dct:identifier": f"{notice.id}/{notice.version}",
        "dct:language": language,
        "schema:sha256": notice.hash,
    }
    return node | {"dpv:hasNoticeStatus": "dpv:NoticeCommunicated"} if communicated else node


def _declared(policy: Policy, purpose: Purpose, recipient: str | None) -> Node:
    """What a record says of a purpose, whatever was decided."""
    stored = purpose.storage or policy.tenant.storage
    reached = [it for it in purpose.recipients if recipient in (None, it.id)]
    places = tuple(dict.fromkeys((*stored, *(it.country for it in reached))))
    node: Node = {
        "@type": "dpv:Process",
        "dpv:hasPurpose": {"@type": purpose.dpv, "dct:identifier": purpose.id, "dct:title": purpose.name},
        "dpv:hasLegalBasis": purpose.basis_term,
        "dpv:hasPersonalData": _data(purpose),
        "dpv:hasDataSource": [SOURCE_TERM[source] for source in purpose.sources],
        "dpv:hasProcessing": purpose.processing,
        "dpv:hasStorageCondition": [
            {"@type": "dpv:StorageLocation"} | ({"dpv:hasLocation": _places(stored)} if stored else _UNKNOWN),
            {
                "@type": "dpv:StorageDuration",
                "dpv:hasDuration": _lasting(purpose.retention.period),
                "dpv:hasScope": f"after {purpose.retention.after}",
            },
        ],
        "dpv:hasRight": [f"eu-gdpr:{article}" for article in rights(purpose)],
        "dpv:hasRecipient": [f"#recipient-{it.id}" for it in reached] or _NONE,
    }
    if places:
        node["dpv:hasLocation"] = _places(places)
    if third := [country for country in places if country not in EEA]:
        node["dpv:hasThirdCountry"] = _places(third)
    return node | _circumstances(purpose)


def rights(purpose: Purpose) -> Iterator[str]:
    """The articles under which a person has rights about a purpose, each once."""
    yield from RIGHTS[purpose.legal_basis]
    if "A7-3" not in RIGHTS[purpose.legal_basis] and purpose.needs_consent:
        yield "A7-3"
    if "A21" not in RIGHTS[purpose.legal_basis] and purpose.objectable:
        yield "A21"
    if purpose.sources != ("data_subject",):
        yield "A14"


def _circumstances(purpose: Purpose) -> Node:
    """What only some purposes have."""
    node: Node = {}
    if purpose.joint_controllers:
        types = ("dpv:LegalEntity", "dpv:DataController")
        node["dpv:hasJointDataControllers"] = [_party(None, types, None, it) for it in purpose.joint_controllers]
    if purpose.assessment is not None:
        assessment = purpose.assessment
        named = {"dct:identifier": assessment.id, "dct:date": assessment.date}
        node["dpv:hasAssessment"] = {"@type": "dpv:Assessment"} | named
    if purpose.significant_adm is not None:
        node["dpv:hasContext"] = "dpv:AutomatedDecisionMaking"
        node["dpv:hasAlgorithmicLogic"] = purpose.significant_adm.logic
        node["dpv:hasHumanInvolvement"] = {"dpv:hasContact": purpose.significant_adm.human_contact}
    return node


def _data(purpose: Purpose) -> list[Node]:
    found: list[Node] = [
        {"@type": term, "dpv:hasNecessity": "dpv:Optional" if term in purpose.optional_data else "dpv:Required"}
        for term in purpose.data_categories
    ]
    return [*found, {"@type": "dpv:SpecialCategoryPersonalData"}] if purpose.special_category else found


def _party(node_id: str | None, types: Sequence[str], identifier: str | None, party: Party) -> Node:
    named: Node = {} if node_id is None else {"@id": node_id}
    ways = [way for way in (party.email, party.phone, party.url) if way is not None]
    return named | {
        "@type": types,
        "dct:identifier": identifier or party.url or party.name,
        "dpv:hasName": party.name,
        "dpv:hasAddress": party.address,
        "dpv:hasContact": ways or party.address,
        "dpv:hasCountry": f"loc:{party.country}",
    }


def _authority(authority: Party) -> Node:
    return _party("#authority", ("dpv:LegalEntity", "dpv:DataProtectionAuthority"), None, authority)


def _recipient(recipient: Recipient) -> Node:
    node: Node = {
        "@id": f"#recipient-{recipient.id}",
        "@type": ("dpv:LegalEntity", "dpv:Recipient", ROLE_TERM[recipient.role]),
        "dct:identifier": recipient.id,
        "dpv:hasName": recipient.name,
        "dpv:hasAddress": recipient.address or _UNKNOWN,
        "dpv:hasContact": recipient.contact or _UNKNOWN,
        "dpv:hasCountry": f"loc:{recipient.country}",
    }
    transfer = {"dpv:hasJustification": recipient.safeguard}
    return node if recipient.safeguard == "none_needed" else node | transfer


def _places(countries: Sequence[str]) -> list[str]:
    return [f"loc:{country}" for country in countries]


def _lasting(duration: Duration) -> Node:
    return {"@type": "dpv:TemporalDuration", "rdf:value": str(duration)}


def _members(node: Node) -> bytes:
    """A node without its braces."""
    return _ENCODER.encode(node)[1:-1]


_START = b'{"@context":{"@base":"urn:uuid:'
_AFTER_BASE = (
    b'",' + _members(CONTEXT) + b'},"@id":"#receipt","@type":"dpv:ConsentReceipt","dct:conformsTo":"%s",'
    b'"dct:identifier":"urn:uuid:' % RECEIPT_PROFILE.encode()
)
_AFTER_RECEIPT = b'#receipt","dct:created":'
_AFTER_CREATED = (
    b',"dct:publisher":"#controller","schema:recipient":"#subject","dpv:hasRecordOfActivity":{"@id":"#record",'
    b'"@type":"dpv:ConsentRecord","dct:conformsTo":"%s","dct:identifier":"urn:uuid:' % RECORD_PROFILE.encode()
)
_AFTER_RECORD = b'","dct:created":'
_AFTER_NOW = b',"dpv:hasDataSubject":{"@id":"#subject","@type":"dpv:DataSubject","dct:identifier":"urn:uuid:'
_AFTER_SUBJECT = b'#subject"},'
_GUARDIAN = (
    b'"dpv:hasRelationWithDataSubject":{"@id":"#guardian","@type":"dpv:GuardianOfDataSubject",'
    b'"dct:identifier":"urn:uuid:'
)
_AFTER_GUARDIAN = b'"},'
_VALID = b',"dct:valid":'
_END_OF_PROCESS = b"}},"
_END = b"}}]}}"
