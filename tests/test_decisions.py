"""Decisions as tables: every case of `decisions/*.toml` runs through the pure function, the services and HTTP alike.

A case is a list of records in the order in which they arrive, and checks with what they must answer. Times are offsets
from now (`-2d`); `until = "-2d + P13M"` counts a duration from such an offset. `[policy]` patches the demo policy,
for a whole file or for one case; `like` copies a purpose. `refused` names the field for which a record is refused.
`only = "pure"` keeps a case from the slower levels and says `why`; `broken` says what is known to be wrong.
"""

from __future__ import annotations

import asyncio
import tomllib
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import msgspec
import pytest
from conftest import Tenant, Tenants

from consent_service import auth, clock, demo, devices, policies
from consent_service.consents.batch import Batch, BatchRow
from consent_service.consents.prepare import prepare, read
from consent_service.decisions import REASONS, Ask, Context, decide
from consent_service.errors import Invalid
from consent_service.ledger import Head, Ledger
from consent_service.policies import CHANNELS, Duration, Policy, canonical, decode_policy
from consent_service.policies.store import Policies
from consent_service.states import STATUSES, State
from consent_service.subjects import Hasher
from consent_service.vault import Vault

TABLES = Path(__file__).parent / "decisions"
DEMO = policies.load(policies.find("demo"))
NO = frozenset({"withdrawn", "refused", "objected"})
SHOWN = {"id": "account", "version": 1, "language": "en"}
DAYS = {"s": 1 / 86_400, "m": 1 / 1440, "h": 1 / 24, "d": 1, "y": 366}


# -- the tables -----------------------------------------------------------------------------------------------------


class Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One record of a case, a call of its own."""

    purpose: str
    status: str
    channel: str | None = None
    contact: str | None = None
    recipient: str | None = None
    at: str | None = None
    """When the person acted; default: now, each record later than the one before."""
    method: str | None = None
    """Default: `form`, for statuses that need one."""
    key: Literal["service", "publishable"] = "service"
    refused: str | None = None

    def body(self, subject: dict[str, str], base: datetime) -> dict[str, Any]:
        """The call that records it."""
        record = {name: getattr(self, name) for name in ("purpose", "status", "channel", "contact", "recipient")}
        record["occurred_at"] = None if self.at is None else moment(self.at, base)
        body: dict[str, Any] = {"subject": subject, "records": [record], "method": self.method}
        if self.status in NO:
            return body
        return {**body, "id": uuid.uuid4().hex, "method": self.method or "form", "notice": SHOWN}


class Question(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One check of a case and its answer: `allow = reason` or `deny = reason`."""

    purpose: str
    channel: str | None = None
    contact: str | None = None
    recipient: str | None = None
    context: dict[str, Any] = {}
    at: str | None = None
    allow: str | None = None
    deny: str | None = None
    until: str | None = None
    record: int | None = None
    """Place of the record that decided, from 0; -1: none did."""

    def body(self, subject: dict[str, str]) -> dict[str, Any]:
        """The call that asks it."""
        asked = {name: getattr(self, name) for name in ("purpose", "channel", "contact", "recipient", "context")}
        return {"subject": subject, **asked}


