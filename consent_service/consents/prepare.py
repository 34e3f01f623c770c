"""From a body to an `Act` that may be written, or to everything that is wrong with it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import msgspec

from consent_service import clock, decode, ids, jcs
from consent_service.auth import Credential
from consent_service.consents.model import ConsentBody, Record, Shown
from consent_service.errors import FieldError, Invalid, KeyMissing
from consent_service.policies import GRADES, Method, Notice, Policy, Purpose
from consent_service.states import ALL_PURPOSES, ANY, FOR_ALL, GRANTS, RESTRICTIVE, SLOT, Slot, Status
from consent_service.subjects import ADDRESSES, MAX_ID, Hasher, Subject, address, id_errors

CLOCK_SKEW = timedelta(seconds=5)
"""A caller's clock may run ahead of ours by this much; the time is then ours."""
MAX_EVIDENCE = 65_536
"""Bytes of evidence as it is kept, which can be more than was sent: JSON has short ways to write long numbers."""
_IMPORTED = GRADES.index("imported")
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
_ATTESTED_ONLY = frozenset({"confirmed", "applies", "ceased", "restricted", "restriction_lifted"})
_WITH_NOTICE = GRANTS | {"requested"}
_WITHOUT_KEY = RESTRICTIVE | {"ceased", "restricted"}


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A record that may be written."""

    purpose: str
    status: Status
    channel: str
    contact: bytes
    contact_value: str | None
    recipient: str
    occurred_at: datetime | None


class Act(msgspec.Struct, frozen=True, gc=False):
    """One event to be written, checked against one version of the policy."""

    policy: Policy
    policy_version: int
    credential: str
    key: bytes
    """Keyed hash of the idempotency key and of whose it is."""
    body_hash: bytes
    identifier: bytes
    subject: Subject
    records: tuple[Prepared, ...]
    notice: Shown | None
    notice_hash: str | None
    method: Method | None
    evidence: msgspec.Raw | None
    """Canonical JSON."""
    grade: int
    whole: bool
    """Whether the caller may be told what holds for the person, or for the identifier alone."""
    guardian: bytes
    """Keyed hash of the guardian who acted; b"" where none did."""
    listed: bool = False
    """Whether it is a row of a list that is read in: whoever was erased does not come back by it."""
    addresses: tuple[bytes, ...] = ()
    """Of such a row: the identifiers that its addresses and numbers would be."""

    @property
    def minds_tombstones(self) -> bool:
        """Whether it matters to somebody new if they were erased: a fresh opt-in, said now, ends the suppression."""
        purposes = self.policy.purposes
        return self.grade == _IMPORTED or any(
            record.occurred_at is not None
            or (
                record.status not in GRANTS
                and (record.purpose == ALL_PURPOSES or purposes[record.purpose].direct_marketing)
            )
            for record in self.records
        )


def attests(credential: Credential) -> bool:
    """Whether a caller vouches for whom it reports about; others speak for a device only."""
    return "write:attested" in credential.scopes


def grade_of(credential: Credential, method: Method | None) -> int:
    """The evidence grade follows from who reports and how, never from a claim. Place in GRADES."""
    if method == "import":
        return GRADES.index("imported")
    if attests(credential):
        return GRADES.index("service_attested")
    return GRADES.index("login" if credential.kind == "person" else "anonymous_device")


class _Preparation:
    """Checks one body against a policy; collects every field error."""

    def __init__(self, policy: Policy, sent: Sent, credential: Credential, hasher: Hasher, now: datetime) -> None:
        self.policy = policy
        self.body = sent.body
        self.attested = attests(credential)
        self.listed = sent.listed
        self.hasher = hasher
        self.now = now
        self.errors: list[FieldError] = list(id_errors(self.body.subject.id, "/subject/id"))
        self.nameless = bool(self.errors)
        """Whether the subject cannot be meant, so that nothing may be written."""
        if self.body.guardian is not None:
            self.errors += id_errors(self.body.guardian.id, "/guardian/id")
        self.notice = self._notice()
        self.evidence = self._evidence()
        if self.body.guardian is not None and not self.attested:
            self.errors.append(FieldError("/guardian", "is for credentials with the scope `write:attested`"))
        prepared = [self._record(place, record) for place, record in zip(sent.places, self.body.records, strict=True)]
        self.records = [record for record in prepared if record is not None]

    def _notice(self) -> Notice | None:
        shown = self.body.notice
        if not any(record.status in _WITH_NOTICE for record in self.body.records):
            return None
        if self.body.method is None:
            self.errors.append(FieldError("/method", "is missing; a grant says how it was expressed, e.g. `form`"))
        if shown is None:
            if not self.listed:  # of an old consent often nobody knows; `decide` weighs what that is worth
                self.errors.append(
                    FieldError("/notice", 'is missing; a grant names what was shown: {"id", "version", "language"}')
                )
            return None
        versions = self.policy.notices.get(shown.id)
        if versions is None:
            known = _listed(sorted(self.policy.notices))
            self.errors.append(FieldError("/notice/id", f"is no notice of this policy; known are {known}"))
            return None
        notice = versions.get(shown.version)
        if notice is None:
            self.errors.append(FieldError("/notice/version", f"was never published; the newest is {max(versions)}"))
        elif shown.language not in notice.text:
            known = _listed(sorted(notice.text))
            self.errors.append(FieldError("/notice/language", f"is none of this notice's languages: {known}"))
            return None
        return notice

    def _evidence(self) -> msgspec.Raw | None:
        """In canonical form; a no stands without what cannot be brought into it."""
        if self.body.evidence is None:
            return None
        try:
            found = jcs.canonical(self.body.evidence, "/evidence")
        except Invalid as invalid:
            self.errors += invalid.errors
            return None
        if len(bytes(found)) > MAX_EVIDENCE:
            self.errors.append(
                FieldError("/evidence", f"has more than {MAX_EVIDENCE} bytes as canonical JSON (RFC 8785)")
            )
            return None
        return found

    def _record(self, place: int, record: Record) -> Prepared | None:
        pointer = f"/records/{place}"
        before = len(self.errors)
        if record.purpose == ALL_PURPOSES and record.status in FOR_ALL:
            purpose = None
        else:
            purpose = self.policy.purposes.get(record.purpose)
            if purpose is None:
                self.errors.append(FieldError(f"{pointer}/purpose", self._unknown_purpose(record)))
                return None
        if record.status in _ATTESTED_ONLY and not self.attested:
            self.errors.append(FieldError(f"{pointer}/status", "is for credentials with the scope `write:attested`"))
        if record.status in RESTRICTIVE or purpose is None:
            return self._restriction(record, purpose)
        self.errors += self._record_errors(record, purpose, pointer)
        if len(self.errors) > before:
            return None
        contact = record.contact
        channel = record.channel or (purpose.channels[0] if len(purpose.channels) == 1 else ANY)
        return Prepared(
            purpose.id,
            "requested" if record.status == "given" and purpose.double_opt_in else record.status,
            ANY if SLOT[record.status] in (Slot.FACT, Slot.RESTRICTION) and not record.channel else channel,
            b"" if contact is None else self.hasher.contact(contact),
            contact,
            record.recipient or ANY,
            self._utc(record.occurred_at),
        )

    def _restriction(self, record: Record, purpose: Purpose | None) -> Prepared:
        """A no needs nothing but its purpose. What would narrow it to nothing is left out, so that it covers more."""
        channel = record.channel if purpose is not None and record.channel in purpose.channels else ANY
        purposes = self.policy.purposes.values() if purpose is None else (purpose,)
        known = {recipient.id for one in purposes for recipient in one.recipients} if record.recipient else set()
        recipient = record.recipient if record.recipient in known else ANY
        return Prepared(
            record.purpose, record.status, channel or ANY, b"", None, recipient or ANY, self._utc(record.occurred_at)
        )

    def _record_errors(self, record: Record, purpose: Purpose, pointer: str) -> Iterator[FieldError]:
        """What keeps a record of a named purpose, other than a no, from being written."""
        if (wrong := _status_error(record.status, purpose)) is not None:
            yield FieldError(f"{pointer}/status", wrong)
        yield from _scope_errors(record, purpose, pointer)
        if record.contact is not None:
            yield from id_errors(record.contact, f"{pointer}/contact")
        if record.status in _WITH_NOTICE and self.notice is not None and purpose.id not in self.notice.purposes:
            yield FieldError(
                f"{pointer}/purpose",
                f"is not presented by notice `{self.notice.id}` version {self.notice.version}; name what was shown",
            )
        if record.occurred_at is not None:
            moment = self._utc(record.occurred_at)
            if moment is None:
                yield FieldError(f"{pointer}/occurred_at", "is before 1990 or after 9999; send the moment of the act")
            elif moment > self.now + CLOCK_SKEW:
                yield FieldError(f"{pointer}/occurred_at", "lies in the future; send the moment of the act, or nothing")

    def _utc(self, moment: datetime | None) -> datetime | None:
        """UTC; None for a time that cannot be meant, which for a no then means now."""
        if moment is None:
            return None
        try:
            utc = moment.astimezone(UTC)
        except OverflowError:
            return None
        return utc if utc >= _EARLIEST else None

    def _unknown_purpose(self, record: Record) -> str:
        if len(self.errors) >= decode.MAX_ERRORS:
            return "is no purpose of this policy"
        if record.purpose == ALL_PURPOSES:
            return f"`*` is for restrictive records; `{record.status}` names one purpose at a time"
        return decode.unknown(list(self.policy.purposes), record.purpose, "is no purpose of this policy")


def _status_error(status: Status, purpose: Purpose) -> str | None:
    """Which statuses a purpose's basis knows."""
    slot = SLOT[status]
    if slot == Slot.FACT and purpose.legal_basis == "consent":
        return f"`{status}` is for purposes on another basis; `{purpose.id}` rests on consent"
    if slot in (Slot.GRANT, Slot.REQUEST) and not (purpose.needs_consent or purpose.objectable):
        return f"`{status}` is for consent; `{purpose.id}` rests on {purpose.legal_basis}: record `applies`"
    return None


