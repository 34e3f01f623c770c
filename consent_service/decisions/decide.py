"""`decide`: the pure function in which every allow is born, with its closed list of reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple, cast, get_args
from uuid import UUID

import msgspec
from msgspec import Meta

from consent_service.policies import EXPLICIT_METHODS, GRADES, Policy, Purpose
from consent_service.states import ALL_PURPOSES, ANY, Slot, State, StateKey
from consent_service.tenures import ALONE, Ties

Reason = Literal[
    "consent", "basis_applies",
    "unknown_purpose", "no_record", "requested", "refused", "withdrawn", "expired", "not_yet_valid", "objected",
    "restricted", "suppressed", "notice_outdated", "evidence_too_low", "explicit_needed", "age_unverified",
    "guardian_missing", "channel_required", "channel_not_covered", "contact_required", "contact_not_covered",
    "recipient_not_covered", "no_basis_fact", "conflict_open", "condition_failed", "outage",
]  # fmt: skip
ALLOWS: frozenset[Reason] = frozenset({"consent", "basis_applies"})

REASONS: dict[Reason, str] = {
    "consent": "A valid consent covers this purpose, channel, contact and recipient.",
    "basis_applies": "The purpose rests on another basis than consent, and that basis applies.",
    "unknown_purpose": "The policy in force declares no such purpose.",
    "no_record": "The person has never decided about this purpose.",
    "requested": "Consent was asked for and not yet given, or its double opt-in is not yet confirmed.",
    "refused": "The person said no when asked.",
    "withdrawn": "The person withdrew, and nothing since then outweighs it.",
    "expired": "The consent has reached the end of its life.",
    "not_yet_valid": "The purpose, or the consent, begins later.",
    "objected": "The person objected (GDPR Art. 21).",
    "restricted": "Processing is restricted (GDPR Art. 18).",
    "suppressed": "The person was erased; direct marketing stays off until a fresh opt-in.",
    "notice_outdated": "The consent rests on a notice that has materially changed since.",
    "evidence_too_low": "The purpose asks for stronger evidence than this consent has.",
    "explicit_needed": "The purpose needs an explicit consent (GDPR Art. 9, 22); a mere click is none.",
    "age_unverified": "The purpose needs the person's age, and the check did not bring one.",
    "guardian_missing": "The person is too young to consent alone, and no guardian's consent is on record.",
    "channel_required": "The purpose runs on several channels; the check must name one.",
    "channel_not_covered": "The purpose, or the person's consent, does not cover this channel.",
    "contact_required": "The person consented for several contacts; the check must name one.",
    "contact_not_covered": "The consent holds for another contact.",
    "recipient_not_covered": "The purpose, or the consent, does not cover this recipient.",
    "no_basis_fact": "The basis needs a fact (for example a contract) that is not on record, or has ceased.",
    "conflict_open": "Linked identifiers said different things before they were linked; ask the person again.",
    "condition_failed": "A condition of the purpose is not met.",
    "outage": "The state could not be read, and the purpose declares nothing for that case.",
}
"""The closed list, with what each reason tells the caller."""
if REASONS.keys() != set(get_args(Reason)):
    raise AssertionError("every reason is documented")


class Context(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the caller knows about the situation."""

    age: Annotated[int, Meta(ge=0, le=150)] | None = None
    """The person's age in whole years, verified by the caller."""
    jurisdiction: Annotated[str, Meta(pattern=r"^[A-Z]{2}$(?!\n)")] | None = None
    """ISO 3166-1 alpha-2 code of the person's country; default is the tenant's."""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One question: which purpose, on which channel, for which contact (keyed hash) and recipient."""

    purpose: str
    channel: str | None = None
    contact: bytes | None = None
    recipient: str | None = None
    context: Context = Context()


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What `decide` found. `valid_until` is the earliest flip by time alone, and no licence to keep the answer."""

    allow: bool
    reason: Reason
    rule: str
    """Which rule decided, in the order of the architecture's section 7."""
    valid_until: datetime | None = None
    state: State | None = None
    """The row that decided."""