class Case(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What was recorded, and what is then answered."""

    title: str
    checks: list[Question]
    records: list[Entry] = []
    effective: bool | None = None
    """What the last record's answer says."""
    policy: dict[str, Any] = {}
    only: Literal["pure"] | None = None
    why: str = ""
    broken: str | None = None
    file: str = ""


class Table(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A file of cases about one rule."""

    about: str
    case: list[Case]
    policy: dict[str, Any] = {}


def read_tables() -> Iterator[Case]:
    for file in sorted(TABLES.glob("*.toml")):
        table = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Table)
        for case in table.case:
            yield msgspec.structs.replace(case, file=file.stem, policy=merged(table.policy, case.policy))


def merged(one: Any, other: Any) -> Any:
    """Tables merge, everything else is replaced."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return {**one, **{key: merged(one.get(key), value) for key, value in other.items()}}


def patched(patch: dict[str, Any]) -> Policy:
    """The demo policy with a patch; the text "(unset)" takes a key away. Every notice presents a new purpose."""
    plain = msgspec.json.decode(canonical(DEMO))
    plain["tenant"]["issuers"] = []  # which lead to one tenant, and many are made here
    for name, change in patch.get("purposes", {}).items():
        like = plain["purposes"].get(change.get("like", name), {})
        purpose = merged({**like, "id": name}, {key: value for key, value in change.items() if key != "like"})
        plain["purposes"][name] = {key: value for key, value in purpose.items() if value != "(unset)"}
    for versions in plain["notices"].values():
        for notice in versions.values():
            notice["purposes"] = list(plain["purposes"])
    return decode_policy(msgspec.json.encode(plain))


def moment(offset: str, base: datetime) -> datetime:
    """`-2d` from now, or a date as it stands."""
    if offset[0] not in "+-":
        return datetime.fromisoformat(offset)
    return base + timedelta(days=float(offset[:-1]) * DAYS[offset[-1]])


def until(text: str, base: datetime) -> datetime:
    start, _plus, length = text.partition(" + ")
    return Duration.parse(length).after(moment(start, base)) if length else moment(start, base)


CASES = list(read_tables())


def each_case(*, pure: bool) -> pytest.MarkDecorator:
    """One test a case, with a readable id; what is known to be wrong must stay wrong until its line is removed."""
    chosen = [case for case in CASES if pure or case.only is None]
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case,
                id=f"{case.file}: {case.title}",
                marks=pytest.mark.xfail(reason=case.broken, strict=True) if case.broken else (),
            )
            for case in chosen
        ],
    )


# -- the three levels -----------------------------------------------------------------------------------------------


class Level(Protocol):
    """Where a case is run."""

    def device(self) -> devices.Device:
        """A minted device."""

    async def record(self, body: dict[str, Any], key: str) -> tuple[bool, dict[str, Any]]:
        """Whether it was accepted, and the answer."""

    async def check(self, body: dict[str, Any], at: timedelta) -> dict[str, Any]:
        """The answer."""


UNKNOWN = BatchRow(
    frontier=b"", tenure=0, tenured=False, events=0, key=None, body=None, answer=None, answer_event=None,
    answer_tenure=None, answer_idx=None, answer_size=None, answer_key=None,
)  # fmt: skip
"""Of somebody who was never heard of."""


class Pure:
    """No database, no clock: preparation, fold and decision of the service, by themselves."""

    def __init__(self, policy: Policy, base: datetime) -> None:
        self.policy = policy
        self.now = base
        self.hasher = Hasher(b"for tests only", 1)
        ledger = Ledger(cast("Any", None), Policies(), b"for tests only", Vault(b"for tests only"), 1)
        self.batch = Batch(ledger, self._head(), b"", {}, {})
        self.rows: list[State] = []

    def device(self) -> devices.Device:
        return devices.Devices(b"for tests only").mint(1)

    def _head(self) -> Head:
        return Head(epoch=1, size=0, policy=1, frozen=None, first_key=1, last_key=1, now=self.now)

    async def record(self, body: dict[str, Any], key: str) -> tuple[bool, dict[str, Any]]:
        kind, scopes = demo.KEYS[key]
        credential = auth.Credential(1, key, kind, key, scopes, frozenset(), None)
        self.now += timedelta(milliseconds=1)
        self.batch.head = self._head()
        act, errors = prepare(self.policy, 1, read(msgspec.json.encode(body)), credential, None, self.hasher)
        if errors or act is None:
            return False, {"errors": msgspec.to_builtins(errors)}
        place = self.batch.add(act, UNKNOWN)
        assert isinstance(place, int)
        self.rows = list(self.batch.standing[act.identifier].values())
        return True, msgspec.json.decode(self.batch.answers[place])

    async def check(self, body: dict[str, Any], at: timedelta) -> dict[str, Any]:
        contact = None if body["contact"] is None else self.hasher.contact(body["contact"])
        context = msgspec.convert(body["context"], Context)
        ask = Ask(body["purpose"], body["channel"], contact, body["recipient"], context)
        found = decide(self.policy, self.rows, ask, self.now + at)
        record = None if found.state is None else str(found.state.event)
        basis = "no_record" if record is None else "record"
        return {**msgspec.structs.asdict(found), "record": record, "basis": basis}