def _scope_errors(record: Record, purpose: Purpose, pointer: str) -> Iterator[FieldError]:
    """Channel, contact and recipient of a record that must stay within its purpose."""
    consent = record.status in _WITH_NOTICE
    if record.channel is not None and record.channel not in purpose.channels:
        yield FieldError(f"{pointer}/channel", f"is no channel of `{purpose.id}`; it has {_listed(purpose.channels)}")
    elif record.channel is None and len(purpose.channels) > 1 and consent:
        yield FieldError(f"{pointer}/channel", f"is missing; `{purpose.id}` has {_listed(purpose.channels)}")
    if record.contact is not None and purpose.contact == "none":
        yield FieldError(f"{pointer}/contact", f"`{purpose.id}` holds for no contact; leave it out")
    elif record.contact is None and purpose.contact == "required" and consent:
        yield FieldError(f"{pointer}/contact", f"is missing; `{purpose.id}` holds for one address or number")
    if record.recipient is not None and all(record.recipient != known.id for known in purpose.recipients):
        known = _listed([recipient.id for recipient in purpose.recipients]) or "none"
        yield FieldError(f"{pointer}/recipient", f"is no recipient of `{purpose.id}`; it has {known}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# -- reading a body, whatever of it can be read -----------------------------------------------------------------------


class Sent(NamedTuple):
    """A body as far as it has the right shape."""

    body: ConsentBody
    places: Sequence[int]
    """Where each of its records stood."""
    errors: tuple[FieldError, ...]
    """What had the wrong shape, and is left out."""
    listed: bool = False
    """Whether it is a row of a list that is read in: its grants may lack the notice."""


def read(raw: bytes) -> Sent:
    """Decode a body. A no stands, whatever stands beside it: so a wrong shape elsewhere does not end the reading.

    Raises:
        Malformed, Invalid: there is no JSON, no subject, or no list of records.
    """
    try:
        body = decode.body(raw, ConsentBody, unique=True)
    except Invalid as error:
        rest = _salvage(decode.tree(raw), error.errors)
        if rest is None:
            raise
        return rest
    return Sent(body, range(len(body.records)), ())


def _salvage(tree: Any, errors: tuple[FieldError, ...]) -> Sent | None:
    try:
        subject = msgspec.convert(tree["subject"], Subject, strict=True)
        found = [(place, _salvaged(entry)) for place, entry in enumerate(tree["records"])]
    except (msgspec.ValidationError, KeyError, TypeError):
        return None
    kept = [(place, record) for place, record in found if record is not None]
    body = ConsentBody(
        subject=subject,
        records=tuple(record for _, record in kept),
        id=_shaped(tree.get("id"), str),
        notice=_shaped(tree.get("notice"), Shown),
        method=_shaped(tree.get("method"), Method),
        evidence=_shaped(tree.get("evidence"), dict),
        guardian=_shaped(tree.get("guardian"), Subject),
        proof=_shaped(tree.get("proof"), str),
    )
    return Sent(body, [place for place, _ in kept], errors)


def _salvaged(entry: Any) -> Record | None:
    """A record of the right shape; of a no with wrong members, what is right of it."""
    record: Record | None = _shaped(entry, Record)
    if record is not None or not isinstance(entry, dict):
        return record
    purpose, status = entry.get("purpose"), entry.get("status")
    if not isinstance(purpose, str) or not isinstance(status, str) or status not in RESTRICTIVE:
        return None
    return Record(
        purpose=purpose,
        status=cast("Status", status),
        channel=_shaped(entry.get("channel"), str),
        recipient=_shaped(entry.get("recipient"), str),
    )


def _shaped(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        return None


# -- the whole step -------------------------------------------------------------------------------------------------


def prepare(
    policy: Policy, version: int, sent: Sent, credential: Credential, key: str | None, hasher: Hasher
) -> tuple[Act | None, list[FieldError]]:
    """The act to write, and what is wrong with the body. With errors the act holds only its noes, or there is none.

    Raises:
        KeyMissing: nothing is wrong but that a call without a no lacks its key.
    """
    body = sent.body
    prepared = _Preparation(policy, sent, credential, hasher, clock.now())
    key, key_errors = _idempotency_key(body.id, key)
    errors = [*sent.errors, *_beyond(sent.errors, prepared.errors), *key_errors][: decode.MAX_ERRORS]
    noes = [record for record in prepared.records if record.status in RESTRICTIVE]
    if not errors and key is None and any(record.status not in _WITHOUT_KEY for record in body.records):
        if not noes:
            raise KeyMissing
        errors = [FieldError("/id", "is missing; a grant needs it, or the header `Idempotency-Key`")]
    records = _latest(noes) if errors else prepared.records
    if prepared.nameless or not records:
        return None, errors
    notice = prepared.notice
    act = Act(
        policy=policy,
        policy_version=version,
        credential=credential.id,
        # Without a key of its own an act still gets one: it tells after a lost connection whether it was written.
        # The noes of a refused call have a key beside the caller's, which stays free for the corrected call.
        key=ids.random() if key is None else _call(body, credential, key, hasher, b"noes" if errors else b"whole"),
        body_hash=_body_hash(body, hasher),
        identifier=hasher.identifier(body.subject),
        subject=body.subject,
        records=_distinct(records),
        notice=None if notice is None else body.notice,
        notice_hash=None if notice is None else notice.hash,
        method=body.method,
        evidence=prepared.evidence,
        grade=grade_of(credential, body.method),
        whole=attests(credential) or credential.kind == "person",
        guardian=b"" if body.guardian is None else hasher.identifier(body.guardian),
        listed=sent.listed,
        addresses=_addresses(body, hasher) if sent.listed else (),
    )
    return act, errors


def _addresses(body: ConsentBody, hasher: Hasher) -> tuple[bytes, ...]:
    """Under which identifiers an erasure would have left a tombstone for the addresses and numbers of a row."""
    named = [record.contact for record in body.records if record.contact is not None]
    if body.subject.type in ADDRESSES:
        named.append(body.subject.id)
    return tuple([hasher.identifier(address(one)) for one in named])


def _distinct(records: list[Prepared]) -> tuple[Prepared, ...]:
    """Each record once."""
    if len({record.purpose for record in records}) == len(records):  # as nearly always
        return tuple(records)
    return tuple(dict.fromkeys(records))


def _latest(noes: list[Prepared]) -> list[Prepared]:
    """Of noes that say the same the latest: a body that is too long may hold any number."""
    latest: dict[tuple[str, ...], Prepared] = {}
    for no in noes:
        key = (no.purpose, no.status, no.channel, no.recipient)
        other = latest.get(key)
        if (
            other is None
            or no.occurred_at is None
            or (other.occurred_at is not None and other.occurred_at < no.occurred_at)
        ):
            latest[key] = no
    return list(latest.values())


class Earlier(NamedTuple):
    """Where the answer to the same call, made before, would be."""

    key: bytes
    body_hash: bytes


def earlier(sent: Sent, credential: Credential, key: str | None, hasher: Hasher) -> Earlier | None:
    """Where to look for an earlier call like this one; None where the call has no key."""
    key, _ = _idempotency_key(sent.body.id, key)
    if key is None:
        return None
    return Earlier(_call(sent.body, credential, key, hasher, b"whole"), _body_hash(sent.body, hasher))


def _call(body: ConsentBody, credential: Credential, key: str, hasher: Hasher, part: bytes) -> bytes:
    """Devices share a publishable key, so each has its idempotency keys for itself."""
    device = b"" if attests(credential) else hasher.identifier(body.subject)
    return hasher.call(credential.id, device, key, part)


def _beyond(shape: tuple[FieldError, ...], found: list[FieldError]) -> Iterator[FieldError]:
    """What the policy says beyond the errors of shape: a member that was left out for its shape is not missing."""
    for error in found:
        if not any(wrong.pointer == error.pointer or wrong.pointer.startswith(f"{error.pointer}/") for wrong in shape):
            yield error


def _idempotency_key(in_body: str | None, in_header: str | None) -> tuple[str | None, list[FieldError]]:
    """The idempotency key: the body's or the header's, there bare or quoted (draft-ietf-httpapi-idempotency-key)."""
    if in_header is not None:
        try:
            in_header = in_header.encode("latin-1").decode().strip(" \t")
        except UnicodeDecodeError:
            return None, [FieldError("/id", "`Idempotency-Key` is not UTF-8")]
        if len(in_header) > 1 and in_header[0] == in_header[-1] == '"':
            in_header = in_header[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        if not 0 < len(in_header) <= MAX_ID or not in_header.isprintable():
            return None, [FieldError("/id", f"`Idempotency-Key` must have 1 to {MAX_ID} printable characters")]
        if in_body is not None and in_body != in_header:
            return None, [FieldError("/id", "differs from `Idempotency-Key`; send one of them")]
    return in_header if in_header is not None else in_body, []


_SAID = msgspec.json.Encoder(order="sorted")


def _body_hash(body: ConsentBody, hasher: Hasher) -> bytes:
    """What makes two calls the same: everything but the key itself. Keyed, because names can be guessed."""
    said = (body.subject, body.records, body.notice, body.method, body.evidence, body.guardian)
    return hasher.body(_SAID.encode(said))
