"""What holds after an act: the states that a check would now be answered from, and why a record changed nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from msgspec.structs import replace

from consent_service.consents.model import Recorded, StateNow
from consent_service.consents.prepare import Act, Prepared
from consent_service.decisions import REASONS, Ask, Decision, Reason, decide, is_silenced
from consent_service.ledger import Revision
from consent_service.policies import Policy
from consent_service.states import ALL_PURPOSES, ANY, FOR_ALL, GRANTS, RESTRICTIVE, SLOT, Slot, State
from consent_service.tenures import Person


class Holding(NamedTuple):
    """What holds after an act."""

    states: list[StateNow]
    reuse: timedelta
    """For how long answers given before may still be used, where the act restricts."""

    def of(self, event: UUID) -> Holding:
        """The same after another event that said the same, where nothing was said before either."""
        return Holding(
            [state if state.record is None else replace(state, record=event) for state in self.states], self.reuse
        )

    def recorded(self, event: UUID, revision: Revision, now: datetime) -> Recorded:
        """The answer to the act."""
        return Recorded(
            event=event, states=self.states, effective=all(state.effective for state in self.states),
            rev=str(revision), recorded_at=now, effective_by=now + self.reuse,
        )  # fmt: skip


def holding(act: Act, records: Sequence[Prepared], rows: Sequence[State], who: Person, now: datetime) -> Holding:
    """Every purpose × channel that an act spoke about, as a check would now see it.

    `rows`: what each record became.
    """
    asked: dict[tuple[str, str | None, bytes, str], tuple[Prepared, State, Ask]] = {}
    reuse = timedelta(0)
    for record, row in zip(records, rows, strict=True):
        for ask in _asked(act.policy, record):
            asked[ask.purpose, ask.channel, record.contact, record.recipient] = record, row, ask
            if record.status in RESTRICTIVE:
                reuse = max(reuse, act.policy.purposes[ask.purpose].reuse_window)
    found = []
    for record, row, ask in asked.values():
        decision = decide(act.policy, who.states, ask, now, who.ties)
        silenced = (
            not decision.allow
            and record.status in GRANTS
            and is_silenced(act.policy, who.states, ask, row, now, who.ties)
        )
        found.append(_state_now(record, ask, decision, silenced=silenced))
    return Holding(found, reuse)


def _asked(policy: Policy, record: Prepared) -> Iterator[Ask]:
    """Every purpose × channel that a record speaks about."""
    purposes = tuple(policy.purposes) if record.purpose == ALL_PURPOSES else (record.purpose,)
    if record.purpose != ALL_PURPOSES and record.status in FOR_ALL:
        purposes = policy.family[record.purpose]
    for purpose in purposes:
        channels = policy.purposes[purpose].channels if record.channel == ANY else (record.channel,)
        for channel in channels:
            if channel in policy.purposes[purpose].channels:
                yield Ask(purpose, channel, record.contact or None, record.recipient or None)


def _state_now(record: Prepared, ask: Ask, decision: Decision, *, silenced: bool) -> StateNow:
    remedy = _OUTWEIGHED if silenced else _remedy(record, decision)
    return StateNow(
        purpose=ask.purpose,
        channel=ask.channel,
        contact=record.contact_value,
        recipient=ask.recipient,
        status=None if decision.state is None else decision.state.status,
        allow=decision.allow,
        reason=decision.reason,
        valid_until=decision.valid_until,
        record=None if decision.state is None else decision.state.event,
        effective=remedy is None,
        remedy=remedy,
    )


_PENDING: frozenset[Reason] = frozenset({"requested", "not_yet_valid", "age_unverified", "guardian_missing"})
_OUTWEIGHED = "An earlier no outweighs this: it takes a later act of the person, on evidence at least as strong."
_BLOCKED: frozenset[Reason] = frozenset({"withdrawn", "refused", "objected", "restricted", "suppressed"})


def _remedy(record: Prepared, decision: Decision) -> str | None:
    """Why a record changed nothing, and what would; None where it took effect."""
    match SLOT[record.status]:
        case Slot.GRANT if not decision.allow and decision.reason in _BLOCKED:
            return _OUTWEIGHED
        case Slot.GRANT if not decision.allow and decision.reason not in _PENDING:
            return REASONS[decision.reason]
        case Slot.BLOCK | Slot.OBJECTION | Slot.RESTRICTION if decision.allow and record.status != "restriction_lifted":
            if record.purpose == ALL_PURPOSES and decision.reason == "basis_applies":
                return None  # "everything" means everything that can be withdrawn
            return (
                "A later consent of the person stands; record the no with its true time, or without one."
                if decision.reason == "consent"
                else "This purpose does not rest on consent, or goes on under restriction; `objected` may end it."
            )
        case Slot.FACT if decision.allow == (record.status == "ceased"):
            return REASONS[decision.reason]
    return None
