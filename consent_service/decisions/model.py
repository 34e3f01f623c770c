"""What callers of the check path send and get."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from consent_service.decisions.decide import Context, Reason
from consent_service.ledger import REVISION
from consent_service.policies import Conflict
from consent_service.states import Moment, Status
from consent_service.subjects import MAX_ID, MAX_PROOF, Subject
from consent_service.tenures import LinkedIdentifier

MAX_CHECKS = 10_000


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One question about one person."""

    subject: Subject
    purpose: Annotated[str, Meta(max_length=64, examples=["marketing.email"])]
    channel: Annotated[str, Meta(max_length=32, examples=["email"])] | None = None
    contact: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None
    recipient: Annotated[str, Meta(max_length=64)] | None = None
    context: Context = Context()
    at_least: Annotated[str, Meta(pattern=REVISION, examples=["1.42"])] | None = None
    """A `rev` that an earlier answer gave: the answer will not be older."""
    require: Literal["fresh"] | None = None
    """`fresh`: read the database for this answer."""
    explain: bool = False
    proof: Annotated[str, Meta(max_length=MAX_PROOF)] | None = None
    """A device's secret token, where a publishable key asks for it."""


class Checks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Many questions, answered in order at one revision."""

    checks: Annotated[tuple[Check, ...], Meta(max_length=MAX_CHECKS)]


class ExplainedNotice(msgspec.Struct, frozen=True):
    """What the person had been shown."""

    id: str
    version: int
    language: str | None
    hash: str | None
    """SHA-256 of the notice's canonical JSON."""


Origin = Literal["own", "account", "linked", "carried", "group"]


class ExplainedRecord(msgspec.Struct, frozen=True):
    """A standing record that bears on the answer."""

    event: UUID
    origin: Origin
    """On which of the person's identifiers it was recorded. `carried`: a no, on one that was linked at the time."""
    purpose: str
    channel: str | None
    recipient: str | None
    status: Status
    occurred_at: Moment
    recorded_at: Moment
    expires_at: Moment | None
    evidence_grade: str
    method: str | None
    notice: ExplainedNotice | None


class Explanation(msgspec.Struct, frozen=True):
    """Why the answer is what it is."""

    rule: str
    text: str
    legal_basis: str | None
    """DPV term."""
    assessment: str | None
    human_contact: str | None
    """Who reviews a significant automated decision (GDPR Art. 22(3))."""
    conflict_rule: Conflict | None
    """How the purpose chooses where linked identifiers differ; `rule` begins with `conflict:` where that decided."""
    identifiers: int
    """How many identifiers the person has now, groups and guardians included."""
    record: ExplainedRecord | None
    """The record that decided."""
    considered: list[ExplainedRecord]
    """The latest twenty standing records about the purpose, latest first."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a check."""

    allow: bool
    reason: Reason
    basis: Literal["record", "no_record", "stale_record", "outage_default"]
    """What the answer rests on."""
    valid_until: Moment | None
    reuse_ms: int
    """How long the caller may use this answer again without asking."""
    rev: str
    policy: int
    record: UUID | None
    as_of: Moment
    age_ms: int
    explain: Explanation | UnsetType = UNSET


class Decisions(msgspec.Struct, frozen=True):
    """The answers to `Checks`."""

    decisions: list[Answer]


class SubjectBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose state is meant."""

    subject: Subject
    proof: Annotated[str, Meta(max_length=MAX_PROOF)] | None = None
    """A device's secret token, where a publishable key asks for it."""


class HistoryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose events, and from where on."""

    subject: Subject
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """What the page before gave as `next`."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class PurposeState(msgspec.Struct, frozen=True):
    """Where the person stands on one purpose × channel."""

    purpose: str
    channel: str
    contact: str | None
    status: Status | None
    allow: bool
    reason: Reason
    valid_until: Moment | None
    record: UUID | None


class SubjectState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the person stands on everything."""

    subject: Subject
    rev: str
    as_of: Moment
    policy: int
    states: list[PurposeState]
    identifiers: list[LinkedIdentifier]


class HistoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it was recorded."""

    index: int
    strand: int
    """Which of the identifier's tenures; counted from 1."""
    sequence: int
    """Place within the strand, from 1, without gaps."""
    event: Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/Event"})]
    """As it was written, byte for byte."""


class History(msgspec.Struct, frozen=True):
    """A page of events, oldest first."""

    events: list[HistoryEvent]
    next: int | None
    """Pass it as `after` for the next page; null on the last."""
