"""What callers of the write path send and get."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta

from consent_service.decisions import Reason
from consent_service.policies import Method
from consent_service.states import Moment, Status
from consent_service.subjects import MAX_ID, Subject

MAX_RECORDS = 100


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the person decided about one purpose."""

    purpose: Annotated[str, Meta(min_length=1, max_length=64, examples=["marketing.email"])]
    """A purpose of the policy; `*` for all, with restrictive statuses."""
    status: Status
    channel: Annotated[str, Meta(max_length=32)] | None = None
    contact: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None
    recipient: Annotated[str, Meta(max_length=64)] | None = None
    occurred_at: Moment | None = None
    """When the person acted (RFC 3339); default is the moment of recording."""


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The notice that the person saw, exactly."""

    id: Annotated[str, Meta(max_length=64, examples=["web-banner"])]
    version: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    language: Annotated[str, Meta(max_length=16, examples=["en"])]


class ConsentBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One act of a person: their decisions about one or more purposes, and how they came about."""

    subject: Subject
    records: Annotated[tuple[Record, ...], Meta(min_length=1, max_length=MAX_RECORDS)]
    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None
    """Idempotency key; the header `Idempotency-Key` says the same."""
    notice: Shown | None = None
    method: Method | None = None
    evidence: dict[str, Any] | None = None
    """Whatever else proves the act: form version, call recording id, user agent, …"""


class StateNow(msgspec.Struct, frozen=True, gc=False):
    """What holds for one purpose × channel after the call, and what a check answers."""

    purpose: str
    channel: str | None
    contact: str | None
    recipient: str | None
    status: Status | None
    allow: bool
    reason: Reason
    valid_until: Moment | None
    record: UUID | None
    effective: bool
    remedy: str | None
    """What to do where a record did not take effect."""


class Recorded(msgspec.Struct, frozen=True):
    """The answer to a write."""

    event: UUID
    states: list[StateNow]
    effective: bool
    """Whether every record of the call took effect."""
    rev: str
    recorded_at: Moment
    effective_by: Moment
    receipt: str | None = None
