"""What an erasure must leave to others: whoever is erased, nobody else's decisions change for the worse.

A no of somebody else never becomes a yes; where identifiers were passed on, neither does a yes become a no.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import test_links_oracle as model
from conftest import NOTICE, Tenant, Tenants
from test_decisions import patched
from test_erasures import MAIL, OFF, WEB, Slow, _erase, annul, end, erase, history, link, named, owner, reason, stored
from test_links import PROFILE, guardian_of, school

from consent_service import clock, db, erasures, tenants
from consent_service.errors import Unavailable
from consent_service.ledger.anchor import FileAnchor
from consent_service.policies import store
from consent_service.subjects import Subject

__all__ = ["owner", "school"]  # fixtures

NO = {"purpose": "analytics", "status": "refused"}
DRONE = {"purpose": "telemetry.drone", "status": "given"}
ONBOARDING = {"id": "drone-onboarding", "version": 1, "language": "en"}


def ago(hours: float) -> str:
    return (clock.now() - timedelta(hours=hours)).isoformat()


Asked = tuple[dict[str, str], str]
Scene = Callable[[Tenant], Awaitable[tuple[dict[str, str], Asked, str]]]
"""Sets up: whom to erase, whose decision on which purpose must stay, and what it is."""


async def _group(tenant: Tenant, identifier: dict[str, str], home: dict[str, str]) -> None:
    answer = await tenant.post("/v1/links", {"identifier": identifier, "group": home})
    assert answer.status_code == 201, answer.text


async def next_holders_household(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    phone, ada, bob, home = named("phone"), named("login"), named("login"), named("household")
    await tenant.record(NO, subject=home)
    await tenant.record(WEB, subject=ada)
    await end(tenant, await link(tenant, phone, ada))
    await link(tenant, phone, bob)
    await _group(tenant, phone, home)
    await tenant.record(WEB, subject=bob)
    return ada, (bob, "analytics"), "refused"


async def household_itself(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    home, ada = named("household"), named("login")
    await tenant.record(NO, subject=home)
    await tenant.record(WEB, subject=ada)
    await _group(tenant, ada, home)
    return home, (ada, "analytics"), "refused"


async def ended_guardians_link(school: Tenant) -> tuple[dict[str, str], Asked, str]:
    child, ada = named("login"), named("login")
    await end(school, await link(school, child, ada))
    await school.record(PROFILE, subject=child)
    await guardian_of(school, child)
    return ada, (child, "profiling"), "guardian_missing"


async def guardian(school: Tenant) -> tuple[dict[str, str], Asked, str]:
    child = named("login")
    await school.record(PROFILE, subject=child)
    parent, _ = await guardian_of(school, child)
    return parent, (child, "profiling"), "guardian_missing"


async def carried_no(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    """It came from another identifier, so that a yes of later does not answer it."""
    former, ada = named("login"), named("login")
    await tenant.record({**WEB, "occurred_at": ago(1)}, subject=former)
    made = await link(tenant, former, ada)
    await tenant.record({**OFF, "occurred_at": ago(2)}, subject=ada)
    await end(tenant, made)
    await tenant.record({**WEB, "occurred_at": ago(1)}, subject=former)
    return ada, (former, "analytics"), "conflict_open"


async def no_of_another_origin(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    ada, bob, card = named("login"), named("login"), named("loyalty")
    await end(tenant, await link(tenant, ada, bob))
    made = await link(tenant, card, ada)
    await tenant.record({**OFF, "occurred_at": ago(24)}, subject=card)
    await end(tenant, made)
    await tenant.record({**WEB, "occurred_at": ago(1)}, subject=ada)
    return bob, (ada, "analytics"), "conflict_open"


async def strangers_yes_on_a_thing(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    drone, ada = named("asset"), named("login")
    await tenant.record(DRONE, subject=drone, notice=ONBOARDING)
    await end(tenant, await link(tenant, drone, ada, evidence={"rental": 1}))
    return ada, (drone, "telemetry.drone"), "no_record"


async def earlier_holders_yes(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    card, ada, bob = named("loyalty"), named("login"), named("login")
    made = await link(tenant, card, bob)
    await tenant.record(WEB, subject=card)
    await end(tenant, made)
    made = await link(tenant, card, ada)
    await tenant.record(OFF, subject=card)
    await end(tenant, made)
    return ada, (card, "analytics"), "withdrawn"


async def own_objection_of_a_former_member(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    former, ada = named("login"), named("login")
    await tenant.record({"purpose": "fraud.prevention", "status": "objected"}, subject=former)
    await end(tenant, await link(tenant, former, ada))
    return ada, (former, "fraud.prevention"), "objected"


async def own_yes_of_a_former_member(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    former, ada = named("login"), named("login")
    await tenant.record(WEB, subject=former)
    await end(tenant, await link(tenant, former, ada))
    await tenant.record({"purpose": "comfort.preferences", "status": "given", "channel": "web"}, subject=former)
    return ada, (former, "analytics"), "consent"


async def advertising_to_who_has_the_number_now(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    phone, ada, bob = named("phone"), named("login"), named("login")
    await tenant.record(WEB, subject=ada)
    await end(tenant, await link(tenant, phone, ada))
    await link(tenant, phone, bob)
    await tenant.record(MAIL, subject=bob)
    return ada, (bob, "marketing.email"), "consent"


async def advertising_to_a_former_member(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    ada, former = named("login"), named("login")
    await end(tenant, await link(tenant, former, ada))
    await tenant.record(MAIL, subject=former)
    return ada, (former, "marketing.email"), "consent"


async def advertising_to_a_shared_address(tenant: Tenant) -> tuple[dict[str, str], Asked, str]:
    ada, bob, mail = named("login"), named("login"), {"type": "email", "id": f"{uuid.uuid4().hex}@shop.example"}
    await link(tenant, mail, bob)
    await tenant.record(MAIL, subject=bob)
    await tenant.record({**MAIL, "contact": mail["id"]}, subject=ada)
    return ada, (bob, "marketing.email"), "consent"


SCENES: tuple[Scene, ...] = (
    next_holders_household, household_itself, carried_no, no_of_another_origin, strangers_yes_on_a_thing,
    earlier_holders_yes, own_objection_of_a_former_member, own_yes_of_a_former_member,
    advertising_to_who_has_the_number_now, advertising_to_a_former_member, advertising_to_a_shared_address,
)  # fmt: skip


async def _holds(tenant: Tenant, scene: Scene) -> None:
    whom, (whose, purpose), told = await scene(tenant)
    channel = {} if purpose.startswith(("marketing", "telemetry")) else {"channel": "web"}
    assert await reason(tenant, whose, purpose, **channel) == told
    assert (await erase(tenant, whom))["erasure"] is not None
    assert await reason(tenant, whose, purpose, **channel) == told


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_it_stays(tenant: Tenant, scene: Scene) -> None:
    await _holds(tenant, scene)


@pytest.mark.parametrize("scene", [ended_guardians_link, guardian], ids=lambda scene: scene.__name__)
async def test_a_child_stays_one(school: Tenant, scene: Scene) -> None:
    await _holds(school, scene)


# -- any order of things ----------------------------------------------------------------------------------------------

PURPOSES = (*model.RULES, "basis")
POLICY = patched({
    "purposes": {
        **{rule: {"like": "analytics", "conflict": rule, "channels": ["web"], "evidence": "imported",
                  "terminal_access": "none"} for rule in model.RULES},
        "basis": {"like": "fraud.prevention", "channels": ["web"], "terminal_access": "none"},
    }
})  # fmt: skip


class Draw(model.Draw):
    """Programs that speak of what rests on another basis too: there a no that is gone is a yes."""

    def say(self, names: Any) -> Any:
        said = super().say(names)
        return said._replace(purposes=PURPOSES) if said.method != "import" and self.chance.random() < 0.5 else said


async def _answers(world: model.World) -> dict[tuple[str, str], bool]:
    asked = [(who, purpose) for who in model.NAMES for purpose in PURPOSES]
    checks = [{"subject": world.subjects[who], "purpose": purpose, "channel": "web"} for who, purpose in asked]
    found = (await world.tenant.post("/v1/checks", {"checks": checks})).json()["decisions"]
    return {ask: answer["allow"] for ask, answer in zip(asked, found, strict=True)}


async def _erased(make_tenant: Tenants, seed: int) -> None:
    chance = random.Random(seed)
    program = Draw(chance).program()
    victim = chance.choice(sorted({step.who for step in program}))
    world = model.World(await make_tenant.make(POLICY, model.KEYS))
    run = model.Run(world, Counter(), compare=False)
    for step in program:
        await run.step(step)
    _, person = run.oracle.person(victim)
    before = await _answers(world)
    await erase(world.tenant, world.subjects[victim])
    after = await _answers(world)
    flipped = [ask for ask in before if ask[0] not in person and after[ask] and not before[ask]]
    assert not flipped, (seed, victim, flipped, [model.shown(step) for step in program])


async def test_no_no_of_anybody_else_becomes_a_yes(make_tenant: Tenants) -> None:
    for seed in range(25):
        await _erased(make_tenant, seed)


@pytest.mark.slow
async def test_no_no_of_anybody_else_becomes_a_yes_in_a_thousand_programs(make_tenant: Tenants) -> None:
    for seed in range(1_000, 2_000):
        await _erased(make_tenant, seed)


# -- orders and answers -----------------------------------------------------------------------------------------------


async def test_an_order_that_came_to_nothing_hits_nobody_later(
    tenant: Tenant, tmp_path: Path, owner: asyncpg.Connection[Any]
) -> None:
    """While it is noted, a link turns out false: the phone is not hers, and must outlive the next start."""
    phone, ada = named("phone"), named("login")
    anchor, links = Slow(tmp_path / "anchor"), []
    for one in (ada, phone):
        await tenant.record(WEB, subject=one)
    links.append(await link(tenant, phone, ada))

    async def turns_out_false() -> None:
        if links:
            await annul(tenant, owner, links.pop())

    anchor.meanwhile = turns_out_false
    assert [one["type"] for one in (await _erase(tenant, anchor, ada))["identifiers"]] == ["login"]
    await erasures.catch_up(tenant.services.ledgers, anchor)
    assert await reason(tenant, phone, "analytics", channel="web") == "consent"
    assert len(await history(tenant, phone)) > 0


async def test_an_order_of_which_nobody_knows_how_it_ended_is_not_carried_out_once_it_does_not_fit(
    tenant: Tenant, tmp_path: Path, owner: asyncpg.Connection[Any]
) -> None:
    """The process died between noting it and carrying it out."""
    phone, ada = named("phone"), named("login")
    anchor = Slow(tmp_path / "anchor")
    for one in (ada, phone):
        await tenant.record(WEB, subject=one)
    made = await link(tenant, phone, ada)

    async def dies() -> None:
        raise Unavailable("died")

    anchor.meanwhile = dies
    with pytest.raises(Unavailable):
        await _erase(tenant, anchor, ada)
    await annul(tenant, owner, made)
    await erasures.catch_up(tenant.services.ledgers, anchor)
    for one in (ada, phone):
        assert await reason(tenant, one, "analytics", channel="web") == "consent"


async def test_whoever_orders_is_told_of_it_where_another_start_was_quicker(tenant: Tenant, tmp_path: Path) -> None:
    person, anchor = named("login"), Slow(tmp_path / "anchor")

    async def starts() -> None:
        await erasures.catch_up(tenant.services.ledgers, anchor)

    anchor.meanwhile = starts
    await tenant.record(WEB, subject=person)
    done = await _erase(tenant, anchor, person)
    assert (done["erasure"] is not None, done["events"]) == (True, 1)


async def test_of_an_account_that_became_a_member_nothing_is_left(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    phone, ada, bob = named("phone"), named("login"), named("login")
    made = await link(tenant, phone, bob)
    told = (await tenant.record(OFF, subject=bob)).json()
    await end(tenant, made)
    await link(tenant, bob, ada)
    await erase(tenant, ada)
    whose = tenant.services.ledgers.of(tenant.log_id).hasher.identifier(Subject(**bob)).hex()
    for table in ("link", "consent_state", "event", "strand"):
        left = "\n".join(row for row in (await stored(tenant, owner, table)).split("\n") if "suppressed" not in row)
        assert whose not in left, table
        assert told["event"] not in left, table


async def test_the_answer_to_a_first_act_minds_an_erasure(tenant: Tenant) -> None:
    person = named("login")
    await tenant.record(MAIL, subject=person)
    await erase(tenant, person)
    said = ({**MAIL, "occurred_at": ago(5)}, {"purpose": "marketing.email", "status": "refused"})
    for record in said:
        (state,) = (await tenant.record(record, subject=person)).json()["states"]
        found = await tenant.check(person, "marketing.email")
        assert (state["allow"], state["reason"]) == (found["allow"], found["reason"])


async def test_a_retry_after_an_erasure_is_told_so_whatever_the_policy_says_by_now(make_tenant: Tenants) -> None:
    before = patched({"purposes": {"extra": {"like": "analytics", "channels": ["web"]}}})
    after = patched({"purposes": {"extra": {"like": "analytics", "channels": ["web", "app"]}}})
    tenant, person = await make_tenant.make(before, model.KEYS), named("login")
    records = [OFF, {"purpose": "extra", "status": "given"}]
    body = {"id": "one", "subject": person, "records": records, "method": "form", "notice": NOTICE}
    assert (await tenant.post("/v1/consents", body)).status_code == 201
    await erase(tenant, person)
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), after)
    await tenant.record(WEB, subject=named("login"))
    assert (await tenant.post("/v1/consents", body)).status_code == 410
    assert await history(tenant, person) == []


async def test_the_journal_keeps_what_some_readable_copy_may_have_to_be_told(
    tenant: Tenant, tmp_path: Path, owner: asyncpg.Connection[Any]
) -> None:
    person, ledger = named("login"), tenant.services.ledgers.of(tenant.log_id)
    anchor = FileAnchor(tmp_path / "anchor")
    await tenant.record(WEB, subject=person)
    await _erase(tenant, anchor, person)
    place = await owner.fetchval("SELECT idx FROM erasure WHERE log_id = $1", tenant.log_id)
    assert await erasures.prune_journal(ledger, anchor, place) == 0, "keys were wrapped anew before it was erased"
    await owner.execute("DELETE FROM erasure WHERE log_id = $1", tenant.log_id)
    assert await erasures.prune_journal(ledger, anchor, place + 1) == 0, "a restored copy does not know of it"
    await erasures.catch_up(tenant.services.ledgers, anchor)
    place = await owner.fetchval("SELECT idx FROM erasure WHERE log_id = $1", tenant.log_id)
    assert await erasures.prune_journal(ledger, anchor, place + 1) == 1
    assert await anchor.erasures(tenant.slug) == []