class Services:
    """The services on a real database, called directly."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant

    def device(self) -> devices.Device:
        return self.tenant.device()

    async def _credential(self, key: str) -> auth.Credential:
        return await self.tenant.services.keyring.authenticate(self.tenant.keys[key])

    async def record(self, body: dict[str, Any], key: str) -> tuple[bool, dict[str, Any]]:
        try:
            raw = await self.tenant.services.writer.record(msgspec.json.encode(body), await self._credential(key), None)
        except Invalid as error:
            return False, {"errors": msgspec.to_builtins(error.errors)}
        return True, msgspec.json.decode(raw)

    async def check(self, body: dict[str, Any], at: timedelta) -> dict[str, Any]:
        assert not at, "the database's clock is now"
        checker = self.tenant.services.checker
        return msgspec.json.decode(await checker.check(msgspec.json.encode(body), await self._credential("service")))


class Http:
    """The whole application."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant

    def device(self) -> devices.Device:
        return self.tenant.device()

    async def record(self, body: dict[str, Any], key: str) -> tuple[bool, dict[str, Any]]:
        response = await self.tenant.post("/v1/consents", body, key)
        assert response.status_code in {201, 422}, response.text
        return response.status_code == 201, response.json()

    async def check(self, body: dict[str, Any], at: timedelta) -> dict[str, Any]:
        assert not at, "the database's clock is now"
        response = await self.tenant.post("/v1/check", body)
        assert response.status_code == 200, response.text
        return response.json()


async def run(case: Case, level: Level, base: datetime) -> None:
    """Record, then ask."""
    device = level.device() if any(entry.key == "publishable" for entry in case.records) else None
    subject = {"type": "login", "id": uuid.uuid4().hex} if device is None else msgspec.to_builtins(device.subject)
    proof = {} if device is None else {"proof": device.token}
    events: list[str | None] = []
    answer: dict[str, Any] = {}
    for entry in case.records:
        accepted, answer = await level.record({**entry.body(subject, base), **proof}, entry.key)
        assert accepted is (entry.refused is None), answer
        if entry.refused:
            assert [error["pointer"] for error in answer["errors"]] == [f"/records/0/{entry.refused}"]
        events.append(answer.get("event"))
    if case.effective is not None:
        assert answer["effective"] is case.effective
        remedies = [state["remedy"] for state in answer["states"] if not state["effective"]]
        assert all(remedies)
        assert bool(remedies) is not case.effective
    for question in case.checks:
        at = timedelta(0) if question.at is None else moment(question.at, base) - base
        found = await level.check(question.body(subject), at)
        assert (found["allow"], found["reason"]) == (question.allow is not None, question.allow or question.deny)
        if question.until is not None:
            wanted = None if question.until == "never" else until(question.until, base)
            assert same_moment(found["valid_until"], wanted)
        if question.record is not None:
            wanted_event = None if question.record < 0 else events[question.record]
            assert found["record"] == wanted_event
            assert found["basis"] == ("no_record" if question.record < 0 else "record")


def same_moment(found: str | datetime | None, wanted: datetime | None) -> bool:
    return (datetime.fromisoformat(found) if isinstance(found, str) else found) == wanted


@pytest.fixture(scope="session")
async def shelf(make_tenant: Tenants) -> dict[str, Tenant]:
    """One tenant for each policy that the tables use, by its hash."""
    tenants: dict[str, Tenant] = {}
    for patch in [case.policy for case in CASES if case.only is None]:
        policy = patched(patch)
        if policy.hash not in tenants:
            tenants[policy.hash] = await make_tenant.make(policy)
    return tenants


