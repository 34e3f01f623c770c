"""Links and consents against a plain model of them, over HTTP and on a real database, after every step of a program.

The model (`Oracle`) keeps every record and every link in lists and decides by looking at all of them. It was written
from the rules below and from nothing else: it shares no code, no strands, no states and no slots with the service.

1. What was said stays with the identifier on which it was said. A yes holds against a no that occurred earlier and
   has no higher grade; an imported yes holds against none.
2. While linked, the identifiers of a person are decided about together: every no counts, and every yes but those that
   a linked identifier gave before the end of an earlier tenure; an account's own stay its own. Of a thing that changes
   hands only what was said in the present tenure counts, by the time at which it was said as well.
3. A yes from before the link, reported when it may, against an earlier no on another identifier: the purpose's
   `conflict` decides. What was said once they were linked is the person's answer.
4. A no while linked is carried to all identifiers of the person and stays there when the link ends.
5. An annulled link never was.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import msgspec
import pytest
from conftest import NOTICE, Tenant, Tenants
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from test_decisions import patched

from consent_service import auth, clock, demo, tenures
from consent_service.consents import batch
from consent_service.decisions.decide import _Question
from consent_service.links import write

RULES = ("strictest", "latest_explicit", "account_wins")
"""The three purposes, each named after its rule for conflicts."""
POLICY = patched({
    "purposes": {
        rule: {"like": "analytics", "conflict": rule, "channels": ["web"], "evidence": "imported",
               "terminal_access": "none"}
        for rule in RULES
    }
})  # fmt: skip
THINGS = ("tablet", "laptop", "phone", "drone")
ACCOUNTS = ("ada", "bob", "eve")
NAMES = THINGS + ACCOUNTS
NAMESPACE = {"phone": "phone", "drone": "asset", **dict.fromkeys(ACCOUNTS, "login")}
"""The others are minted devices."""
PASSED_ON = frozenset({"drone"})
NEVER = -(10**9)
IMPORTED, ANONYMOUS, ATTESTED = 0, 1, 3

Answer = Literal["allowed", "conflict_open", "denied"]
Answers = dict[tuple[str, str], Answer]
"""By identifier and purpose."""


# -- programs ---------------------------------------------------------------------------------------------------------


class Say(NamedTuple):
    """A record of some purposes, `ago` hours in the past; 0: now."""

    who: str
    status: str
    purposes: tuple[str, ...] = RULES
    ago: int = 0
    method: str = "form"
    by: str = "service"


class Link(NamedTuple):
    who: str
    account: str
    replace: bool = False


class End(NamedTuple):
    """End the latest link of an identifier, if it ever had one."""

    who: str


class Annul(NamedTuple):
    """Annul the latest link of an identifier, or an earlier one."""

    who: str
    back: int = 0


class Ask(NamedTuple):
    """One officer wants that; nobody agrees yet."""

    who: str
    back: int = 0


Step = Say | Link | End | Annul | Ask


def shown(step: Step) -> str:
    """As it is written in a program."""
    usual = type(step)._field_defaults
    said = [f"{name}={value!r}" for name, value in step._asdict().items() if name not in usual or value != usual[name]]
    return f"{type(step).__name__}({', '.join(said)})"


class Draw:
    """Programs about few identifiers, so that much happens to each; at first nothing is linked."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def program(self) -> list[Step]:
        things = self.chance.sample(THINGS, self.chance.choice((1, 1, 2)))
        accounts = ACCOUNTS[: self.chance.choice((1, 2, 2, 3))]
        steps: list[Step] = [self.say((*things, *accounts)) for _ in range(self.chance.randrange(4))]
        for _ in range(self.chance.randrange(4, 20)):
            linked = [step.who for step in steps if isinstance(step, Link)]
            steps.append(self.step(things, accounts, linked))
        return steps

    def step(self, things: list[str], accounts: tuple[str, ...], linked: list[str]) -> Step:
        kinds = ("say", "link", "end", "annul", "ask") if linked else ("say", "link")
        kind = self.chance.choices(kinds, (6, 3, 3, 1, 0.3)[: len(kinds)])[0]
        if kind == "say":
            return self.say((*things, *accounts))
        if kind == "link":
            who, account = self.chance.choice((*things, *things, *accounts)), self.chance.choice(accounts)
            return Link(who if who != account else things[0], account, self.chance.random() < 0.5)
        who = self.chance.choice(linked)
        if kind == "end":
            return End(who)
        return (Annul if kind == "annul" else Ask)(who, self.chance.choice((0, 0, 1)))

    def say(self, names: tuple[str, ...]) -> Say:
        choice = self.chance.choice
        who = choice(names)
        status = choice(("given", "given", "given", "withdrawn", "refused", "objected"))
        purposes = RULES if self.chance.random() < 0.7 else (choice(RULES),)
        ago = choice((0, 0, 0, 0, 1, 24, 48))
        method = choice(("form", "form", "form", "banner_button", "banner_button", "import"))
        by = choice(("service", "device")) if who not in NAMESPACE and method != "import" else "service"
        return Say(who, status, purposes, ago, method, by)


