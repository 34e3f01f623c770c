"""The check path: one indexed read of the subject's states (never of history), then `decide`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import UNSET

from consent_service import db, decode
from consent_service.auth import Credential, Scope
from consent_service.decisions.decide import REASONS, Ask, Decision, decide
from consent_service.decisions.model import (
    Answer,
    Check,
    Checks,
    Decisions,
    ExplainedNotice,
    ExplainedRecord,
    Explanation,
    History,
    HistoryBody,
    HistoryEvent,
    Origin,
    PurposeState,
    SubjectBody,
    SubjectState,
)
from consent_service.devices import Devices
from consent_service.errors import FieldError, Invalid, RevisionAhead
from consent_service.ledger import Batcher, Ledger, Ledgers, PerLedger, Revision
from consent_service.policies import GRADES, Policy, Purpose
from consent_service.states import ALL_PURPOSES, State
from consent_service.subjects import Hasher, Subject, id_errors
from consent_service.tenures import LinkedIdentifier, Person, Snapshot, names, read
from consent_service.vault import Place, StrandKey, contact_of

_PAUSE_AFTER_S = 0.005
_MAX_EXPLAINED = 100
"""How many checks of one call may be explained."""
_MAX_CONSIDERED = 20
_PARALLEL = 2


class ContactRow(msgspec.Struct, frozen=True):
    """A contact by its keyed hash, and the key of the strand that seals its value."""

    contact: bytes
    value: bytes
    identifier: bytes
    tenure: int
    key: bytes


class HistoryRow(msgspec.Struct, frozen=True):
    """An event of one identifier, and the key of its strand."""

    idx: int
    tenure: int
    sequence: int
    event: UUID
    payload: bytes
    key: bytes


_READ_CONTACTS = db.many("decisions", "read_contacts", ContactRow)
_READ_HISTORY = db.many("decisions", "read_history", HistoryRow)
_ENCODER = msgspec.json.Encoder()


class Checker:
    """Answers checks of all tenants from the database."""

    def __init__(self, ledgers: Ledgers, devices: Devices) -> None:
        self._devices = devices
        self._books = PerLedger(ledgers, _Book)

    async def check(self, raw: bytes, credential: Credential) -> bytes:
        """Answer one check (`Check` to `Answer`).

        Raises:
            RevisionAhead: `at_least` lies beyond the ledger's head.
            Invalid, Malformed, Forbidden, Unavailable: see there.
        """
        check = decode.body(raw, Check)
        self._devices.demand_own(credential, check.subject, check.proof, "check")
        book = self._books.of(credential.log_id)
        at_least = _validate((check,), lambda _: "")
        identifier = book.ledger.hasher.identifier(check.subject)
        snapshot = await book.reader.submit((identifier, check.subject.type))
        _demand(snapshot, at_least)
        who = _whole_or_own(snapshot, identifier, credential, "check")
        return _ENCODER.encode(_answer(snapshot, who, check, book.ledger.hasher))

    async def checks(self, raw: bytes, credential: Credential) -> bytes:
        """Answer up to MAX_CHECKS checks in their order, all at one revision (`Checks` to `Decisions`)."""
        checks = decode.body(raw, Checks).checks
        book = self._books.of(credential.log_id)
        at_least = _validate(checks, "/checks/{}".format)
        hasher = book.ledger.hasher
        identifiers = [hasher.identifier(check.subject) for check in checks]
        asked = dict(zip(identifiers, [check.subject.type for check in checks], strict=True))
        snapshot = await book.read(asked)
        _demand(snapshot, at_least)
        answers: list[Answer] = []
        began = time.perf_counter()
        for check, identifier in zip(checks, identifiers, strict=True):
            answers.append(_answer(snapshot, snapshot.of(identifier), check, hasher))
            if time.perf_counter() - began > _PAUSE_AFTER_S:
                await asyncio.sleep(0)  # a long batch must not hold up single checks
                began = time.perf_counter()
        return _ENCODER.encode(Decisions(answers))

    async def state(self, raw: bytes, credential: Credential) -> bytes:
        """Where a person stands on every purpose × channel (`SubjectBody` to `SubjectState`)."""
        body = decode.body(raw, SubjectBody)
        _demand_id(body.subject)
        self._devices.demand_own(credential, body.subject, body.proof, "state")
        book = self._books.of(credential.log_id)
        identifier = book.ledger.hasher.identifier(body.subject)
        snapshot = await book.reader.submit((identifier, body.subject.type))
        head, who = snapshot.head, _whole_or_own(snapshot, identifier, credential, "state")
        contacts = await book.contacts(who)
        return _ENCODER.encode(
            SubjectState(
                subject=body.subject,
                rev=str(head.revision),
                as_of=head.now,
                policy=head.policy,
                states=list(_purpose_states(snapshot.policy, who, contacts, head.now)),
                identifiers=await _named(book.ledger, who, body.subject, credential),
            )
        )

    async def history(self, raw: bytes, credential: Credential) -> bytes:
        """A page of the events that were recorded for an identifier (`HistoryBody` to `History`)."""
        body = decode.body(raw, HistoryBody)
        _demand_id(body.subject)
        book = self._books.of(credential.log_id)
        events = await book.history(book.ledger.hasher.identifier(body.subject), body.after, body.limit + 1)
        page = events[: body.limit]
        more = len(events) > body.limit
        return _ENCODER.encode(History(page, _cursor(page[-1].strand, page[-1].sequence) if more else None))


class _Book:
    """The reads of one tenant. Single checks that arrive together share one statement, begun after each of them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.reader: Batcher[tuple[bytes, str], Snapshot] = Batcher(self._read_batch, parallel=_PARALLEL)
        self._shared: tuple[int, frozenset[str]] = (0, frozenset())
        """By which version of the policy, the namespaces of things that change hands."""

    async def read(self, asked: Mapping[bytes, str]) -> Snapshot:
        """The head, the policy in force and the persons that the identifiers (with their namespaces) stand for."""
        while True:
            version, shared = self._shared
            snapshot = await read(self.ledger, list(asked), [namespace in shared for namespace in asked.values()])
            if snapshot.head.policy == version:
                return snapshot
            self._shared = snapshot.head.policy, frozenset(snapshot.policy.tenant.shared)

    async def contacts(self, who: Person) -> dict[bytes, str]:
        """The values of the contacts that a person's rows name, by their keyed hashes."""
        hashes = {state.contact for state in who.states if state.contact}
        if not hashes:
            return {}
        members = [member.member for member in who.members]
        async with self.ledger.connection() as connection:
            rows = await _READ_CONTACTS(connection, self.ledger.log_id, members, list(hashes))
        return {row.contact: self._key(row).open(contact_of(row.contact), row.value).decode() for row in rows}

    async def history(self, identifier: bytes, after: int, limit: int) -> list[HistoryEvent]:
        """Events past a cursor, oldest first."""
        tenure, sequence = divmod(after, _CURSOR)
        async with self.ledger.connection() as connection:
            rows = await _READ_HISTORY(connection, self.ledger.log_id, identifier, tenure + 1, sequence, limit)
        keys: dict[int, StrandKey] = {}
        events = []
        for row in rows:
            key = keys.get(row.tenure)
            if key is None:
                place = Place(self.ledger.log_id, identifier, row.tenure)
                key = keys[row.tenure] = self.ledger.vault.open(place, row.key)
            payload = msgspec.Raw(key.open(row.event.bytes, row.payload))
            events.append(HistoryEvent(index=row.idx, strand=row.tenure, sequence=row.sequence, event=payload))
        return events

    def _key(self, row: ContactRow) -> StrandKey:
        return self.ledger.vault.open(Place(self.ledger.log_id, row.identifier, row.tenure), row.key)

    async def _read_batch(self, asked: Sequence[tuple[bytes, str]]) -> Sequence[Snapshot]:
        snapshot = await self.read(dict(asked))
        return [snapshot] * len(asked)


