"""The fold and the decision as properties over random histories: order never matters, a no is never outvoted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decisions import patched

from consent_service.decisions import Ask, Context, Decision, decide
from consent_service.policies import Policy
from consent_service.states import RESTRICTIVE, SLOT, STATUSES, Slot, Standing, State, fold

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LIFE = 30 * DAY
TICK = timedelta(microseconds=1)
PURPOSES = ("main", "child", "loner")
CHANNELS = ("web", "app")
CONTACTS = (b"", b"ada", b"eve")
RECIPIENTS = ("", "aerosicher", "skyward-academy")
IMPORTED, DEVICE, SERVICE = 0, 1, 3
OPEN = frozenset({"contact_required", "channel_required"})
"""Denials of a question that was left open: what is allowed depends on how it is closed."""

MAIN = {
    "like": "share.partner",
    "channels": list(CHANNELS),
    "valid_for": "P30D",
    "contact": "optional",
    "evidence": "imported",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "consent": {},
    "marketing": {"direct_marketing": True},
    "contact required": {"contact": "required"},
    "strict": {"evidence": "service_attested", "special_category": True, "required_notice": {"account": 2}},
    "adults": {"age": {"minimum": 16, "age_unknown": "deny"}},
    "interest": {"legal_basis": "legitimate_interest"},
    "interest in marketing": {"legal_basis": "legitimate_interest", "direct_marketing": True},
    "interest in the device": {"legal_basis": "legitimate_interest", "terminal_access": "consent"},
    "contract": {"legal_basis": "contract"},
    "contract on the device": {"legal_basis": "contract", "terminal_access": "consent"},
    "one channel": {"channels": ["web"]},
    "later": {"valid_from": "2026-05-10T00:00:00Z"},
    "storage": {"runs_under_restriction": True},
}
CONSENT_ONLY = ("consent", "marketing", "contact required", "one channel")


@cache
def policy(variant: str) -> Policy:
    """A purpose of the variant, one child that inherits, one that does not."""
    main = {**MAIN, **VARIANTS[variant]}
    child = {**main, "parent": "main", "inherits_consent": True}
    return patched({"purposes": {"main": main, "child": child, "loner": {**main, "parent": "main"}}})


def row(n: int, status: str, **more: Any) -> State:
    """A row as a record would leave it; `at` in days from NOW."""
    occurred_at = NOW + more.pop("at", -1) * DAY
    slot = SLOT[status]
    keys = {"purpose": "main", "channel": "", "contact": b"", "recipient": "", "grade": SERVICE, "tenure": 1,
            "via": b"", **more}  # fmt: skip
    return State(
        identifier=b"i", slot=slot, status=status, occurred_at=occurred_at, recorded_at=NOW,
        expires_at=occurred_at + LIFE if slot == Slot.GRANT else None,
        **{"notice": "account", "notice_version": 1, "language": "en", "method": "form", "event": UUID(int=n), **keys},
    )  # fmt: skip


class Spec(NamedTuple):
    """What a row is drawn from."""

    statuses: Sequence[str] = (*STATUSES, "given", "given", "given", "applies")
    grades: Sequence[int] = (IMPORTED, DEVICE, SERVICE)
    methods: Sequence[str] = ("form", "banner_button")
    versions: Sequence[int] = (1, 2)


ANYTHING = Spec()


@st.composite
def histories(draw: st.DrawFn, spec: Spec = ANYTHING, most: int = 8, least: int = 0) -> list[State]:
    """Random records. One drawn seed makes them: ten times as quick as drawing each field, and it shrinks by length."""
    count = draw(st.integers(least, most))
    rng = random.Random(draw(st.integers(0, 2**32)))
    return [_random_row(rng, n, spec) for n in range(1, count + 1)]


def _random_row(rng: random.Random, n: int, spec: Spec) -> State:
    status = rng.choice(spec.statuses)
    no = status in RESTRICTIVE
    return row(
        n, status,
        at=rng.choice((-45, -30, -29, -4, -3, -3, -2, -2, -1, -1, 0)),
        purpose=rng.choice(("main", "main", *PURPOSES, "*" if no or status.startswith("restrict") else "main")),
        channel=rng.choice(("web" if SLOT[status] in (Slot.GRANT, Slot.REQUEST) else "", "web", "web", "app")),
        contact=b"" if no else rng.choice((b"", *CONTACTS)),
        recipient=rng.choice(("", "", "", *RECIPIENTS)),
        grade=rng.choice(spec.grades),
        method=rng.choice(spec.methods),
        notice_version=rng.choice(spec.versions),
        event=UUID(int=rng.choice((n, 1))),
    )  # fmt: skip


asks = st.builds(
    Ask,
    purpose=st.sampled_from(("main", *PURPOSES)),
    channel=st.sampled_from((*["web"] * 6, "app", "voice", None)),
    contact=st.sampled_from((None, None, *CONTACTS[1:])),
    recipient=st.sampled_from((*[None] * 4, *RECIPIENTS[1:], "somebody")),
    context=st.sampled_from((Context(age=40), Context(age=40), Context(age=10), Context())),
)
variants = st.sampled_from(tuple(VARIANTS))
quick = settings(max_examples=200, deadline=None, database=None)


def folded(history: Iterable[State]) -> list[State]:
    standing: Standing = {}
    for state in history:
        fold(standing, state)
    return list(standing.values())


def answer(variant: str, history: Iterable[State], ask: Ask, now: datetime = NOW) -> Decision:
    return decide(policy(variant), folded(history), ask, now)


# -- the fold -------------------------------------------------------------------------------------------------------


@given(histories(), st.randoms(use_true_random=False))
@quick
def test_fold_takes_records_in_any_order_and_number(history: list[State], rng: random.Random) -> None:
    again = history + rng.choices(history, k=5) if history else []
    rng.shuffle(again)
    assert {state.key: state for state in folded(again)} == {state.key: state for state in folded(history)}


@given(histories(), histories())
@quick
def test_fold_is_associative(one: list[State], other: list[State]) -> None:
    whole = set(map(_frozen, folded(one + other)))
    assert whole == set(map(_frozen, folded(folded(one) + folded(other))))
    assert whole == set(map(_frozen, folded(folded(other) + one)))


def _frozen(state: State) -> bytes:
    return msgspec.msgpack.encode(state)


@given(histories())
@quick
def test_fold_tells_whether_a_row_took_its_place(history: list[State]) -> None:
    standing: Standing = {}
    for state in history:
        before = dict(standing)
        assert bool(fold(standing, state)) is (standing != before)
        assert not fold(standing, state)


def test_every_status_has_a_slot_and_a_caution() -> None:
    assert SLOT.keys() == set(STATUSES)
    ranks = [row(1, status).rank for status in STATUSES]
    assert len(set(ranks)) == len(STATUSES)


def test_a_later_withdrawal_leaves_an_objection_standing() -> None:
    rows = folded([row(1, "objected", at=-2), row(2, "withdrawn", at=-1)])
    assert {state.status for state in rows} == {"objected", "withdrawn"}


# -- the decision ---------------------------------------------------------------------------------------------------


@given(variants, histories(), asks, st.randoms(use_true_random=False))
@settings(quick, max_examples=1_000)
def test_decision_does_not_depend_on_the_order_of_rows(
    variant: str, history: list[State], ask: Ask, rng: random.Random
) -> None:
    rows = folded(history)
    first = decide(policy(variant), rows, ask, NOW)
    rng.shuffle(rows)
    assert decide(policy(variant), rows, ask, NOW) == first


restrictive = histories(Spec(statuses=(*RESTRICTIVE, "restricted")), most=1, least=1)


@given(variants, histories(), restrictive, asks)
@settings(quick, max_examples=1_200)
def test_a_restrictive_record_never_opens(variant: str, history: list[State], no: list[State], ask: Ask) -> None:
    before = answer(variant, history, ask)
    after = answer(variant, [*history, *no], ask)
    assert before.allow or not after.allow or before.reason in OPEN


grants = histories(Spec(statuses=("given", "confirmed", "renewed")))


@given(st.sampled_from(CONSENT_ONLY), grants, asks, st.sampled_from((*PURPOSES, "*")), st.integers(0, 9))
@settings(quick, max_examples=300)
def test_after_a_withdrawal_nothing_earlier_weaker_or_imported_allows(
    variant: str, history: list[State], ask: Ask, purpose: str, n: int
) -> None:
    """Drawn grants are made earlier, or weaker, or imported, whichever their number says."""
    lineage = policy(variant).lineage[ask.purpose]
    no = row(99, ("withdrawn", "refused", "objected")[n % 3], at=-2, grade=SERVICE, purpose=purpose)
    powerless = [
        msgspec.structs.replace(
            state,
            grade=(state.grade, DEVICE, IMPORTED)[(index + n) % 3],
            occurred_at=min(state.occurred_at, no.occurred_at) if (index + n) % 3 == 0 else state.occurred_at,
        )
        for index, state in enumerate(history)
    ]
    if purpose == "*" or purpose in lineage:
        assert not answer(variant, [*powerless, no], ask).allow


@given(
    st.sampled_from(CONSENT_ONLY),
    histories(Spec(statuses=tuple(RESTRICTIVE), grades=(0, 1, 2, 3))),
    st.sampled_from((1, 2, 3, 4)),
)
@quick
def test_a_later_grant_on_evidence_as_good_re_opens(variant: str, history: list[State], grade: int) -> None:
    strongest = max((state.grade for state in history), default=0)
    regrant = row(99, "given", at=0.5, grade=grade, channel="web", contact=b"ada")
    found = answer(variant, [*history, regrant], Ask("main", "web", b"ada"), NOW + DAY)
    bears = [state for state in history if state.purpose in ("main", "*") and state.channel in ("", "web")]
    if variant == "marketing":  # an objection to marketing holds on every channel
        bears += [state for state in history if state.purpose in ("main", "*") and state.status == "objected"]
    assert found.allow or any(state.grade > grade for state in bears)
    assert found.allow or grade < strongest


@given(variants, histories(), asks)
@settings(quick, max_examples=600)
def test_valid_until_is_exact(variant: str, history: list[State], ask: Ask) -> None:
    now = answer(variant, history, ask)
    if now.allow and now.valid_until is not None:
        assert now.valid_until > NOW
        assert answer(variant, history, ask, now.valid_until - TICK).allow
        assert not answer(variant, history, ask, now.valid_until).allow
    elif now.allow:
        assert answer(variant, history, ask, NOW + 9_999 * DAY).allow


@given(histories(), asks)
@quick
def test_an_unknown_purpose_is_denied(history: list[State], ask: Ask) -> None:
    for purpose in ("nobody", "*", ""):
        found = answer("consent", history, msgspec.structs.replace(ask, purpose=purpose))
        assert (found.allow, found.reason, found.state) == (False, "unknown_purpose", None)


@given(variants, histories(), asks)
@quick
def test_an_allow_has_a_reason_to_allow_and_a_row_that_is_not_a_no(
    variant: str, history: list[State], ask: Ask
) -> None:
    found = answer(variant, history, ask)
    assert found.allow is (found.reason in {"consent", "basis_applies"})
    if found.allow and found.state is not None:
        assert found.state.status in {"given", "confirmed", "renewed", "applies"}


# -- a second opinion: the consent rule, naive, over the raw records -------------------------------------------------


ABOUT = {"main": ("main", "*"), "child": ("child", "main", "*"), "loner": ("loner", "main", "*")}


def _is_no(no: State, variant: str, ask: Ask, channel: str) -> bool:
    """Whether a record says no to the question."""
    if no.status not in {"withdrawn", "refused", "objected"} or no.purpose not in ABOUT[ask.purpose]:
        return False
    if no.status == "objected" and variant == "marketing":
        return True
    return no.channel in ("", channel) and (ask.recipient is None or no.recipient in ("", ask.recipient))


def _is_yes(yes: State, ask: Ask, channel: str, now: datetime) -> bool:
    """Whether a record says yes to the purpose on the channel, and is in force by time."""
    if yes.status not in {"given", "confirmed", "renewed"} or yes.channel != channel:
        return False
    inherited = (ask.purpose, yes.purpose) == ("child", "main")
    return (yes.purpose == ask.purpose or inherited) and yes.occurred_at <= now < yes.occurred_at + LIFE


def _outvoted(yes: State, noes: list[State]) -> bool:
    return any(yes.occurred_at <= no.occurred_at or yes.grade < no.grade or yes.grade == IMPORTED for no in noes)


def naive(variant: str, history: list[State], ask: Ask, now: datetime) -> tuple[bool, datetime | None]:
    """Whether any record says yes and no record says no to it, and until when. Written from the prose of the design."""
    channels = ("web",) if variant == "one channel" else CHANNELS
    channel = "web" if variant == "one channel" and ask.channel is None else ask.channel
    if channel not in channels or ask.recipient == "somebody":
        return False, None
    noes = [record for record in history if _is_no(record, variant, ask, channel)]
    yeses = [yes for yes in history if _is_yes(yes, ask, channel, now) and not _outvoted(yes, noes)]
    if variant == "contact required":
        yeses = [yes for yes in yeses if yes.contact]
        if ask.contact is None and len({yes.contact for yes in yeses}) > 1:
            return False, None
    if ask.contact is not None:
        yeses = [yes for yes in yeses if yes.contact in (b"", ask.contact)]
    yeses = [yes for yes in yeses if yes.recipient in ("", ask.recipient)]
    return bool(yeses), max((yes.occurred_at + LIFE for yes in yeses), default=None)


plain = histories(Spec(("given", "given", "renewed", "confirmed", "requested", *sorted(RESTRICTIVE))), most=10)


@given(st.sampled_from(CONSENT_ONLY), plain, asks)
@settings(quick, max_examples=2_000)
def test_a_naive_reading_of_the_raw_records_agrees(variant: str, history: list[State], ask: Ask) -> None:
    found = answer(variant, history, ask)
    assert (found.allow, found.valid_until if found.allow else None) == naive(variant, history, ask, NOW)


def test_the_second_opinion_can_say_yes_and_no() -> None:
    """A control: an oracle that always denied, or a history that never allowed, would agree for nothing."""
    rng = random.Random(7)
    spec = Spec(("given", "given", "renewed", "requested", *sorted(RESTRICTIVE)))
    said = [
        naive(variant, [_random_row(rng, n, spec) for n in range(1, 9)], Ask("main", "web"), NOW)[0]
        for variant in CONSENT_ONLY
        for _ in range(200)
    ]
    assert 100 < sum(said) < 700


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda rows: [state for state in rows if state.slot != Slot.BLOCK], id="withdrawals lost"),
        pytest.param(lambda rows: [msgspec.structs.replace(state, grade=SERVICE) for state in rows], id="grades lost"),
        pytest.param(
            lambda rows: [msgspec.structs.replace(state, recipient="") for state in rows], id="recipients lost"
        ),
    ],
)
def test_the_second_opinion_notices(spoil: Callable[[list[State]], list[State]]) -> None:
    """A control: what a broken fold would leave is found within a few hundred histories."""
    rng = random.Random(11)
    spec = Spec(("given", "given", "renewed", *sorted(RESTRICTIVE)))
    ask = Ask("main", "web", recipient="aerosicher")
    for _ in range(600):
        history = [_random_row(rng, n, spec) for n in range(1, 7)]
        found = decide(policy("consent"), spoil(folded(history)), ask, NOW).allow
        if found is not naive("consent", history, ask, NOW)[0]:
            return
    pytest.fail("a broken fold was not noticed")
