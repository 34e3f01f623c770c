"""The check path: one indexed read of the subject's states (never of history), then `decide`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from consent_service import db, decode
from consent_service.auth import Credential
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
    PurposeState,
    SubjectBody,
    SubjectState,
)
from consent_service.errors import FieldError, Invalid, NotFound, RevisionAhead
from consent_service.ledger import Batcher, Head, Revision
from consent_service.policies import GRADES, Policy, Purpose
from consent_service.policies.store import Policies
from consent_service.states import ALL_PURPOSES, State
from consent_service.subjects import Hasher, Subject, id_errors

_PAUSE_AFTER_S = 0.005
_MAX_EXPLAINED = 100
"""How many checks of one call may be explained."""
_MAX_CONSIDERED = 20
_PARALLEL = 2


class ContactRow(msgspec.Struct, frozen=True):
    """A contact by its keyed hash."""

    contact: bytes
    value: str


class HistoryRow(msgspec.Struct, frozen=True):
    """An event of one identifier."""

    idx: int
    sequence: int
    recorded_at: datetime
    payload: bytes


_READ_SUBJECTS = db.headed("decisions", "read_subjects", Head, State)
_READ_CONTACTS = db.many("decisions", "read_contacts", ContactRow)
_READ_HISTORY = db.many("decisions", "read_history", HistoryRow)
_ENCODER = msgspec.json.Encoder()


class Snapshot(NamedTuple):
    """What one read found."""

    head: Head
    policy: Policy
    states: dict[bytes, list[State]]
    """By identifier; none where nothing stands."""

    def of(self, identifier: bytes) -> list[State]:
        """The rows of one identifier."""
        return self.states.get(identifier, [])


class Checker:
    """Answers checks of all tenants from the database."""

    def __init__(self, pool: db.Pool, policies: Policies, secret: bytes) -> None:
        self._pool = pool
        self._policies = policies
        self._secret = secret
        self._ledgers: dict[int, _Ledger] = {}

    async def check(self, raw: bytes, credential: Credential) -> bytes:
        """Answer one check (`Check` to `Answer`).

        Raises:
            RevisionAhead: `at_least` lies beyond the ledger's head.
            Invalid, Malformed, Unavailable: see there.
        """
        check = decode.body(raw, Check)
        ledger = self._ledger(credential.log_id)
        at_least = _validate((check,), lambda _: "")
        identifier = ledger.hasher.identifier(check.subject)
        snapshot = await ledger.reader.submit(identifier)
        _demand(snapshot, at_least)
        return _ENCODER.encode(_answer(snapshot, snapshot.of(identifier), check, ledger.hasher))

    async def checks(self, raw: bytes, credential: Credential) -> bytes:
        """Answer up to MAX_CHECKS checks in their order, all at one revision (`Checks` to `Decisions`)."""
        checks = decode.body(raw, Checks).checks
        ledger = self._ledger(credential.log_id)
        at_least = _validate(checks, "/checks/{}".format)
        identifiers = [ledger.hasher.identifier(check.subject) for check in checks]
        snapshot = await ledger.read(list(dict.fromkeys(identifiers)))
        _demand(snapshot, at_least)
        answers: list[Answer] = []
        began = time.perf_counter()
        for check, identifier in zip(checks, identifiers, strict=True):
            answers.append(_answer(snapshot, snapshot.of(identifier), check, ledger.hasher))
            if time.perf_counter() - began > _PAUSE_AFTER_S:
                await asyncio.sleep(0)  # a long batch must not hold up single checks
                began = time.perf_counter()
        return _ENCODER.encode(Decisions(answers))

    async def state(self, raw: bytes, credential: Credential) -> bytes:
        """Where a person stands on every purpose × channel (`SubjectBody` to `SubjectState`)."""
        body = decode.body(raw, SubjectBody)
        _demand_id(body.subject)
        ledger = self._ledger(credential.log_id)
        identifier = ledger.hasher.identifier(body.subject)
        snapshot = await ledger.reader.submit(identifier)
        head, states = snapshot.head, snapshot.of(identifier)
        contacts = await ledger.contacts({state.contact for state in states if state.contact})
        found = list(_purpose_states(snapshot.policy, states, contacts, head.now))
        return _ENCODER.encode(SubjectState(body.subject, str(head.revision), head.now, head.policy, found))

    async def history(self, raw: bytes, credential: Credential) -> bytes:
        """A page of a person's events (`HistoryBody` to `History`)."""
        body = decode.body(raw, HistoryBody)
        _demand_id(body.subject)
        identifier = self._ledger(credential.log_id).hasher.identifier(body.subject)
        async with db.connection(self._pool) as connection:
            rows = await _READ_HISTORY(connection, credential.log_id, identifier, body.after, body.limit + 1)
        page = rows[: body.limit]
        more = len(rows) > body.limit
        events = [HistoryEvent(row.idx, row.sequence, msgspec.Raw(row.payload)) for row in page]
        return _ENCODER.encode(History(events, page[-1].sequence if more else None))

    def _ledger(self, log_id: int) -> _Ledger:
        ledger = self._ledgers.get(log_id)
        if ledger is None:
            ledger = self._ledgers[log_id] = _Ledger(self._pool, self._policies, Hasher(self._secret, log_id), log_id)
        return ledger