@each_case(pure=True)
async def test_table_pure(case: Case) -> None:
    base = clock.now()
    await run(case, Pure(patched(case.policy), base), base)


@each_case(pure=False)
async def test_table_services(case: Case, shelf: dict[str, Tenant]) -> None:
    await run(case, Services(shelf[patched(case.policy).hash]), clock.now())


@each_case(pure=False)
async def test_table_http(case: Case, shelf: dict[str, Tenant]) -> None:
    await run(case, Http(shelf[patched(case.policy).hash]), clock.now())


def test_tables_say_what_they_leave_out() -> None:
    for case in CASES:
        assert case.checks, case.title
        assert bool(case.only) == bool(case.why), case.title
        for question in case.checks:
            assert (question.allow is None) is not (question.deny is None), case.title
            assert case.only or question.at is None, case.title
    titles = [(case.file, case.title) for case in CASES]
    assert len(titles) == len(set(titles))


NOT_YET_REACHABLE = {
    "suppressed": "erasure, which leaves a suppression behind, is a later part",
    "conflict_open": "links, which could bring conflicting identifiers together, are a later part",
    "condition_failed": "conditions are a later part",
    "outage": "answers from memory, and so an outage that a purpose decides about, are a later part",
}


def test_every_reason_that_can_be_reached_is_reached_over_http() -> None:
    reached = {question.allow or question.deny for case in CASES if not case.only for question in case.checks}
    assert reached == REASONS.keys() - NOT_YET_REACHABLE


# -- every purpose × status × channel -------------------------------------------------------------------------------
# Written from the interface's description of the example tenant; nothing below looks at the policy or calls `decide`.

OWN: dict[str, frozenset[str]] = {
    "analytics": frozenset({"web", "app"}),
    "comfort.preferences": frozenset({"web", "app", "shop"}),
    "fraud.prevention": frozenset({"web", "app", "shop"}),
    "health.sensor": frozenset({"device", "app"}),
    "marketing.email": frozenset({"email"}),
    "marketing.phone": frozenset({"phone"}),
    "marketing.push": frozenset({"push"}),
    "newsletter": frozenset({"email"}),
    "offer.automated": frozenset({"web", "app"}),
    "personalisation": frozenset({"web", "app"}),
    "profiling": frozenset({"web", "app"}),
    "repair.call": frozenset({"phone"}),
    "share.partner": frozenset({"web"}),
    "telemetry.drone": frozenset({"device"}),
}
CONTACT = {"newsletter": "ada@example.org", "marketing.phone": "+49 30 1234567"}
GRANTING = frozenset({"given", "confirmed", "renewed"})


