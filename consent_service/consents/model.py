"""What callers of the write path send and get."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta

from consent_service.decisions import Reason
from consent_service.policies import Method
from consent_service.states import Moment, Status
from consent_service.subjects import MAX_ID, MAX_PROOF, Subject

MAX_RECORDS = 100
UUID_TEXT = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)"


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
    guardian: Subject | None = None
    """Who acted for the subject, a child (GDPR Art. 8); must be linked as its guardian."""
    proof: Annotated[str, Meta(max_length=MAX_PROOF)] | None = None
    """A device's secret token, where a publishable key speaks for it."""


class DeviceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A device that speaks for the first time: with its first act, or by itself."""

    id: Annotated[str, Meta(pattern=UUID_TEXT, examples=["0b5a9a52-4d7b-4f0e-9c53-4a1f9d3a8d10"])] | None = None
    """Idempotency key of the act: a random UUID, because whoever sends the same one gets the same device."""
    records: Annotated[tuple[Record, ...], Meta(max_length=MAX_RECORDS)] = ()
    notice: Shown | None = None
    method: Method | None = None
    evidence: dict[str, Any] | None = None


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
    """The proof that it is an entry of the ledger (c2sp.org/tlog-proof@v1)."""
    record: dict[str, Any] | None = None
    """The same in terms that others know: a consent receipt as JSON-LD (DPV 2.3, after ISO/IEC TS 27560:2023); null
    with `Prefer: return=minimal`."""


class Minted(msgspec.Struct, frozen=True, kw_only=True):
    """A device, and what holds after its first act.

    Whoever only said no gets no identifier: nothing needs to be kept on the device but which notice was answered, and
    when. That record has an identifier that nobody knows and nothing else will use.
    """

    identifier: Subject | None
    token: str | None
    """The device's secret: sent as `proof` with whatever it says or asks later."""
    cookie: str | None
    """`Set-Cookie` value for the tenant's own site, where the policy names its domain."""
    recorded: Recorded | None