def decide(policy: Policy, states: Sequence[State], ask: Ask, now: datetime, ties: Ties = ALONE) -> Decision:
    """Allow or deny; pure. `states` are the rows that count for the subject, of all its identifiers, in any order."""
    purpose = policy.purposes.get(ask.purpose)
    if purpose is None:
        return _deny("unknown_purpose", "purpose")
    walk = _Question(policy, purpose, states, ask, now, ties)
    decision = walk.group() or walk.restriction() or walk.objection() or walk.suppression(states) or walk.basis()
    if ties.until is not None and _later(decision.valid_until, ties.until):
        return msgspec.structs.replace(decision, valid_until=ties.until)
    return decision


def open_conflicts(
    policy: Policy, states: Sequence[State], purposes: Iterable[str], now: datetime, ties: Ties
) -> list[tuple[str, str]]:
    """Purpose and channel of every conflict that nobody has resolved, for any contact and recipient that rows name."""
    found: list[tuple[str, str]] = []
    for purpose in purposes:
        line = policy.lineage[purpose]
        rows = [state for state in states if state.purpose in line or state.purpose == ALL_PURPOSES]
        contacts: list[bytes | None] = [None, *sorted({state.contact for state in rows if state.contact})]
        recipients: list[str | None] = [None, *sorted({state.recipient for state in rows if state.recipient})]
        for channel in policy.purposes[purpose].channels:
            asks = (Ask(purpose, channel, contact, recipient) for contact in contacts for recipient in recipients)
            if any(decide(policy, rows, ask, now, ties).reason == "conflict_open" for ask in asks):
                found.append((purpose, channel))
    return found


def is_silenced(policy: Policy, states: Sequence[State], ask: Ask, grant: State, now: datetime, ties: Ties) -> bool:
    """Whether a grant has to give way to a no, whatever else is said about the question."""
    question = _Question(policy, policy.purposes[ask.purpose], states, ask, now, ties)
    return question.silences(grant)


def _deny(reason: Reason, rule: str, state: State | None = None, until: datetime | None = None) -> Decision:
    return Decision(False, reason, rule, until, state)


class _Path(NamedTuple):
    """A way in which two identifiers belong together."""

    far: int
    since: datetime
    account: bytes
    other: bytes
    """The identifier of the no."""