def numbered(number: int) -> list[Step]:
    """A program independent of all others; Hypothesis varies what it has, and finds less in as many runs."""
    return Draw(random.Random(number)).program()


def simpler(program: list[Step]) -> Iterator[list[Step]]:
    """A program with something left out, or said more plainly."""
    for size in (8, 4, 2, 1):
        for at in range(0, len(program), size):
            yield program[:at] + program[at + size :]
    for at, step in enumerate(program):
        usual = {**type(step)._field_defaults, **({"status": "withdrawn"} if step[1:2] != ("given",) else {})}
        for name in step._fields:
            if name in usual and getattr(step, name) != usual[name]:
                yield [*program[:at], step._replace(**{name: usual[name]}), *program[at + 1 :]]


# -- the model --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Tie:
    """A link."""

    who: str
    account: str
    begin: int
    end: int | None = None
    annulled: bool = False

    @property
    def holds(self) -> bool:
        return self.end is None and not self.annulled


@dataclass(eq=False, frozen=True)
class Said:
    """A yes or a no, about one purpose."""

    who: str
    purpose: str
    yes: bool
    grade: int
    occurred: int
    recorded: int
    explicit: bool


@dataclass(eq=False, frozen=True)
class Carried:
    """A no that was committed on another identifier while both were one person."""

    holder: str
    said: Said
    ties: tuple[Tie, ...]
    """Through which it came: the link of the one, the link of the other; an account needs none."""
    account: str

    @property
    def since(self) -> int:
        return max(tie.begin for tie in self.ties)


class Path(NamedTuple):
    """How a yes and a no on two identifiers come together."""

    since: int
    account: str
    other: str
    """Where the no is."""