_CURSOR = 1 << 40
"""A cursor is the strand, counted from 0, times this plus the place within it."""


def _cursor(tenure: int, sequence: int) -> int:
    return (tenure - 1) * _CURSOR + sequence


async def _named(ledger: Ledger, who: Person, subject: Subject, credential: Credential) -> list[LinkedIdentifier]:
    """By which identifiers the person is known; a device learns nothing of the others, nor by time whether it is."""
    if "state" in credential.scopes or credential.kind == "person":
        return await names(ledger, who.members)
    return [LinkedIdentifier(type=subject.type, id=subject.id, kind="self", link=None, since=None, until=None)]


def _whole_or_own(snapshot: Snapshot, identifier: bytes, credential: Credential, wider: Scope) -> Person:
    """The person; for a device that asks about itself only what was said on it, or carried to it."""
    if wider in credential.scopes or credential.kind == "person":
        return snapshot.of(identifier)
    return snapshot.own(identifier)


def _demand(snapshot: Snapshot, at_least: Revision | None) -> None:
    if at_least is not None and at_least > snapshot.head.revision:
        raise RevisionAhead


def _demand_id(subject: Subject) -> None:
    if errors := tuple(id_errors(subject.id, "/subject/id")):
        raise Invalid("Some fields cannot be accepted.", errors)