class _Question:
    """One walk through the rules, over the rows that speak about the question."""

    __slots__ = ("ask", "blocks", "by_consent", "channel", "elsewhere", "facts", "grants", "now", "policy", "purpose",
                 "requests", "restrictions", "ties")  # fmt: skip

    def __init__(
        self, policy: Policy, purpose: Purpose, states: Sequence[State], ask: Ask, now: datetime, ties: Ties = ALONE
    ) -> None:
        self.ties = ties
        self.policy = policy
        self.purpose = purpose
        self.ask = ask
        self.now = now
        channels = purpose.channels
        self.channel = ask.channel or (channels[0] if len(channels) == 1 else None)
        self.requests: list[State] = []
        self.grants: list[State] = []
        self.elsewhere = False
        """Whether there are grants for other channels."""
        self.by_consent = False
        """Whether a restriction or an objection left consent as the only thing that can carry the processing."""
        self.blocks: list[State] = []
        self.facts: list[State] = []
        self.restrictions: list[State] = []
        lineage = policy.lineage[purpose.id]
        for state in states:
            if state.purpose in lineage or state.purpose == ALL_PURPOSES:
                self._sort(state)

    def _sort(self, state: State) -> None:
        """Which rows bear on the question, by what they are."""
        here = state.channel in (ANY, self.channel)
        match state.slot:
            case Slot.GRANT | Slot.EXPLICIT | Slot.GUARDIAN if self._answers(state):
                if here:
                    self.grants.append(state)
                else:
                    self.elsewhere = True
            case Slot.BLOCK | Slot.OBJECTION:
                # An objection to direct marketing holds on every channel, wherever it was made (Art. 21(3)).
                everywhere = state.status == "objected" and self.purpose.direct_marketing
                if everywhere or self._bears(state):
                    self.blocks.append(state)
            case Slot.REQUEST if here and state.purpose == self.purpose.id:
                self.requests.append(state)
            case Slot.FACT if state.purpose == self.purpose.id and self._same_contact(state):
                if self._covers(state) if state.status == "applies" else self._bears(state):
                    self.facts.append(state)
            case Slot.RESTRICTION:
                if self._bears(state) if state.status == "restricted" else self._lifts(state):
                    self.restrictions.append(state)

    def _bears(self, state: State) -> bool:
        """Restrictive statements cover whatever they, or the question, leave open."""
        return (state.channel == ANY or self.channel is None or state.channel == self.channel) and (
            state.recipient == ANY or self.ask.recipient is None or state.recipient == self.ask.recipient
        )

    def _covers(self, state: State) -> bool:
        """Permissive statements cover no more than they say: what the question leaves open, they must leave open."""
        return state.channel in (ANY, self.channel) and state.recipient in (ANY, self.ask.recipient)

    def _same_contact(self, state: State) -> bool:
        """Whether a statement is about the contact asked for, where both name one."""
        return self.ask.contact is None or state.contact in (b"", self.ask.contact)

    def _lifts(self, state: State) -> bool:
        """A restriction spreads to every contact; its end does not."""
        return state.grade > 0 and self._covers(state) and state.contact in (b"", self.ask.contact)

    def _answers(self, grant: State) -> bool:
        """A grant answers for its own purpose, and for children that inherit it."""
        current = self.purpose
        while grant.purpose != current.id:
            if not current.inherits_consent or current.parent is None:
                return False
            parent = self.policy.purposes[current.parent]
            if current.double_opt_in and not parent.double_opt_in:
                return False  # nobody gets past a confirmation by a plain yes to something wider
            current = parent
        return True

    # -- the rules, in their order --------------------------------------------------------------------------------

    def group(self) -> Decision | None:
        """A household's or company's no holds for its members, whatever they say themselves; its yes says nothing."""
        for rows in self.ties.groups:
            question = _Question(self.policy, self.purpose, rows, self.ask, self.now)
            denied = question.restriction() or question.objection()
            if denied is None and self.purpose.needs_consent:
                denied = question.refusal()
            if denied is not None:
                return msgspec.structs.replace(denied, rule="group", valid_until=None)
        return None

    def refusal(self) -> Decision | None:
        """The no that stands, whether or not anything was granted; a later yes as wide as the question ends it."""
        latest = max(self.blocks, key=_rank, default=None)
        answers = (grant for grant in self.grants if self._is_as_wide(grant) and self._outweighed(grant) is None)
        if latest is None or any(answers):
            return None
        return _deny(_said(latest), "withdrawal", latest)

    def _is_as_wide(self, grant: State) -> bool:
        """Whether a grant is good now for whatever contact and recipient the question may mean."""
        expiry = self._expiry(grant)
        good = grant.occurred_at <= self.now and (expiry is None or self.now < expiry)
        return good and grant.contact in (b"", self.ask.contact) and grant.recipient in (ANY, self.ask.recipient)

    def restriction(self) -> Decision | None:
        """Art. 18: only storage, legal claims, and consent given after it go on."""
        if not self.restrictions or self.purpose.runs_under_restriction:
            return None
        lifts = [state for state in self.restrictions if state.status != "restricted"]
        standing = [
            same
            for same in _by_event(state for state in self.restrictions if state.status == "restricted")
            if not any(lift.rank > same[0].rank and self._is_answered(lift, same) for lift in lifts)
        ]
        if not standing:
            return None
        latest = max((same[0] for same in standing), key=_rank)
        self.grants = [
            grant
            for grant in self.grants
            if grant.grade
            and all(grant.occurred_at > same[0].occurred_at and self._is_answered(grant, same) for same in standing)
        ]
        self.by_consent = self._consent().allow
        return None if self.by_consent else _deny("restricted", "restriction", latest)

    def objection(self) -> Decision | None:
        """Art. 21 for bases other than consent: ends by a later consent of the person. Consent is `basis`'s matter."""
        if not self.purpose.objectable or self.purpose.legal_basis == "consent":
            return None
        # For direct marketing any no is an objection; elsewhere a withdrawal of consent says nothing about this basis.
        counts = [block for block in self.blocks if block.status == "objected" or self.purpose.direct_marketing]
        latest = max(counts, key=_rank, default=None)
        if latest is None:
            return None
        self.by_consent = self._consent().allow
        return None if self.by_consent else _deny(_said(latest), "objection", latest)

    def suppression(self, states: Sequence[State]) -> Decision | None:
        """After an erasure direct marketing stays off until a fresh opt-in, or until its end.

        Neither an import is one, nor what was said before and is reported late.
        """
        if not self.purpose.direct_marketing:
            return None
        stones = [state for state in states if state.slot == Slot.TOMBSTONE]
        standing = [stone for stone in stones if stone.expires_at is None or self.now < stone.expires_at]
        if not standing:
            return None
        latest = max(stone.recorded_at for stone in standing)
        self.grants = [grant for grant in self.grants if grant.grade and grant.occurred_at > latest]
        self.by_consent = True
        if self.grants:
            return None
        ends = [stone.expires_at for stone in standing if stone.expires_at is not None]
        return _deny("suppressed", "suppression", until=max(ends) if len(ends) == len(standing) else None)

    def basis(self) -> Decision:
        """The legal basis, and consent for reaching into the person's device where the purpose does (TDDDG 25)."""
        purpose = self.purpose
        if (outside := self._outside()) is not None:
            return outside
        if purpose.legal_basis == "consent" or (self.by_consent and purpose.objectable):
            return self._consent()
        if not purpose.needs_consent:
            return self._fact(None)
        consent = self._consent()
        if not consent.allow:
            return msgspec.structs.replace(consent, rule="terminal_access")
        return self._fact(consent.valid_until)

    def _outside(self) -> Decision | None:
        """What the purpose itself does not cover, whoever agreed to it."""
        purpose, ask = self.purpose, self.ask
        if ask.channel is not None and ask.channel not in purpose.channels:
            return _deny("channel_not_covered", "scope")
        if ask.recipient is not None and all(ask.recipient != recipient.id for recipient in purpose.recipients):
            return _deny("recipient_not_covered", "scope")
        if purpose.valid_from is not None and self.now < purpose.valid_from:
            return _deny("not_yet_valid", "purpose", None, purpose.valid_from)
        return None

    def _fact(self, until: datetime | None) -> Decision:
        """The fact that another basis rests on: a contract, an existing customer. `until`: what else has an end."""
        fact = max(self.facts, key=_rank, default=None)
        if fact is None and not self.purpose.needs_fact:
            return Decision(True, "basis_applies", "basis", until)
        if fact is None and self.purpose.objectable and (consent := self._consent()).allow:
            return consent  # e.g. no existing customer (UWG section 7(3)), but opted in
        if fact is None or fact.status == "ceased":
            return _deny("no_basis_fact", "basis", fact)
        return Decision(True, "basis_applies", "basis", until, fact)

    # -- consent --------------------------------------------------------------------------------------------------

    def _consent(self) -> Decision:
        """The grant that carries the processing longest, else why none does."""
        if self.channel is None:
            return _deny("channel_required", "scope")
        covering, gap = self._covering()
        best: Decision | None = None
        flaws: list[tuple[State, Decision]] = []
        if len(covering) > 1:  # which of several equals is named must not depend on the order of the rows
            covering.sort(key=_rank, reverse=True)
        for grant in covering:
            expiry = self._expiry(grant)
            flaw = self._flaw(grant, expiry)
            if flaw is not None:
                flaws.append(flaw)
            elif best is None or _later(expiry, best.valid_until):
                best = Decision(True, "consent", self._chosen_by(grant), expiry, grant)
        return best or self._why_not(flaws, gap)

    def _covering(self) -> tuple[list[State], Reason | None]:
        """The grants that hold for the contact and recipient asked about; and, if none does, why."""
        contact, required = self.ask.contact, self.purpose.contact == "required"
        by_contact = [g for g in self.grants if g.contact] if required else self.grants
        if contact is not None:
            by_contact = [g for g in by_contact if g.contact in (b"", contact)]
        if self.grants and not by_contact:
            return [], "contact_not_covered"
        if contact is None and required:
            live = {g.contact for g in by_contact if self._flaw(g, self._expiry(g)) is None}
            if len(live) > 1:
                return [], "contact_required"
        covering = [grant for grant in by_contact if grant.recipient in (ANY, self.ask.recipient)]
        return covering, "recipient_not_covered" if by_contact and not covering else None

    def _flaw(self, grant: State, expiry: datetime | None) -> tuple[State, Decision] | None:
        """Why a grant does not carry the processing, and the row that says so; None when it does."""
        if self.blocks and (block := self._outweighed(grant)) is not None:
            return block, _deny(_said(block), "withdrawal", block)
        if self.blocks and (conflict := self._conflict(grant)) is not None:
            return conflict
        reason: Reason | None = None
        until: datetime | None = None
        if grant.occurred_at > self.now:
            reason, until = "not_yet_valid", grant.occurred_at
        elif expiry is not None and expiry <= self.now:
            reason = "expired"
        elif grant.status == "given" and self.purpose.double_opt_in:
            reason = "requested"  # given before the purpose asked for a confirmation
        elif not self._was_shown(grant):
            reason = "notice_outdated"
        elif grant.grade < GRADES.index(self.purpose.evidence):
            reason = "evidence_too_low"
        elif self.purpose.needs_explicit and grant.method not in EXPLICIT_METHODS:
            reason = "explicit_needed"
        else:
            reason = self._age(grant)
        return None if reason is None else (grant, _deny(reason, "consent", grant, until))

    def _was_shown(self, grant: State) -> bool:
        """Whether the person saw what the purpose demands; of an imported grant without a notice nobody knows."""
        required = self.purpose.required_notice
        return not required or (bool(grant.notice) and grant.notice_version >= required.get(grant.notice, 0))

    def silences(self, grant: State) -> bool:
        """Whether a no stands against a grant."""
        return self._outweighed(grant) is not None or self._conflict(grant) is not None

    def _outweighed(self, grant: State) -> State | None:
        """The no that a grant has to give way to: one as late or later, or one of stronger evidence, whenever it was.

        An imported grant never outweighs a no.
        """
        against = [
            b for b in self.blocks if grant.occurred_at <= b.occurred_at or grant.grade < b.grade or not grant.grade
        ]
        return max(against, key=_rank, default=None)

    def _conflict(self, grant: State) -> tuple[State, Decision] | None:
        """What another identifier said earlier, when nobody knew yet that it was the same person's.

        What was granted since then is the person's answer to it. What was granted before is not: the rule of the
        purpose chooses, and where it cannot, the person has to be asked.
        """
        if self.purpose.conflict == "latest_explicit" and grant.method in EXPLICIT_METHODS:
            return None
        unanswered = self._unanswered(grant)
        reasons: list[tuple[State, Reason]] = []
        for block, path in unanswered:
            if self.purpose.conflict != "account_wins":
                reasons.append((block, "conflict_open"))
            elif path.account != grant.identifier:
                reasons.append((block, _said(block) if path.other == path.account else "conflict_open"))
        if not reasons:
            return None
        told = [reason for reason in reasons if reason[1] != "conflict_open"] or reasons
        block, why = max(told, key=lambda reason: _rank(reason[0]))
        return block, _deny(why, f"conflict:{self.purpose.conflict}", block)

    def _chosen_by(self, grant: State) -> str:
        """The rule by which a grant counts."""
        return f"conflict:{self.purpose.conflict}" if self.blocks and self._unanswered(grant) else "consent"

    def _unanswered(self, grant: State) -> list[tuple[State, _Path]]:
        """The noes of other identifiers to which a grant is no answer, each with the nearest way to its identifier.

        An answer is what the person did once the link was known; a yes of before it that is reported later is none.
        """
        return [
            (same[0], self._paths(grant, same)[0])
            for same in _by_event(self.blocks)
            if not self._is_answered(grant, same)
        ]

    def _is_answered(self, answer: State, same: Sequence[State]) -> bool:
        """Whether a statement can be an answer to a no and its copies: on the same identifier, or once it was known."""
        if any(answer.identifier == (row.origin or row.identifier) for row in same):
            return True
        return any(answer.occurred_at >= path.since for path in self._paths(answer, same))

    def _paths(self, answer: State, same: Sequence[State]) -> list[_Path]:
        """The ways from a statement to a no, the nearest first; where the no itself is, no third one stands for it."""
        rows = same
        if any(not row.origin for row in same):
            rows = [row for row in same if not row.origin or row.identifier == answer.identifier]
        return sorted((self._path(answer, row) for row in rows), key=lambda path: path.far)

    def _path(self, grant: State, block: State) -> _Path:
        """How a statement and a no, or a copy of one, belong together."""
        since, account = self.ties.since, self.ties.account
        both = max(since.get(grant.identifier, _NEVER), since.get(block.identifier, _NEVER))
        if not block.origin:
            return _Path(0, both, account, block.identifier)
        carried = block.linked_at or _NEVER
        if block.identifier == grant.identifier:
            return _Path(1, carried, block.account, block.origin)
        return _Path(2, max(both, carried), account, block.identifier)

    def _expiry(self, grant: State) -> datetime | None:
        """The earlier of what was promised when it was given and what the policy in force says."""
        if self.purpose.valid_for is None:
            return grant.expires_at
        by_policy = self.purpose.valid_for.after(grant.occurred_at)
        return by_policy if grant.expires_at is None else min(by_policy, grant.expires_at)

    def _age(self, grant: State) -> Reason | None:
        """GDPR Art. 8: a child's consent is the guardian's to give. By the jurisdiction that the check names."""
        rule = self.purpose.age
        if rule is None or grant.slot == Slot.GUARDIAN:
            return None
        if self.ties.minor_until is not None and self.now < self.ties.minor_until:
            return "guardian_missing"
        if self.ask.context.age is None:
            grown_up = self.ties.minor_until is not None
            return "age_unverified" if rule.age_unknown == "deny" and not grown_up else None
        minimum = rule.minimum
        if minimum == "digital_consent":
            country = self.ask.context.jurisdiction or self.policy.tenant.jurisdiction
            known = self.policy.jurisdictions.get(country)
            minimum = 16 if known is None else known.digital_consent_age
        return "guardian_missing" if self.ask.context.age < minimum else None

    def _why_not(self, flaws: list[tuple[State, Decision]], gap: Reason | None) -> Decision:
        """The denial that tells most: the latest event about the question, else what the grants leave uncovered."""
        events = list(flaws)
        events += [
            (request, _deny("requested", "consent", request))
            for request in self.requests
            if self._same_contact(request)
        ]
        if gap is None:
            events += [(block, _deny(_said(block), "withdrawal", block)) for block in self.blocks]
        conflicts = [event for event in flaws if event[1].reason == "conflict_open"]
        if conflicts:  # an own no beside it would tell less
            return max(conflicts, key=lambda event: _rank(event[0]))[1]
        if events:
            return max(events, key=lambda event: _rank(event[0]))[1]
        if gap is not None:
            return _deny(gap, "scope")
        return _deny("channel_not_covered", "scope") if self.elsewhere else _deny("no_record", "consent")


_NEVER = datetime.min.replace(tzinfo=UTC)


def _by_event(noes: Iterable[State]) -> Iterable[list[State]]:
    """Each no with its copies on other identifiers."""
    rows: dict[tuple[UUID, str, str, str, int], list[State]] = {}
    for no in noes:
        rows.setdefault((no.event, no.purpose, no.channel, no.recipient, no.slot), []).append(no)
    return rows.values()


def _said(block: State) -> Reason:
    """What the person said is the reason."""
    return cast("Reason", block.status)


def _rank(state: State) -> tuple[tuple[datetime, int, UUID], StateKey]:
    """Total over all rows of a person, those of one act included."""
    return state.rank, state.key


def _later(one: datetime | None, other: datetime | None) -> bool:
    """Whether `one` ends after `other`; no end is the latest."""
    return other is not None and (one is None or one > other)