class Oracle:
    """What the rules say. Time is a number of steps; hours ago are negative."""

    def __init__(self) -> None:
        self.now = 0
        self.said: list[Said] = []
        self.carried: list[Carried] = []
        self.ties: list[Tie] = []

    # what happens

    def say(self, step: Say) -> None:
        self.now += 1
        grade = IMPORTED if step.method == "import" else ANONYMOUS if step.by == "device" else ATTESTED
        for purpose in step.purposes:
            said = Said(step.who, purpose, step.status == "given", grade, -step.ago or self.now, self.now,
                        step.method == "form")  # fmt: skip
            self.said.append(said)
            late = step.who in PASSED_ON and said.occurred < self.begin(step.who)
            if not said.yes and not late:
                account, person = self.person(step.who)
                for holder in person:
                    if holder != step.who:
                        ties = tuple(tie for tie in map(self.tie, (step.who, holder)) if tie)
                        self.carried.append(Carried(holder, said, ties, account))

    def link(self, step: Link) -> Tie | None:
        """The link, new or as it was; None: refused."""
        old = self.tie(step.who)
        if self.tie(step.account) or self.members(step.who):
            return None
        if old and old.account == step.account:
            return old
        if old and not step.replace:
            return None
        self.now += 1
        if old:
            old.end = self.now
        tie = Tie(step.who, step.account, self.now)
        self.ties.append(tie)
        return tie

    def end(self, tie: Tie) -> None:
        self.now += 1
        if tie.holds:
            tie.end = self.now

    def annul(self, tie: Tie) -> None:
        self.now += 1
        tie.annulled = True

    # who is who

    def tie(self, who: str) -> Tie | None:
        return next((tie for tie in self.ties if tie.holds and tie.who == who), None)

    def members(self, account: str) -> list[str]:
        return [tie.who for tie in self.ties if tie.holds and tie.account == account]

    def person(self, who: str) -> tuple[str, list[str]]:
        tie = self.tie(who)
        account = tie.account if tie else who
        return account, [account, *self.members(account)]

    def begin(self, who: str) -> int:
        tie = self.tie(who)
        return tie.begin if tie else NEVER

    def last_end(self, who: str) -> int:
        """When the last tenure ended that the identifier had before."""
        ends = [tie.end for tie in self.ties if tie.who == who and tie.end is not None and not tie.annulled]
        return max(ends, default=NEVER)

    # what counts

    def start(self, who: str, *, together: bool, yes: bool) -> int:
        """Since when what was recorded on an identifier counts."""
        if who in PASSED_ON:
            return self.begin(who) if together else self.last_end(who)
        return self.last_end(who) if yes and self.tie(who) else NEVER

    def counts(self, said: Said, person: list[str]) -> bool:
        """Whether a record on one of the person's identifiers counts as such."""
        together = len(person) > 1
        start = self.start(said.who, together=together, yes=said.yes)
        late = said.who in PASSED_ON and said.occurred < start  # reported by or for somebody who had it before
        return said.who in person and said.recorded > start and not late

    def own(self, purpose: str, person: list[str]) -> list[Said]:
        """What was said on the person's identifiers."""
        return [said for said in self.said if said.purpose == purpose and self.counts(said, person)]

    def is_carried(self, carried: Carried) -> bool:
        """Whether a no still is with who got it."""
        passed_on = carried.holder in PASSED_ON and (
            self.tie(carried.holder) not in carried.ties or carried.said.occurred < self.begin(carried.holder)
        )
        return not passed_on and not any(tie.annulled for tie in carried.ties)

    # decisions

    def decide(self, who: str, purpose: str) -> Answer:
        account, person = self.person(who)
        own = self.own(purpose, person)
        carried = [
            one for one in self.carried if one.said.purpose == purpose and one.holder in person and self.is_carried(one)
        ]
        noes = {said for said in own if not said.yes} | {one.said for one in carried}

        def verdict(yes: Said) -> Answer:
            found = {self._against(yes, no, own, carried, account) for no in noes}
            return "denied" if "denied" in found else "conflict_open" if "conflict_open" in found else "allowed"

        verdicts = {verdict(said) for said in own if said.yes}
        return "allowed" if "allowed" in verdicts else "conflict_open" if "conflict_open" in verdicts else "denied"

    def _against(self, yes: Said, no: Said, own: list[Said], carried: list[Carried], account: str) -> Answer:
        """What a yes is worth against one no."""
        if no.occurred >= yes.occurred or no.grade > yes.grade or yes.grade == IMPORTED:
            return "denied"
        if no.who == yes.who:
            return "allowed"
        paths = list(self._paths(yes, no, own, carried, account))
        if any(path.since < yes.occurred for path in paths):
            return "allowed"  # the person's answer
        return self._conflict(yes, paths[:1])

    def _paths(self, yes: Said, no: Said, own: list[Said], carried: list[Carried], account: str) -> Iterator[Path]:
        """Every way in which the identifiers of a yes and of a no belong together; the nearest first."""
        if no in own:
            yield Path(max(self.begin(yes.who), self.begin(no.who)), account, no.who)
        copies = [one for one in carried if one.said is no]
        for one in copies:
            if one.holder == yes.who:
                yield Path(one.since, one.account, no.who)
        for one in copies:
            if one.holder != yes.who and no not in own:
                yield Path(max(self.begin(yes.who), self.begin(one.holder), one.since), account, one.holder)

    @staticmethod
    def _conflict(yes: Said, paths: list[Path]) -> Answer:
        """Nobody knew that they were one person."""
        if yes.purpose == "latest_explicit" and yes.explicit:
            return "allowed"
        if yes.purpose == "account_wins":
            if any(yes.who == path.account for path in paths):
                return "allowed"
            if any(path.other == path.account for path in paths):
                return "denied"
        return "conflict_open"

    def answers(self) -> Answers:
        return {(who, purpose): self.decide(who, purpose) for who in NAMES for purpose in RULES}


