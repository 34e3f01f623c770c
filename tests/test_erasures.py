"""Erasing people: what goes, what stays, and what must not come back."""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from conftest import NOTICE, Tenant

from consent_service import clock, erasures
from consent_service.auth import Credential
from consent_service.erasures import EraseBody, Eraser
from consent_service.errors import Unavailable
from consent_service.ledger import audit, receipt, tree
from consent_service.ledger.anchor import FileAnchor
from consent_service.ledger.entry import ErasureMade, ExportMade, read_system
from consent_service.ledger.head import read_head
from consent_service.ledger.trust import Trust, trusting
from consent_service.subjects import Subject

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
MAIL = {"purpose": "marketing.email", "status": "given", "channel": "email", "contact": "Ada@shop.example"}
CALLS = {"purpose": "marketing.phone", "status": "given", "channel": "phone", "contact": "+49 170 1234567"}


SCRIPT: dict[str, Any] = {
    "notice": {"id": "phone-script", "version": 1, "language": "en"}, "method": "phone_script",
}  # fmt: skip
"""What a consent by telephone rests on."""


def named(kind: str) -> dict[str, str]:
    return {"type": kind, "id": uuid.uuid4().hex}


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def erase(tenant: Tenant, subject: dict[str, str], **more: Any) -> dict[str, Any]:
    answer = await tenant.post("/v1/subjects/erase", {"subject": subject, **more}, key="dpo")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def link(tenant: Tenant, identifier: dict[str, str], login: dict[str, str], **more: Any) -> str:
    answer = await tenant.post("/v1/links", {"identifier": identifier, "login": login["id"], **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["link"])


async def history(tenant: Tenant, subject: dict[str, str]) -> list[Any]:
    return list((await tenant.post("/v1/subjects/history", {"subject": subject}, key="dpo")).json()["events"])


async def reason(tenant: Tenant, subject: dict[str, str], purpose: str, **more: Any) -> str:
    return str((await tenant.check(subject, purpose, **more))["reason"])


async def stored(tenant: Tenant, owner: asyncpg.Connection[Any], table: str) -> str:
    rows = await owner.fetch(f"SELECT t::text AS row FROM {table} t WHERE log_id = $1", tenant.log_id)
    return "\n".join(row["row"] for row in rows)


async def entries(tenant: Tenant) -> list[bytes]:
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection:
        rows = await connection.fetch("SELECT entry FROM ledger_entry ORDER BY idx")
        head = await connection.fetchrow("SELECT size, frontier FROM ledger_head")
    found = [row["entry"] for row in rows]
    grown = tree.Frontier().grown([tree.leaf_hash(one) for one in found])
    assert (grown.frontier.size, grown.frontier.write()) == (head["size"], head["frontier"]), "the ledger is whole"
    return found


async def test_a_person_goes_with_everything_that_belongs_to_the_account(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    login, card, device = named("login"), named("loyalty"), tenant.device()
    seen = {"type": "device", "id": device.subject.id}
    answer = await tenant.record(WEB, subject=seen, proof=device.token)
    assert answer.status_code == 201, answer.text
    for subject in (login, card):
        await tenant.record(WEB, MAIL, subject=subject)
    await link(tenant, card, login)
    await link(tenant, seen, login, proof=device.token)
    stranger = named("login")
    await tenant.record(WEB, MAIL, subject=stranger)
    before, told = await entries(tenant), await erase(tenant, card, dry_run=True)
    assert await entries(tenant) == before, "a dry run leaves no trace"
    assert told["erasure"] is None
    assert {tuple(one.values()) for one in told["identifiers"]} == {
        tuple(one.values()) for one in (login, card, seen)
    }  # fmt: skip
    assert (told["strands"] >= 3, told["events"], told["links"], told["held"]) == (True, 7, 2, 0)

    done = await erase(tenant, card)
    same = ("identifiers", "strands", "events", "links", "held", "held_until")
    assert {name: done[name] for name in same} == {name: told[name] for name in same}
    assert (await entries(tenant))[:-1] == before
    for subject in (login, card, seen):
        assert await history(tenant, subject) == []
        assert await reason(tenant, subject, "analytics", channel="web") == "no_record"
        told = await reason(tenant, subject, "marketing.email")
        assert told == ("no_record" if subject is seen else "suppressed"), "devices get no advertising"
    for table in ("event", "strand", "contact", "link", "consent_state"):
        mine = [
            row
            for row in (await stored(tenant, owner, table)).split("\n")
            if row and "suppressed" not in row and ",read," not in row and ":officer" not in row
        ]
        assert len(mine) == {"event": 1, "strand": 1, "contact": 1, "link": 0, "consent_state": 2}[table], table
    assert await reason(tenant, stranger, "marketing.email") == "consent", "nobody else is touched"
    again = await erase(tenant, login)
    assert (again["erasure"], again["events"], again["identifiers"]) == (None, 0, [])


async def test_the_ledger_says_how_many_entries_went_and_the_list_which(tenant: Tenant) -> None:
    person = named("login")
    places = [int((await tenant.record(WEB, subject=person)).json()["rev"].partition(".")[2]) - 1 for _ in range(3)]
    await tenant.record(WEB, subject=named("login"))
    done = await erase(tenant, person)
    made = read_system((await entries(tenant))[-1])
    assert isinstance(made, ErasureMade)
    assert (str(made.erasure), made.events, made.held, made.reason) == (done["erasure"], 3, 0, "request")
    ledger = tenant.services.ledgers.of(tenant.log_id)
    assert made.by == ledger.hasher.once("credential", "dpo").hex()
    async with ledger.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM erasure WHERE erasure = $1", made.erasure)
        listed = [r["idx"] for r in await connection.fetch("SELECT idx FROM erased ORDER BY idx")]
    assert row is not None
    assert listed == places
    assert row["idx"] == len(await entries(tenant)) - 1
    assert hashlib.sha256(row["salt"] + b"".join(n.to_bytes(8, "big") for n in listed)).hexdigest() == made.sha256
    assert done["rev"] == f"1.{row['idx'] + 1}"


async def test_receipts_handed_out_before_stay_good(tenant: Tenant) -> None:
    person = named("login")
    told = (await tenant.record(WEB, subject=person)).json()["receipt"]
    await erase(tenant, person)
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        log = await ledger.log(connection, await read_head(connection, tenant.log_id))
    proved = receipt.verify(told, Trust.parse(trusting(str(one) for one in log.verifiers)))
    assert person["id"].encode() in proved.payload


async def fetched(tenant: Tenant, **wanted: Any) -> bytes:
    """The file of an export."""
    made = await tenant.post("/v1/exports", wanted, key="dpo")
    assert made.status_code == 201, made.text
    file = await tenant.http.get(made.json()["file"], headers={"Authorization": f"Bearer {tenant.keys['dpo']}"})
    assert file.status_code == 200, file.text
    return file.content


async def test_exports_of_before_and_after_are_genuine_and_those_after_hold_nothing(tenant: Tenant) -> None:
    person, other = named("login"), named("login")
    word = f"said-{uuid.uuid4().hex}"
    await tenant.record(WEB, subject=person, evidence={"said": word})
    await tenant.record(CALLS, subject=person, **SCRIPT)
    await tenant.record(WEB, subject=other)
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        log = await ledger.log(connection, await read_head(connection, tenant.log_id))
    trust = Trust.parse(trusting(str(one) for one in log.verifiers))
    before, mine = await fetched(tenant), await tenant.post("/v1/exports", {"subject": person}, key="dpo")
    await erase(tenant, person)
    after = await fetched(tenant)
    for file in (before, after):
        found = audit.verify(io.BytesIO(file), trust)
        assert (found.genuine, found.problems) == (True, []), found.problems
    assert found.manifest is not None
    assert found.manifest.counts.erased == 2
    events = {"before": member(before, "events.ndjson"), "after": member(after, "events.ndjson")}
    for secret in (person["id"], word):
        assert secret.encode() in events["before"], "control"
        assert secret.encode() not in events["after"]
    assert other["id"].encode() in events["after"]
    gone = await tenant.http.get(mine.json()["file"], headers={"Authorization": f"Bearer {tenant.keys['dpo']}"})
    assert gone.status_code == 404, "what was ordered of the person went too"


def member(file: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(file)) as opened:
        return opened.read(name)


async def test_a_late_retry_is_told_that_it_was_erased_and_a_new_act_begins_anew(tenant: Tenant) -> None:
    person, key = named("login"), uuid.uuid4().hex
    body = {"id": key, "subject": person, "records": [WEB], "method": "form", "notice": NOTICE}
    assert (await tenant.post("/v1/consents", body)).status_code == 201
    await erase(tenant, person)
    for sent in (body, {**body, "method": "banner_button"}):
        gone = await tenant.post("/v1/consents", sent)
        assert (gone.status_code, gone.json()["type"]) == (410, "/problems/erased")
    assert await history(tenant, person) == []
    assert (await tenant.post("/v1/consents", {**body, "id": uuid.uuid4().hex})).status_code == 201
    assert [event["sequence"] for event in await history(tenant, person)] == [1]
    assert await reason(tenant, person, "analytics", channel="web") == "consent"
    assert (await erase(tenant, person))["events"] == 2, "and may be erased again, with who looked meanwhile"


async def test_advertising_stays_off_until_a_fresh_opt_in_that_no_import_is(tenant: Tenant) -> None:
    person, mail = named("login"), {"purpose": "marketing.email", "status": "given", "channel": "email"}
    await tenant.record(mail, subject=person)
    done = await erase(tenant, person)
    until = msgspec.convert(done["suppressed_until"], type=type(clock.now()))
    assert timedelta(days=5 * 365) <= until - clock.now() <= timedelta(days=5 * 366 + 1)
    listed = await tenant.record(mail, subject=person, method="import")
    assert listed.status_code == 201, listed.text
    assert (listed.json()["effective"], listed.json()["states"][0]["reason"]) == (False, "suppressed")
    assert await reason(tenant, person, "marketing.email") == "suppressed"
    assert await reason(tenant, person, "marketing.push") == "suppressed"
    assert await reason(tenant, person, "repair.call", channel="phone") == "no_basis_fact", "it is no advertising"
    before = (clock.now() - timedelta(days=1)).isoformat()
    late = await tenant.record({**mail, "status": "confirmed", "occurred_at": before}, subject=person)
    assert (late.status_code, late.json()["effective"]) == (201, False), "what was said before is nothing fresh"
    fresh = await tenant.record(mail, subject=person)
    assert fresh.json()["effective"]
    assert await reason(tenant, person, "marketing.email") == "consent"
    assert await reason(tenant, person, "marketing.push") == "suppressed", "one purpose at a time"
    await tenant.record({**mail, "status": "withdrawn"}, subject=person)
    assert await reason(tenant, person, "marketing.email") == "withdrawn"


async def test_an_address_of_the_person_is_suppressed_under_its_own_name(tenant: Tenant) -> None:
    person = named("login")
    await tenant.record(MAIL, subject=person)
    await erase(tenant, person)
    for listed in ("ada@shop.example",):
        subject = {"type": "email", "id": listed}
        answer = await tenant.record({**MAIL, "contact": listed}, subject=subject, method="import")
        assert answer.json()["states"][0]["reason"] == "suppressed"


async def test_what_a_law_wants_proved_is_kept_under_lock_until_its_day(
    tenant: Tenant,
) -> None:
    person = named("login")
    told = (await tenant.record(CALLS, subject=person, **SCRIPT)).json()
    await tenant.record({"purpose": "marketing.phone", "status": "withdrawn"}, subject=person)
    await tenant.record(WEB, subject=person)
    done = await erase(tenant, person)
    assert (done["events"], done["held"]) == (3, 1)
    until = msgspec.convert(done["held_until"], type=type(clock.now()))
    assert timedelta(days=5 * 365) <= until - clock.now() <= timedelta(days=5 * 366 + 1)
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT * FROM hold")
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE consent_erase")
            row = await connection.fetchrow("SELECT * FROM hold")
    assert row is not None
    key = ledger.vault.open(erasures.hold_place(ledger, row["idx"]), row["key"])
    opening = msgspec.json.decode(key.open(row["event"].bytes, row["opening"]), type=receipt.Opening)
    assert opening.entry == (await entries(tenant))[row["idx"]]
    assert msgspec.json.decode(opening.payload)["event"] == told["event"]


async def test_a_thing_that_changes_hands_keeps_what_others_said_about_it(tenant: Tenant) -> None:
    drone, ada, bob = named("asset"), named("login"), named("login")
    telemetry = {"purpose": "telemetry.drone", "status": "given", "channel": "device"}
    onboarding = {"id": "drone-onboarding", "version": 1, "language": "en"}
    first = await link(tenant, drone, ada, evidence={"rental": 1})
    await tenant.record(telemetry, subject=drone, notice=onboarding)
    assert (await tenant.post(f"/v1/links/{first}/end", {})).status_code == 200
    await link(tenant, drone, bob, evidence={"rental": 2})
    await tenant.record(telemetry, subject=drone, notice=onboarding)
    assert await reason(tenant, drone, "telemetry.drone") == "consent"
    done = await erase(tenant, ada)
    assert {one["type"] for one in done["identifiers"]} == {"login", "asset"}
    assert await reason(tenant, drone, "telemetry.drone") == "consent", "it is Bob's now"
    assert len(await history(tenant, drone)) > 0
    other = await erase(tenant, drone)
    assert {one["id"] for one in other["identifiers"]} == {drone["id"], bob["id"]}
    assert await reason(tenant, drone, "telemetry.drone") == "no_record"


async def test_a_no_that_was_carried_elsewhere_holds_on_and_forgets_whose_it_was(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    phone, ada = named("loyalty"), named("login")
    await tenant.record(WEB, subject=phone)
    first = await link(tenant, phone, ada)
    await tenant.record({"purpose": "analytics", "status": "withdrawn"}, subject=ada)
    await tenant.post(f"/v1/links/{first}/end", {})
    assert await reason(tenant, phone, "analytics", channel="web") == "withdrawn"
    ledger = tenant.services.ledgers.of(tenant.log_id)
    whose = ledger.hasher.identifier(Subject(**ada))
    await erase(tenant, ada)
    for table in ("consent_state", "link", "strand", "event", "idempotency", "conflict"):
        left = [row for row in (await stored(tenant, owner, table)).split("\n") if "suppressed" not in row]
        assert whose.hex() not in "\n".join(left), table


async def test_groups_and_guardians_lose_the_tie_and_nothing_of_their_own(tenant: Tenant) -> None:
    home, ada, kim = named("household"), named("login"), named("login")
    await tenant.record({"purpose": "analytics", "status": "refused"}, subject=home)
    assert len(await history(tenant, home)) == 1
    await tenant.post("/v1/links", {"identifier": ada, "group": home})
    body = {"identifier": kim, "guardian": ada, "age_out": f"{clock.now().year + 5}-01-01", "evidence": {"seen": 1}}
    answer = await tenant.post("/v1/links", body)
    assert answer.status_code == 201, answer.text
    assert (await erase(tenant, ada))["links"] == 2
    assert len(await history(tenant, home)) == 1
    assert await reason(tenant, home, "analytics", channel="web") == "refused"
    assert await reason(tenant, ada, "analytics", channel="web") == "no_record"
    (left,) = (await tenant.post("/v1/subjects/links", {"subject": kim}, key="dpo")).json()["links"]
    assert (left["kind"], left["anchor"]) == ("guardian", None), "a child is one still, and nobody knows whose"
    ended = await tenant.post(f"/v1/links/{left['link']}/end", {})
    assert (ended.status_code, ended.json()["anchor"]) == (200, None)


async def test_only_an_approver_may_erase(tenant: Tenant) -> None:
    person = named("login")
    await tenant.record(WEB, subject=person)
    for key in ("service", "publishable"):
        assert (await tenant.post("/v1/subjects/erase", {"subject": person}, key=key)).status_code == 403
    assert len(await history(tenant, person)) == 1


async def test_a_writer_that_read_before_the_erasure_writes_nothing_of_it(tenant: Tenant) -> None:
    """Both hold the head, one after the other: whoever comes second sees what the first did."""
    person = named("login")
    for _ in range(5):
        await tenant.record(WEB, subject=person)
        answers = await asyncio.gather(
            *(tenant.record(WEB, subject=person) for _ in range(8)),
            tenant.post("/v1/subjects/erase", {"subject": person}, key="dpo"),
            *(tenant.record(WEB, subject=person) for _ in range(8)),
        )
        assert {answer.status_code for answer in answers} <= {200, 201}
        found = await history(tenant, person)
        assert [event["sequence"] for event in found] == list(range(1, len(found) + 1))
        await entries(tenant)


async def test_a_restored_database_erases_once_more_what_was_erased_since(
    tenant: Tenant, tmp_path: Path, owner: asyncpg.Connection[Any]
) -> None:
    person, ledger = named("login"), tenant.services.ledgers.of(tenant.log_id)
    anchor = FileAnchor(tmp_path / "anchor")
    await tenant.record(CALLS, subject=person, **SCRIPT)
    tables = ("strand", "event", "contact", "consent_state", "idempotency")
    kept = {
        table: await owner.fetch(f"SELECT to_jsonb(t)::text AS row FROM {table} t WHERE log_id = $1", tenant.log_id)
        for table in tables
    }
    eraser = Eraser(tenant.services.ledgers, anchor)
    body = msgspec.json.encode(EraseBody(Subject(**person)))
    dpo = Credential(tenant.log_id, "dpo", "officer", "dpo", frozenset({"requests:approve"}), frozenset(), None)
    assert msgspec.json.decode(await eraser.erase(body, dpo))["events"] == 1
    assert person["id"].encode() not in b"\n".join(await anchor.erasures(tenant.slug))
    async with ledger.connection() as connection:
        orders, strange = await erasures.read_journal(connection, ledger, anchor)
        assert (len(orders), strange) == (1, 0)
        assert await erasures.repeat(connection, ledger, orders) == 0
    await owner.execute("DELETE FROM consent_state WHERE log_id = $1", tenant.log_id)
    for table in ("idempotency", "erasure", "erased", "hold"):
        await owner.execute(f"DELETE FROM {table} WHERE log_id = $1", tenant.log_id)
    for table, rows in kept.items():
        for row in rows:
            insert = f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, $1::jsonb)"
            await owner.execute(insert, row["row"])
    assert len(await history(tenant, person)) == 1, "the backup knew the person"
    await erasures.catch_up(tenant.services.ledgers, anchor)
    async with ledger.connection() as connection:
        assert await erasures.repeat(connection, ledger, orders) == 0
    assert await history(tenant, person) == []
    assert await reason(tenant, person, "marketing.phone", channel="phone") == "suppressed"
    assert await owner.fetchval("SELECT count(*) FROM hold WHERE log_id = $1", tenant.log_id) == 1


# -- what is somebody else's ------------------------------------------------------------------------------------------

OFF = {"purpose": "analytics", "status": "withdrawn"}


async def end(tenant: Tenant, made: str) -> None:
    answer = await tenant.post(f"/v1/links/{made}/end", {})
    assert answer.status_code == 200, answer.text


async def annul(tenant: Tenant, owner: asyncpg.Connection[Any], made: str) -> None:
    await owner.execute("UPDATE link SET annul_asked = 'boss' WHERE link = $1", uuid.UUID(made))
    answer = await tenant.post(f"/v1/links/{made}/annul", {"reason": "false"}, key="dpo")
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("said_on", ["itself", "a card of its own"])
async def test_erasing_an_account_turns_no_no_of_a_former_member_into_a_yes(
    tenant: Tenant, owner: asyncpg.Connection[Any], said_on: str
) -> None:
    """Somebody was linked to an account once, stands alone since, and says no; then that account is erased."""
    former, account, card = named("login"), named("login"), named("loyalty")
    await tenant.record(WEB, subject=account)
    await end(tenant, await link(tenant, former, account))
    await tenant.record(WEB, subject=former)
    if said_on == "itself":
        await tenant.record(OFF, subject=former)
    else:
        await end(tenant, await link(tenant, card, former))
        await link(tenant, card, former)
        await tenant.record(OFF, subject=card)
    assert await reason(tenant, former, "analytics", channel="web") == "withdrawn"
    await erase(tenant, account)
    assert await reason(tenant, former, "analytics", channel="web") == "withdrawn"
    await erase(tenant, former)
    whose = tenant.services.ledgers.of(tenant.log_id).hasher.identifier(Subject(**former)).hex()
    left = [row for row in (await stored(tenant, owner, "consent_state")).split("\n") if "suppressed" not in row]
    assert whose not in "\n".join(left), "what was said on it goes with it"


async def test_a_no_that_was_carried_to_a_former_member_outlives_both_accounts_and_names_none(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    """It stands in a strand of its own, and not in the one of the account that it was a member of, which stays."""
    former, account, card = named("login"), named("login"), named("loyalty")
    await end(tenant, await link(tenant, former, account))
    await link(tenant, card, former)
    await tenant.record(OFF, subject=card)
    whose = tenant.services.ledgers.of(tenant.log_id).hasher.identifier(Subject(**former)).hex()
    assert whose in await stored(tenant, owner, "consent_state")
    await erase(tenant, former)
    assert await reason(tenant, former, "analytics", channel="web") == "withdrawn", "it was another one's too"


async def test_a_no_on_an_identifier_that_is_somebody_elses_now_stays_and_forgets_whose_it_was(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    phone, ada, bob = named("phone"), named("login"), named("login")
    await tenant.record(WEB, subject=bob)
    first = await link(tenant, phone, ada)
    told = (await tenant.record(OFF, subject=phone)).json()
    await end(tenant, first)
    await link(tenant, phone, bob)
    before = await reason(tenant, bob, "analytics", channel="web")
    await erase(tenant, ada)
    assert await reason(tenant, bob, "analytics", channel="web") == before != "consent"
    assert told["event"] not in await stored(tenant, owner, "consent_state")
    await erase(tenant, bob)
    assert await reason(tenant, phone, "analytics", channel="web") == "no_record"


async def test_what_an_account_does_after_it_was_a_member_of_another_one_is_its_own(tenant: Tenant) -> None:
    """Its links are told in a strand that begins then, and can be ended when the other account is erased."""
    former, account, card = named("login"), named("login"), named("loyalty")
    await end(tenant, await link(tenant, former, account))
    mine = await link(tenant, card, former)
    await erase(tenant, account)
    await end(tenant, mine)
    assert (await erase(tenant, former))["links"] == 1


async def test_a_false_link_goes_with_the_person_and_leaves_its_number_free(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    phone, ada, bob = named("phone"), named("login"), named("login")
    await tenant.record(WEB, subject=phone)
    await annul(tenant, owner, await link(tenant, phone, bob))
    assert (await erase(tenant, phone))["links"] == 1
    assert await stored(tenant, owner, "link") == ""
    await tenant.record(WEB, subject=phone)
    await link(tenant, phone, ada)
    await annul(tenant, owner, await link(tenant, phone, bob, replace=True))
    await link(tenant, phone, ada)


# -- what stays ------------------------------------------------------------------------------------------------------


async def test_what_stays_leads_from_nobody_to_the_entries_of_a_person(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    seen = tenant.device()
    device, person = {"type": "device", "id": seen.subject.id}, named("login")
    for subject, more in ((device, {"proof": seen.token}), (person, {})):
        await tenant.post("/v1/exports", {"subject": subject}, key="dpo")  # while nobody knows them yet
        told = (await tenant.record(WEB, subject=subject, **more)).json()
        ordered = await tenant.post("/v1/exports", {"subject": subject}, key="dpo")
        made = read_system((await entries(tenant))[-1])
        assert isinstance(made, ExportMade)
        salted = bytes.fromhex(ordered.json()["salt"]) + await _filter(owner, made.export)
        assert hashlib.sha256(salted).hexdigest() == made.filter
        done = await erase(tenant, subject)
        whose = tenant.services.ledgers.of(tenant.log_id).hasher.identifier(Subject(**subject)).hex()
        assert await stored(tenant, owner, "export") == ""
        for table in ("idempotency", "event", "strand"):
            found = await stored(tenant, owner, table)
            assert whose not in found, table
            assert told["event"] not in found, table
        for row in await owner.fetch("SELECT * FROM idempotency WHERE log_id = $1", tenant.log_id):
            assert (row["body"], row["answer"], row["identifier"], row["idx"], row["size"]) == (b"", b"", b"", 0, 0)
        assert done["erasure"] not in await stored(tenant, owner, "consent_state")


async def _filter(owner: asyncpg.Connection[Any], export: uuid.UUID) -> bytes:
    return bytes(await owner.fetchval("SELECT filter FROM export WHERE export = $1", export))


# -- orders outside the database --------------------------------------------------------------------------------------


class Slow(FileAnchor):
    """A store that takes its time, during which `meanwhile` happens."""

    meanwhile: Callable[[], Awaitable[Any]]

    async def note_erasure(self, key: str, line: bytes) -> None:
        await super().note_erasure(key, line)
        await self.meanwhile()


DPO = frozenset({"requests:approve"})


async def _erase(tenant: Tenant, anchor: FileAnchor, subject: dict[str, str]) -> dict[str, Any]:
    dpo = Credential(tenant.log_id, "dpo", "officer", "dpo", DPO, frozenset(), None)
    raw = msgspec.json.encode(EraseBody(Subject(**subject)))
    return dict(msgspec.json.decode(await Eraser(tenant.services.ledgers, anchor).erase(raw, dpo)))


async def test_a_slow_anchor_delays_an_erasure_and_nobody_else(tenant: Tenant, tmp_path: Path) -> None:
    person, other = named("login"), named("login")
    anchor = Slow(tmp_path / "anchor")

    async def wait() -> None:
        assert (await tenant.record(WEB, subject=other)).status_code == 201
        await asyncio.sleep(1.5)  # longer than a transaction may do nothing

    anchor.meanwhile = wait
    await tenant.record(WEB, subject=person)
    assert (await _erase(tenant, anchor, person))["events"] == 1
    assert len(await anchor.erasures(tenant.slug)) == 1


async def test_what_comes_to_belong_to_a_person_under_way_goes_as_well(tenant: Tenant, tmp_path: Path) -> None:
    person, card = named("login"), named("loyalty")
    anchor, ledger = Slow(tmp_path / "anchor"), tenant.services.ledgers.of(tenant.log_id)
    made: list[str] = []

    async def join() -> None:
        if not made:
            made.append(await link(tenant, card, person))

    anchor.meanwhile = join
    await tenant.record(WEB, subject=person)
    await tenant.record(WEB, subject=card)
    done = await _erase(tenant, anchor, person)
    assert (len(done["identifiers"]), done["links"]) == (2, 1)
    async with ledger.connection() as connection:
        orders, _ = await erasures.read_journal(connection, ledger, anchor)
    assert [str(one.erasure) for one in orders] == [done["erasure"]], "what came to nothing is taken back"

    await tenant.record(WEB, subject=person)
    await erasures.catch_up(tenant.services.ledgers, anchor)
    assert await reason(tenant, person, "analytics", channel="web") == "consent", "what began later is not meant"

    async def always() -> None:
        await link(tenant, named("loyalty"), person)

    anchor.meanwhile = always
    with pytest.raises(Unavailable, match="again and again"):
        await _erase(tenant, anchor, person)


async def test_an_order_that_somebody_forged_erases_nobody(tenant: Tenant, tmp_path: Path) -> None:
    person, ledger = named("login"), tenant.services.ledgers.of(tenant.log_id)
    anchor = FileAnchor(tmp_path / "anchor")
    await tenant.record(WEB, subject=person)
    identifier = ledger.hasher.identifier(Subject(**person))
    order = erasures.Order(uuid.uuid4(), clock.now(), 1_000, [(identifier, 1)], [identifier], [], [], [])
    sealed = erasures.seal(ledger, order)
    for line in (sealed.partition(b" ")[2], bytes([sealed[0] ^ 1]) + sealed[1:], sealed[:-2] + b" }", b"nothing"):
        await anchor.note_erasure(tenant.slug, line)
    await erasures.catch_up(tenant.services.ledgers, anchor)
    async with ledger.connection() as connection:
        assert await erasures.read_journal(connection, ledger, anchor) == ([], 4)
    assert await reason(tenant, person, "analytics", channel="web") == "consent"
    await anchor.note_erasure(tenant.slug, sealed)
    await erasures.catch_up(tenant.services.ledgers, anchor)
    assert await reason(tenant, person, "analytics", channel="web") == "no_record", "the control: ours is carried out"


@pytest.mark.parametrize("count", [erasures._AT_ONCE + 20, pytest.param(50_000, marks=pytest.mark.slow)])
async def test_proof_of_any_number_of_consents_is_kept(tenant: Tenant, count: int) -> None:
    person = named("login")
    for start in range(0, count, 200):
        some = range(start, min(start + 200, count))
        answers = await asyncio.gather(*(tenant.record(CALLS, subject=person, **SCRIPT) for _ in some))
        assert {answer.status_code for answer in answers} == {201}
    assert (await erase(tenant, person))["held"] == count
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection, connection.transaction():
        await erasures.become(connection)
        assert await connection.fetchval("SELECT count(DISTINCT idx) FROM hold") == count
