"""What callers of the links send and get."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from consent_service.auth import MAX_TOKEN
from consent_service.policies import Grade
from consent_service.states import Moment
from consent_service.subjects import MAX_ID, MAX_PROOF, Subject
from consent_service.tenures import LinkedIdentifier

LinkKind = Literal["identity", "group", "guardian"]
Proof = Annotated[str, Meta(max_length=MAX_PROOF)]


class ChallengeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which identifier is to be linked."""

    identifier: Subject
    proof: Proof | None = None
    """The device's secret token."""


class Challenge(msgspec.Struct, frozen=True):
    """What the log-in must carry as `nonce`, so that its ID token proves this link and no other."""

    nonce: str
    expires_at: Moment


class LinkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who belongs together, and the proof. Exactly one of `id_token`, `login`, `group` and `guardian`."""

    identifier: Subject
    proof: Proof | None = None
    """The device's secret token; a device is never linked without it."""
    id_token: Annotated[str, Meta(max_length=MAX_TOKEN)] | None = None
    """A fresh ID token (OpenID Connect Core 1.0) whose `nonce` is the challenge's."""
    login: Subject | Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None
    """The account that the caller vouches for; a text is the id of a `login`."""
    group: Subject | None = None
    """A household, a company: may restrict its members, never consent for them."""
    guardian: Subject | None = None
    """Who may consent for the identifier, a child (GDPR Art. 8)."""
    age_out: date | None = None
    """With `guardian`: the first day of the month after the birthday on which the child decides alone."""
    until: Moment | None = None
    """When the link ends by itself: the end of a rental, say."""
    replace: bool = False
    """End the link that the identifier has to another account, instead of refusing. That end is an act of its own, and
    stays when the new link is annulled."""
    evidence: dict[str, Any] | None = None
    """How it was verified, e.g. which document was seen."""


class OpenConflict(msgspec.Struct, frozen=True):
    """Linked identifiers that said different things before they were linked."""

    purpose: str
    channel: str


class Linked(msgspec.Struct, frozen=True, kw_only=True):
    """A link."""

    link: UUID
    kind: LinkKind
    identifier: Subject
    anchor: Subject | None
    """The account, group or guardian; null for a device that knows its own token and no log-in."""
    grade: Grade
    """Of the proof."""
    since: Moment
    until: Moment | None
    ended_at: Moment | None
    annulled_at: Moment | None
    annulment_asked: bool
    """Whether one officer wants it annulled; a second one must agree."""
    conflicts: list[OpenConflict]
    rev: str
    effective_by: Moment
    receipt: str | None
    """For what was written (c2sp.org/tlog-proof@v1); null where nothing was."""
    record: None = None
    """Always null: that two identifiers belong together is no consent."""


class EndBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ends a link."""

    proof: Proof | None = None
    """The device's secret token, where a publishable key ends its own link."""


class AnnulBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Annuls a link as false."""

    reason: Annotated[str, Meta(min_length=1, max_length=1_000)]


class ConflictsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose conflicts; nobody's named: everybody's, page by page."""

    subject: Subject | None = None
    after: UUID | None = None
    """What the page before gave as `next`."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """An open conflict: the purpose is denied until the person is asked again."""

    link: UUID
    purpose: str
    channel: str
    opened_at: Moment
    identifiers: list[LinkedIdentifier]


class Conflicts(msgspec.Struct, frozen=True):
    """The open conflicts of the next so many links that had any."""

    conflicts: list[Conflict]
    next: UUID | None
    """Pass it as `after` for the next page; null when there is nothing beyond."""


Change = Literal["linked", "ended", "annulment_asked", "annulled"]


class LinkEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a link, told to one of its two sides; its canonical JSON is what the ledger commits to.

    Each side has an event of its own, which names nobody else: so the history of either is complete by itself, and
    either can be erased.
    """

    event: UUID
    recorded_at: Moment
    link: UUID
    change: Change
    kind: LinkKind
    side: Literal["identifier", "anchor"]
    subject: Subject
    grade: Grade
    until: Moment | None
    evidence: dict[str, Any] | None
    """With the identifier's event only, as the reason."""
    reason: str | None
    credential: str
    """Who did it."""


class LinksBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose links."""

    subject: Subject


class LinkHistory(msgspec.Struct, frozen=True, kw_only=True):
    """One link, and everything that happened to it."""

    link: UUID
    kind: LinkKind
    identifier: Subject | None
    """Null once erased; so the anchor."""
    anchor: Subject | None
    since: Moment
    until: Moment | None
    ended_at: Moment | None
    annulled_at: Moment | None
    events: list[Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/LinkEvent"})]]


class Links(msgspec.Struct, frozen=True):
    """Every link that an identifier ever took part in, oldest first."""

    links: list[LinkHistory]