SETTLED: dict[str, list[Step]] = {
    "the account's own no is overruled when who got it becomes an account": [
        Say("ada", "given"), Link("ada", "bob"), Say("bob", "withdrawn", ago=1), End("ada"), Link("tablet", "ada"),
    ],
    "a yes that occurred later hides one that was recorded later": [
        Say("bob", "withdrawn", ago=48), Say("tablet", "given"), Link("tablet", "bob"), Say("tablet", "given", ago=1),
    ],
    "a yes of before the link that is reported later is no answer": [
        Say("bob", "withdrawn", ago=48), Link("tablet", "bob"), Say("tablet", "given", ago=1),
    ],
    "a yes of before the link is no answer to a no that was reported later": [
        Link("tablet", "ada"), Say("ada", "given"), Link("bob", "ada"), Say("bob", "withdrawn", ago=1),
    ],
    "an account's earlier tenure is inherited by those linked to it": [
        Link("ada", "bob"), Say("ada", "given"), End("ada"), Link("tablet", "ada"),
    ],
    "a copy is held against a later yes of the identifier that said both": [
        Say("tablet", "given"), Link("tablet", "ada"), Say("tablet", "withdrawn", ago=1),
    ],
    "a copy that went to a third identifier reopens what the person had answered": [
        Link("tablet", "ada"), Say("ada", "given"), Link("laptop", "ada"), Say("tablet", "withdrawn", ago=1),
    ],
    "a copy on the account is taken for the account's word": [
        Say("laptop", "given"), Link("laptop", "ada"), Link("tablet", "ada"), Say("tablet", "withdrawn", ago=1),
    ],
    "linked again, the no is held against a yes that had answered it": [
        Link("tablet", "ada"), Say("tablet", "withdrawn"), Say("ada", "given"), End("tablet"), Link("tablet", "ada"),
    ],
    "the account that had won has not when the link ends": [
        Say("ada", "given"), Link("tablet", "ada"), Say("tablet", "withdrawn", ago=1), End("tablet"),
    ],
    "the account's own no is a conflict when the link ends": [
        Say("tablet", "given"), Link("tablet", "ada"), Say("ada", "withdrawn", ago=1), End("tablet"),
    ],
}  # fmt: skip
"""Programs that once told service and model apart."""


# -- the service ------------------------------------------------------------------------------------------------------


class Difference(AssertionError):
    """The service did not do what the rules say."""