def _validate(checks: Sequence[Check], pointer: Callable[[int], str]) -> Revision | None:
    """The highest revision asked for; raises Invalid with every field error."""
    errors: list[FieldError] = []
    at_least: Revision | None = None
    explained = 0
    for index, check in enumerate(checks):
        at = pointer(index)
        errors += id_errors(check.subject.id, f"{at}/subject/id")
        if check.contact is not None:
            errors += id_errors(check.contact, f"{at}/contact")
        if check.at_least is not None:
            revision = Revision.parse(check.at_least)
            if revision is None:
                errors.append(FieldError(f"{at}/at_least", "is no `rev` of this service, such as `1.42`"))
            elif at_least is None or revision > at_least:
                at_least = revision
        explained += check.explain
        if explained > _MAX_EXPLAINED:
            errors.append(FieldError(f"{at}/explain", f"is asked for too often; at most {_MAX_EXPLAINED} in one call"))
            break
        if len(errors) >= decode.MAX_ERRORS:
            break
    if errors:
        raise Invalid("Some fields cannot be accepted.", tuple(errors))
    return at_least


def _answer(snapshot: Snapshot, who: Person, check: Check, hasher: Hasher) -> Answer:
    head, policy = snapshot.head, snapshot.policy
    contact = None if check.contact is None else hasher.contact(check.contact)
    ask = Ask(check.purpose, check.channel, contact, check.recipient, check.context)
    decision = decide(policy, who.states, ask, head.now, who.ties)
    purpose = policy.purposes.get(check.purpose)
    return Answer(
        allow=decision.allow,
        reason=decision.reason,
        basis="no_record" if decision.state is None else "record",
        valid_until=decision.valid_until,
        reuse_ms=int(purpose.reuse_window.total_seconds() * 1000) if purpose is not None and decision.allow else 0,
        rev=str(head.revision),
        policy=head.policy,
        record=None if decision.state is None else decision.state.event,
        as_of=head.now,
        age_ms=0,
        explain=_explain(policy, purpose, who, decision) if check.explain else UNSET,
    )


def _explain(policy: Policy, purpose: Purpose | None, who: Person, decision: Decision) -> Explanation:
    line = () if purpose is None else policy.lineage[purpose.id]
    said = [*who.states, *(state for rows in who.ties.groups for state in rows)]
    considered = [state for state in said if state.purpose in line or state.purpose == ALL_PURPOSES]
    considered.sort(key=lambda state: state.rank, reverse=True)
    adm = None if purpose is None else purpose.significant_adm
    return Explanation(
        rule=decision.rule,
        text=REASONS[decision.reason],
        legal_basis=None if purpose is None else purpose.basis_term,
        assessment=None if purpose is None or purpose.assessment is None else purpose.assessment.id,
        human_contact=None if adm is None else adm.human_contact,
        conflict_rule=None if purpose is None else purpose.conflict,
        identifiers=len(who.members),
        record=None if decision.state is None else _explained(policy, decision.state, who),
        considered=[_explained(policy, state, who) for state in considered[:_MAX_CONSIDERED]],
    )


def _explained(policy: Policy, state: State, who: Person) -> ExplainedRecord:
    notice = None
    if state.notice:
        text = policy.notices.get(state.notice, {}).get(state.notice_version)
        notice = ExplainedNotice(
            state.notice, state.notice_version, state.language, None if text is None else text.hash
        )
    return ExplainedRecord(
        event=state.event,
        origin=_origin(state, who),
        purpose=state.purpose,
        channel=state.channel or None,
        recipient=state.recipient or None,
        status=state.status,
        occurred_at=state.occurred_at,
        recorded_at=state.recorded_at,
        expires_at=state.expires_at,
        evidence_grade=GRADES[state.grade],
        method=state.method or None,
        notice=notice,
    )


def _origin(state: State, who: Person) -> Origin:
    if state.linked_at is not None:
        return "carried"
    kinds = {member.member: member.kind for member in who.members}
    match kinds.get(state.identifier):
        case "identity":
            return "linked"
        case "group":
            return "group"
        case _:
            return "account" if who.ties.account else "own"


def _purpose_states(policy: Policy, who: Person, contacts: dict[bytes, str], now: datetime) -> Iterator[PurposeState]:
    """One row per purpose × channel, and per contact where consents name one."""
    for purpose in policy.purposes.values():
        named = {s.contact for s in who.states if s.purpose == purpose.id and s.contact}
        for channel in purpose.channels:
            for contact in sorted(named) or [b""]:
                decision = decide(policy, who.states, Ask(purpose.id, channel, contact or None), now, who.ties)
                state = decision.state
                yield PurposeState(
                    purpose=purpose.id,
                    channel=channel,
                    contact=contacts.get(contact),
                    status=None if state is None else state.status,
                    allow=decision.allow,
                    reason=decision.reason,
                    valid_until=decision.valid_until,
                    record=None if state is None else state.event,
                )