class _Ledger:
    """The reads of one tenant. Single checks that arrive together share one statement, begun after each of them."""

    def __init__(self, pool: db.Pool, policies: Policies, hasher: Hasher, log_id: int) -> None:
        self._pool = pool
        self._policies = policies
        self._log_id = log_id
        self.hasher = hasher
        self.reader: Batcher[bytes, Snapshot] = Batcher(self._read_batch, parallel=_PARALLEL)

    async def read(self, identifiers: list[bytes]) -> Snapshot:
        """The head, the policy in force and the rows that stand, in one statement."""
        async with db.connection(self._pool) as connection:
            found = await _READ_SUBJECTS(connection, self._log_id, identifiers)
            if found is None:
                raise NotFound("There is no such tenant.")
            head, states = found
            policy = await self._policies.get(connection, self._log_id, head.policy)
        by_identifier: dict[bytes, list[State]] = {}
        for state in states:
            by_identifier.setdefault(state.identifier, []).append(state)
        return Snapshot(head, policy, by_identifier)

    async def contacts(self, hashes: set[bytes]) -> dict[bytes, str]:
        """The values of contacts by their keyed hashes."""
        if not hashes:
            return {}
        async with db.connection(self._pool) as connection:
            return {row.contact: row.value for row in await _READ_CONTACTS(connection, self._log_id, list(hashes))}

    async def _read_batch(self, identifiers: Sequence[bytes]) -> Sequence[Snapshot]:
        snapshot = await self.read(list(dict.fromkeys(identifiers)))
        return [snapshot] * len(identifiers)


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


def _answer(snapshot: Snapshot, states: list[State], check: Check, hasher: Hasher) -> Answer:
    head, policy = snapshot.head, snapshot.policy
    contact = None if check.contact is None else hasher.contact(check.contact)
    ask = Ask(check.purpose, check.channel, contact, check.recipient, check.context)
    decision = decide(policy, states, ask, head.now)
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
        explain=_explain(policy, purpose, states, decision) if check.explain else UNSET,
    )


def _explain(policy: Policy, purpose: Purpose | None, states: list[State], decision: Decision) -> Explanation:
    line = () if purpose is None else policy.lineage[purpose.id]
    considered = [state for state in states if state.purpose in line or state.purpose == ALL_PURPOSES]
    considered.sort(key=lambda state: state.rank, reverse=True)
    adm = None if purpose is None else purpose.significant_adm
    return Explanation(
        rule=decision.rule,
        text=REASONS[decision.reason],
        legal_basis=None if purpose is None else purpose.basis_term,
        assessment=None if purpose is None or purpose.assessment is None else purpose.assessment.id,
        human_contact=None if adm is None else adm.human_contact,
        record=None if decision.state is None else _explained(policy, decision.state),
        considered=[_explained(policy, state) for state in considered[:_MAX_CONSIDERED]],
    )


def _explained(policy: Policy, state: State) -> ExplainedRecord:
    notice = None
    if state.notice:
        text = policy.notices.get(state.notice, {}).get(state.notice_version)
        notice = ExplainedNotice(
            state.notice, state.notice_version, state.language, None if text is None else text.hash
        )
    return ExplainedRecord(
        event=state.event,
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


def _purpose_states(
    policy: Policy, states: list[State], contacts: dict[bytes, str], now: datetime
) -> Iterator[PurposeState]:
    """One row per purpose × channel, and per contact where consents name one."""
    for purpose in policy.purposes.values():
        named = {s.contact for s in states if s.purpose == purpose.id and s.contact}
        for channel in purpose.channels:
            for contact in sorted(named) or [b""]:
                decision = decide(policy, states, Ask(purpose.id, channel, contact or None), now)
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