class World:
    """A tenant with the identifiers of a program."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.base = clock.now()
        self.subjects: dict[str, dict[str, str]] = {}
        self.proofs: dict[str, dict[str, str]] = {}
        for name in NAMES:
            if name in NAMESPACE:
                self.subjects[name] = {"type": NAMESPACE[name], "id": name}
            else:
                device = tenant.device()
                self.subjects[name] = msgspec.to_builtins(device.subject)
                self.proofs[name] = {"proof": device.token}

    async def _post(self, path: str, body: Any, wanted: set[int], key: str = "service") -> dict[str, Any]:
        answer = await self.tenant.post(path, body, key)
        if answer.status_code not in wanted:
            raise Difference(f"{path} {body}: {answer.status_code}, wanted {wanted}: {answer.text}")
        return answer.json()

    async def say(self, step: Say) -> None:
        at = {"occurred_at": (self.base - timedelta(hours=step.ago)).isoformat()} if step.ago else {}
        body: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "subject": self.subjects[step.who],
            "records": [{"purpose": purpose, "status": step.status, **at} for purpose in step.purposes],
            "method": step.method,
        }
        if step.status == "given":
            body["notice"] = NOTICE
        if step.by == "device":
            body.update(self.proofs[step.who])
        await self._post("/v1/consents", body, {201}, "publishable" if step.by == "device" else "service")

    async def link(self, step: Link, *, refused: bool = False) -> str:
        """The id of the link, or nothing where it is to be refused."""
        body = {"identifier": self.subjects[step.who], "login": self.subjects[step.account], "replace": step.replace,
                **self.proofs.get(step.who, {})}  # fmt: skip
        answer = await self._post("/v1/links", body, {409} if refused else {201})
        return "" if refused else str(answer["link"])

    async def end(self, link: str, *, again: bool = False) -> None:
        await self._post(f"/v1/links/{link}/end", {}, {200, 404, 409} if again else {200})

    async def ask(self, link: str, *, again: bool = False) -> None:
        await self._post(f"/v1/links/{link}/annul", {"reason": "x"}, {200, 202, 404, 409} if again else {202}, "dpo")

    async def agree(self, link: str) -> None:
        await self._post(f"/v1/links/{link}/annul", {"reason": "x"}, {200}, "second")

    async def answers(self) -> tuple[Answers, dict[tuple[str, str], str]]:
        """And of each allow the yes that carries it."""
        asked = [(who, purpose) for who in NAMES for purpose in RULES]
        body = {"checks": [{"subject": self.subjects[who], "purpose": p, "channel": "web"} for who, p in asked]}
        found = (await self._post("/v1/checks", body, {200}))["decisions"]
        told = dict(zip(asked, found, strict=True))
        return {one: classified(told[one]) for one in asked}, {p: told[p]["record"] for p in asked if told[p]["allow"]}


def classified(answer: dict[str, Any]) -> Answer:
    if answer["allow"]:
        return "allowed"
    return "conflict_open" if answer["reason"] == "conflict_open" else "denied"


class Silenced(NamedTuple):
    """An allow that a no ended."""

    who: str
    purpose: str
    yes: str
    """What carried it."""
    no: Said
    ties: tuple[Tie, ...]
    """The links of that moment: if one of them never was, the no may never have had to do with `who`."""


class Run:
    """A program in the service and in a model at once. Without `compare` only the invariants are looked at."""

    def __init__(self, world: World, tally: Counter[str], *, compare: bool = True) -> None:
        self.world = world
        self.tally = tally
        self.oracle = Oracle()
        self.compare = compare
        self.links: dict[str, list[tuple[str, Tie]]] = {}
        """By identifier, latest first."""
        self.done: list[tuple[Say | Tie, bool]] = []
        """What took effect: records, and links that began (or, with True, ended)."""
        self.silenced: list[Silenced] = []
        self.answers: Answers = {}
        self.carriers: dict[tuple[str, str], str] = {}

    async def step(self, step: Step) -> None:
        before = self.carriers
        ending = False
        if isinstance(step, Say):
            await self._say(step)
        elif isinstance(step, Link):
            await self._link(step)
        elif isinstance(step, End):
            ending = await self._end(step)
        else:
            await self._annul(step)
        self.answers, self.carriers = await self.world.answers()
        self.tally["steps"] += 1
        if self.compare:
            self.demand_equal()
        if isinstance(step, Say) and step.status != "given":
            self._note_silenced(step, before)
        if ending:
            self._nothing_came_back(before)

    async def _say(self, step: Say) -> None:
        await self.world.say(step)
        self.oracle.say(step)
        self.done.append((step, False))

    async def _link(self, step: Link) -> None:
        old = self.oracle.tie(step.who)
        tie = self.oracle.link(step)
        link = await self.world.link(step, refused=tie is None)
        if tie is None:
            self.tally["refused"] += 1
        elif tie is old:
            if (link, tie) not in self.links[step.who]:
                raise Difference(f"it is linked already, but not by {link}")
            self.tally["linked already"] += 1
        else:
            if old:
                self.done.append((old, True))
                self.tally["replaced"] += 1
            self.links.setdefault(step.who, []).insert(0, (link, tie))
            self.done.append((tie, False))
            self.tally["linked"] += 1

    async def _end(self, step: End) -> bool:
        """Whether a link ended."""
        if step.who not in self.links:
            return False
        link, tie = self.links[step.who][0]
        held = tie.holds
        await self.world.end(link, again=not held)
        if held:
            self.done.append((tie, True))
            self.tally["ended"] += 1
        self.oracle.end(tie)
        return held

    async def _annul(self, step: Annul | Ask) -> None:
        links = self.links.get(step.who, [])
        if step.back >= len(links):
            return
        link, tie = links[step.back]
        await self.world.ask(link, again=tie.annulled)
        if isinstance(step, Ask) or tie.annulled:
            return
        await self.world.agree(link)
        self.tally["annulled later" if tie.end else "annulled"] += 1
        self.oracle.annul(tie)
        self.silenced = [one for one in self.silenced if tie not in one.ties]

    def demand_equal(self) -> None:
        wanted = self.oracle.answers()
        for (who, purpose), answer in self.answers.items():
            if answer != wanted[who, purpose]:
                raise Difference(f"{who}, {purpose}: service {answer}, rules {wanted[who, purpose]}")
            self.tally[answer] += 1

    # Invariants, in which the model has no part.

    def _note_silenced(self, step: Say, before: dict[tuple[str, str], str]) -> None:
        ties = tuple(tie for tie in self.oracle.ties if tie.holds)
        noes = {said.purpose: said for said in self.oracle.said[-len(step.purposes) :]}
        for (who, purpose), yes in before.items():
            if (who, purpose) not in self.carriers:
                self.silenced.append(Silenced(who, purpose, yes, noes[purpose], ties))
                self.tally["silenced"] += 1

    def _nothing_came_back(self, before: dict[tuple[str, str], str]) -> None:
        """No end of a link brings back an allow that a no had ended.

        Not with the same yes. With another one only if it occurred after that no: it was said since or, where the no
        was reported late, counts again for an identifier that is by itself again.
        """
        for one in self.silenced:
            place = (one.who, one.purpose)
            if place in before:
                continue
            self.tally["stayed silent"] += place not in self.carriers
            if self.carriers.get(place) == one.yes:
                raise Difference(f"the end of a link brought back what a no had ended: {place}")
            later = (s for s in self.oracle.said if s.yes and s.purpose == one.purpose and s.occurred > one.no.occurred)
            if place in self.carriers and not any(later):
                raise Difference(f"the end of a link brought back an allow that no yes explains: {place}")

    async def never_was(self, fresh: World) -> None:
        """In a new tenant, without the annulled links, the same comes out."""
        links: dict[Tie, str] = {}
        for what, ended in self.done:
            if isinstance(what, Say):
                await fresh.say(what)
            elif what.annulled:
                continue
            elif ended:
                await fresh.end(links[what])
            else:
                links[what] = await fresh.link(Link(what.who, what.account))
        found, _ = await fresh.answers()
        for (who, purpose), answer in self.answers.items():
            if answer != found[who, purpose]:
                never = found[who, purpose]
                raise Difference(f"{who}, {purpose}: {answer} after annulling, {never} where the link never was")
        self.tally["replayed"] += 1


async def run(make_tenant: Tenants, program: list[Step], tally: Counter[str], *, compare: bool = True) -> None:
    """Every step, compared; then without what was annulled, compared again."""
    here = Run(World(await make_tenant.make(POLICY, KEYS)), tally, compare=compare)
    for step in program:
        await here.step(step)
    if any(tie.annulled for tie in here.oracle.ties):
        await here.never_was(World(await make_tenant.make(POLICY, KEYS)))
    tally["programs"] += 1


async def search(make_tenant: Tenants, numbers: Iterable[int], tally: Counter[str]) -> None:
    """Run programs; the first that finds a difference is told in its shortest form."""
    for number in numbers:
        program = numbered(number)
        try:
            await run(make_tenant, program, tally)
        except Difference as difference:
            program, difference = await shortest(make_tenant, program, difference)
            raise Difference("\n    ".join([f"program {number}", *map(shown, program), str(difference)])) from None


async def shortest(make_tenant: Tenants, program: list[Step], difference: Difference) -> tuple[list[Step], Difference]:
    """A program that differs and of which nothing can be left out."""
    tried: set[tuple[Step, ...]] = set()
    again = True
    while again:
        again = False
        for shorter in simpler(program):
            if tuple(shorter) in tried:
                continue
            tried.add(tuple(shorter))
            try:
                await run(make_tenant, shorter, Counter())
            except Difference as other:
                program, difference, again = shorter, other, True
                break
    return program, difference


KEYS = {
    name: auth.Credential(0, name, kind, name, scopes, frozenset(), None)
    for name, (kind, scopes) in (*demo.KEYS.items(), ("second", demo.KEYS["dpo"]))
}
PARTS, PROGRAMS = 2, 25
"""The default run: so many tests of so many programs."""
REACHED = (
    "allowed", "denied", "conflict_open", "linked", "linked already", "refused", "replaced", "ended", "annulled",
    "annulled later", "replayed", "silenced", "stayed silent",
)  # fmt: skip


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(PARTS))
async def test_the_service_says_what_the_rules_say(make_tenant: Tenants, part: int) -> None:
    tally: Counter[str] = Counter()
    await search(make_tenant, range(part * PROGRAMS, (part + 1) * PROGRAMS), tally)
    assert [what for what in REACHED if tally[what] < 3] == [], "hardly happened"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS, 21 * PARTS))
async def test_the_service_says_what_the_rules_say_at_length(make_tenant: Tenants, part: int) -> None:
    await search(make_tenant, range(part * PROGRAMS, (part + 1) * PROGRAMS), Counter())


@settings(max_examples=PROGRAMS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
async def test_the_service_says_what_the_rules_say_of_drawn_programs(make_tenant, chance):
    await run_drawn(make_tenant, chance)


@pytest.mark.slow
@settings(max_examples=20 * PROGRAMS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
async def test_the_service_says_what_the_rules_say_of_many_drawn_programs(make_tenant, chance):
    await run_drawn(make_tenant, chance)


async def run_drawn(make_tenant: Tenants, chance: random.Random) -> None:
    program = Draw(chance).program()
    note("\n".join(map(shown, program)))
    await run(make_tenant, program, Counter())


async def at_the_end(make_tenant: Tenants, program: list[Step]) -> None:
    here = Run(World(await make_tenant.make(POLICY, KEYS)), Counter(), compare=False)
    for step in program:
        await here.step(step)
    here.demand_equal()


@pytest.mark.parametrize("program", SETTLED.values(), ids=SETTLED)
async def test_corners(make_tenant: Tenants, program: list[Step]) -> None:
    await at_the_end(make_tenant, program)


async def test_a_copy_that_ended_an_allow_still_ends_it_when_the_link_does(make_tenant: Tenants) -> None:
    program = [*SETTLED["a copy is held against a later yes of the identifier that said both"], End("tablet")]
    await run(make_tenant, program, Counter(), compare=False)


# -- the tests of the tests: a service with something wrong in it must be found ---------------------------------------


class Wrong(NamedTuple):
    """Something to break."""

    where: Any
    name: str
    by: Any
    compare: bool = True
    """Whether the model may help; else an invariant has to find it."""


def _nothing(*_: Any) -> tuple[Any, ...]:
    return ()


def _none(*_: Any) -> None:
    return None


def _true(*_: Any) -> bool:
    return True


WRONG = {
    "a no is not carried": Wrong(batch, "_carried", _nothing),
    "a no is not carried, by the invariant": Wrong(batch, "_carried", _nothing, compare=False),
    "the end of a link leaves nothing": Wrong(write, "_END_LINK", write._ANNUL_LINK),
    "an annulled link has only ended": Wrong(write, "_ANNUL_LINK", write._END_LINK),
    "an annulled link has only ended, by the invariant": Wrong(write, "_ANNUL_LINK", write._END_LINK, compare=False),
    "earlier tenures are inherited": Wrong(tenures, "_counts", _true),
    "things keep what was said of them": Wrong(POLICY.tenant, "shared", ()),
    "conflicts are not seen": Wrong(_Question, "_conflict", _none),
}


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in WRONG.items()])
async def test_what_is_wrong_is_found(make_tenant: Tenants, monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    if wrong.where is POLICY.tenant:
        tenant = msgspec.structs.replace(POLICY.tenant, **{wrong.name: wrong.by})
        monkeypatch.setitem(globals(), "POLICY", msgspec.structs.replace(POLICY, tenant=tenant))
    else:
        monkeypatch.setattr(wrong.where, wrong.name, wrong.by)
    for number in range(PARTS * PROGRAMS):
        try:
            await run(make_tenant, numbered(number), Counter(), compare=wrong.compare)
        except Difference:
            return
    pytest.fail("nothing was found")