class Square(msgspec.Struct, frozen=True):
    """One record of the matrix. A customer agreed yesterday to all of the purpose's channels, or has a contract."""

    customer: bool
    purpose: str
    status: str
    channel: str

    def accepted(self) -> bool:
        """A no is always taken. Everything else keeps to the purpose's channels and to what its basis knows."""
        if self.status in NO:
            return True
        if self.channel not in OWN[self.purpose]:
            return False
        if self.status in {"restricted", "restriction_lifted"}:
            return True
        if self.status in {"applies", "ceased"}:
            return self.purpose in {"repair.call", "fraud.prevention"}
        return self.purpose != "repair.call"

    def answer(self, asked: str) -> str:
        """The reason of a check on channel `asked` afterwards."""
        own = OWN[self.purpose]
        wider = self.status in NO and self.channel not in own
        status = self.status if self.accepted() and (wider or asked == self.channel) else ""
        if status == "restricted":
            return status
        if self.purpose == "fraud.prevention" and status == "objected":
            return status
        if asked not in own:
            return "channel_not_covered"
        if self.purpose == "fraud.prevention":
            return "no_basis_fact" if status == "ceased" else "basis_applies"
        if self.purpose == "repair.call":
            runs = status == "applies" or (self.customer and status != "ceased")
            return "basis_applies" if runs else "no_basis_fact"
        return self._consent(status)

    def _consent(self, status: str) -> str:
        if status in NO:
            return status
        if self.customer:
            return "consent"
        if self.purpose == "newsletter" and status in {"given", "renewed"}:
            return "requested"
        if status in GRANTING:
            return "consent"
        if status == "requested":
            return "requested"
        return "channel_not_covered" if self.accepted() and self.status in GRANTING else "no_record"

    def subject(self) -> dict[str, str]:
        return {"type": "login", "id": f"{self.customer}-{self.purpose}-{self.status}-{self.channel}"}

    def record(self) -> dict[str, Any]:
        entry = Entry(purpose=self.purpose, status=self.status, channel=self.channel, contact=self._contact())
        return entry.body(self.subject(), clock.now())

    def yesterday(self) -> dict[str, Any]:
        """What made the person a customer."""
        status = {"repair.call": "applies", "newsletter": "confirmed"}.get(self.purpose, "given")
        channels = sorted(OWN[self.purpose])
        calls = [
            Entry(purpose=self.purpose, status=status, channel=channel, at="-1d", contact=self._contact()).body(
                self.subject(), clock.now()
            )
            for channel in channels
        ]
        return {**calls[0], "records": [record for call in calls for record in call["records"]]}

    def check(self, asked: str) -> dict[str, Any]:
        question = Question(purpose=self.purpose, channel=asked, contact=self._contact())
        return question.body(self.subject())

    def _contact(self) -> str | None:
        return CONTACT.get(self.purpose)


SQUARES = [Square(*square) for square in product((False, True), OWN, STATUSES, CHANNELS)]


def allowed(reason: str) -> bool:
    return reason in {"consent", "basis_applies"}


def test_matrix_is_complete() -> None:
    assert len(SQUARES) == 2 * 14 * 11 * 8
    assert OWN.keys() == DEMO.purposes.keys()


async def test_matrix_pure() -> None:
    wrong = []
    base = clock.now()
    for square in SQUARES:
        level = Pure(DEMO, base)
        if square.customer:
            assert (await level.record(square.yesterday(), "service"))[0]
        accepted, _answer = await level.record(square.record(), "service")
        found = {asked: (await level.check(square.check(asked), timedelta(0)))["reason"] for asked in CHANNELS}
        wanted = {asked: square.answer(asked) for asked in CHANNELS}
        if (accepted, found) != (square.accepted(), wanted):
            wrong.append((square, accepted, found, wanted))
    assert not wrong[:3]


async def test_matrix_http(tenant: Tenant) -> None:
    at_once = asyncio.Semaphore(64)

    async def record(body: dict[str, Any]) -> int:
        async with at_once:
            return (await tenant.post("/v1/consents", body)).status_code

    customers = [square for square in SQUARES if square.customer]
    assert set(await asyncio.gather(*(record(square.yesterday()) for square in customers))) == {201}
    statuses = await asyncio.gather(*(record(square.record()) for square in SQUARES))
    wrong = [
        (square, status)
        for square, status in zip(SQUARES, statuses, strict=True)
        if status != (201 if square.accepted() else 422)
    ]
    assert not wrong[:3]
    asked = [(square, channel) for square in SQUARES for channel in CHANNELS]
    for start in range(0, len(asked), 10_000):
        page = asked[start : start + 10_000]
        response = await tenant.post("/v1/checks", {"checks": [square.check(channel) for square, channel in page]})
        assert response.status_code == 200, response.text
        for (square, channel), answer in zip(page, response.json()["decisions"], strict=True):
            wanted = square.answer(channel)
            assert (answer["allow"], answer["reason"]) == (allowed(wanted), wanted), (square, channel)


def test_now_is_utc() -> None:
    assert clock.now().tzinfo is UTC
