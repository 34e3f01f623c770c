"""The tree inside the write transaction: every act an entry, every answer a receipt that proves it without us."""

from __future__ import annotations

import asyncio
import base64
import hmac
import random
import uuid
from typing import Any

import asyncpg
import msgspec
import pytest
from conftest import SECRET, Tenant

from consent_service import db, keys, tenants
from consent_service.ledger import entry, receipt, tiles, tree
from consent_service.ledger.head import read_head
from consent_service.ledger.note import NoteError
from consent_service.ledger.trust import Trust, trusting
from consent_service.policies import Policy, store
from consent_service.subjects import Subject
from consent_service.vault import Place

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
NO = {"purpose": "analytics", "status": "withdrawn"}


async def known(tenant: Tenant) -> Trust:
    """The keys that the tenant's ledger signs with."""
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        log = await ledger.log(connection, await read_head(connection, tenant.log_id))
    return Trust.parse(trusting(str(signer.verifier) for signer in log.signers))


async def entries(tenant: Tenant) -> list[bytes]:
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection:
        rows = await connection.fetch("SELECT idx, entry FROM ledger_entry ORDER BY idx")
        head = await connection.fetchrow("SELECT size, frontier FROM ledger_head")
    found = [row["entry"] for row in rows]
    assert [row["idx"] for row in rows] == list(range(head["size"])), "no gap"
    frontier = tree.Frontier.read(head["size"], head["frontier"])
    assert frontier == tree.Frontier().grown([tree.leaf_hash(one) for one in found]).frontier
    return found


def system_events(found: list[bytes]) -> list[entry.SystemEvent]:
    return [entry.read_system(one) for one in found if one[:1] == entry.SYSTEM]


async def proved(tenant: Tenant, text: str) -> tuple[receipt.Receipt, dict[str, Any]]:
    """What a receipt proves, having been checked by its text and the log's keys alone."""
    checked = receipt.verify(text, await known(tenant))
    extra = msgspec.json.decode(receipt.Proof.parse(text).extra or b"")
    salt, tag = (base64.b64decode(extra[name]) for name in ("salt", "tag"))
    by_hand = b"\1" + tag + hmac.digest(salt, checked.payload, "sha256")  # as the format says, by none of our code
    assert (await entries(tenant))[checked.index] == by_hand
    return checked, msgspec.json.decode(checked.payload)


async def test_every_answer_has_a_receipt_that_proves_the_act(tenant: Tenant, person: dict[str, str]) -> None:
    for answer in (
        await tenant.record(WEB, subject=person),
        await tenant.post("/v1/consents", {"subject": person, "records": [NO]}),
        await tenant.post("/v1/consents", {"subject": person, "records": [{"purpose": "*", "status": "objected"}]}),
    ):
        told = answer.json()
        checked, payload = await proved(tenant, told["receipt"])
        assert (payload["event"], payload["subject"]) == (told["event"], person)
        assert told["rev"] == f"1.{checked.index + 1}"
        assert checked.checkpoint.origin == f"localhost/{tenant.slug}"
        leaves = [tree.leaf_hash(one) for one in (await entries(tenant))[: checked.checkpoint.size]]
        assert checked.checkpoint.root == tree.Frontier().grown(leaves).root


async def test_a_receipt_of_a_batch_is_good_for_its_own_act_alone(tenant: Tenant) -> None:
    people = [{"type": "login", "id": uuid.uuid4().hex} for _ in range(60)]
    answers = await asyncio.gather(*(tenant.record(WEB, subject=person) for person in people))
    checked = [await proved(tenant, answer.json()["receipt"]) for answer in answers]
    assert [payload["subject"] for _, payload in checked] == people
    assert len({one.index for one, _ in checked}) == 60
    assert len({one.checkpoint.size for one, _ in checked}) < 60, "they share checkpoints"


async def test_a_retry_gets_the_same_receipt_however_much_came_after(tenant: Tenant, person: dict[str, str]) -> None:
    body = {"id": "order-1", "subject": person, "records": [WEB], "method": "form",
            "notice": {"id": "web-banner", "version": 1, "language": "en"}}  # fmt: skip
    first = await tenant.post("/v1/consents", body)
    for count in (1, 300):
        others = ({"type": "login", "id": uuid.uuid4().hex} for _ in range(count))
        await asyncio.gather(*(tenant.record(WEB, subject=other) for other in others))
        assert (await tenant.post("/v1/consents", body)).content == first.content
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        await tiles.store(connection, ledger.log_id, len(await entries(tenant)))
    assert (await tenant.post("/v1/consents", body)).content == first.content, "from tiles that are kept"


@pytest.mark.parametrize("part", ["payload", "salt", "tag", "index", "hash", "checkpoint", "signature"])
async def test_a_receipt_that_was_changed_proves_nothing(tenant: Tenant, person: dict[str, str], part: str) -> None:
    text = (await tenant.record(WEB, subject=person)).json()["receipt"]
    proof = receipt.Proof.parse(text)
    opening = msgspec.json.decode(proof.extra or b"", type=receipt.Opening)
    note = proof.note
    match part:
        case "payload":
            opening = msgspec.structs.replace(
                opening, payload=msgspec.Raw(bytes(opening.payload).replace(b"web", b"app"))
            )
        case "salt":
            opening = msgspec.structs.replace(opening, salt=bytes(32))
        case "tag":
            opening = msgspec.structs.replace(opening, tag=bytes(16))
        case "checkpoint":
            note = note.replace(note.split("\n")[2], "A" * 43 + "=")
        case "signature":
            note = note[:-8] + "AAAAAA=\n"
    changed = receipt.Proof(
        msgspec.json.encode(opening, order="sorted"),
        proof.index - (part == "index"),
        (tree.EMPTY, *proof.hashes[1:]) if part == "hash" else proof.hashes,
        note,
    )
    with pytest.raises(NoteError):
        receipt.verify(str(changed), await known(tenant))
    assert receipt.verify(text, await known(tenant)).index == proof.index


async def test_both_sides_of_a_link_have_their_entry_and_neither_names_the_other(tenant: Tenant) -> None:
    phone, ada = {"type": "phone", "id": "+49 30 23125 042"}, {"type": "login", "id": uuid.uuid4().hex}
    before = len(await entries(tenant))
    made = await tenant.post("/v1/links", {"identifier": phone, "login": ada, "evidence": {"form": "F-7"}})
    link = made.json()["link"]
    _, payload = await proved(tenant, made.json()["receipt"])
    assert (payload["side"], payload["subject"], payload["evidence"]) == ("identifier", phone, {"form": "F-7"})
    ended = (await tenant.post(f"/v1/links/{link}/end", {})).json()
    assert (await proved(tenant, ended["receipt"]))[1]["change"] == "ended"
    assert len(await entries(tenant)) == before + 4
    again = await tenant.post(f"/v1/links/{link}/end", {})
    assert again.json()["receipt"] is None, "nothing was written"
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection:
        rows = await connection.fetch(
            """SELECT e.*, s.key FROM event e JOIN strand s USING (log_id, identifier, tenure)
               WHERE link = $1 ORDER BY idx""",
            uuid.UUID(link),
        )
    vault = tenant.services.ledgers.of(tenant.log_id).vault
    payloads = [opened(vault, row) for row in rows]
    assert [(one["change"], one["side"]) for one in payloads] == [
        ("linked", "identifier"), ("linked", "anchor"), ("ended", "identifier"), ("ended", "anchor"),
    ]  # fmt: skip
    for one in payloads:
        own, other = (phone, ada) if one["side"] == "identifier" else (ada, phone)
        assert one["subject"] == own
        assert other["id"] not in str(one)


def opened(vault: Any, row: asyncpg.Record) -> dict[str, Any]:
    key = vault.open(Place(row["log_id"], row["identifier"], row["tenure"]), row["key"])
    return msgspec.json.decode(key.open(row["event"].bytes, row["payload"]))


async def test_a_strand_is_complete_by_its_tags(tenant: Tenant) -> None:
    """Consents and links of one identifier: whoever has the tag key finds all, and sees that none is missing."""
    phone = {"type": "phone", "id": uuid.uuid4().hex}
    await tenant.record(WEB, subject=phone)
    link = (await tenant.post("/v1/links", {"identifier": phone, "group": {"type": "household", "id": "h"}})).json()
    await tenant.post("/v1/consents", {"subject": phone, "records": [NO]})
    await tenant.post(f"/v1/links/{link['link']}/end", {})
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        row = await connection.fetchrow(
            "SELECT * FROM strand WHERE identifier = $1", ledger.hasher.identifier(msgspec.convert(phone, Subject))
        )
    key = ledger.vault.open(Place(ledger.log_id, row["identifier"], 1), row["key"])
    found = [one[1:17] for one in await entries(tenant) if one[:1] == entry.PERSONAL]
    mine = [entry.tag(key.tags, n) for n in range(1, 8)]
    assert [one in found for one in mine] == [True] * 4 + [False] * 3
    assert row["events"] == 4


async def test_policies_notices_and_keys_are_entries_without_names(tenant: Tenant, demo_policy: Policy) -> None:
    first = system_events(await entries(tenant))
    kinds = [type(one).__name__ for one in first]
    assert kinds == ["NoticePublished"] * 4 + ["PolicyApplied"] + ["KeyChanged"] * len(tenant.keys)
    assert {one.sha256 for one in first if isinstance(one, entry.PolicyApplied)} == {demo_policy.hash}
    stricter = msgspec.structs.replace(demo_policy.purposes["marketing.email"], double_opt_in=True)
    changed = msgspec.structs.replace(demo_policy, purposes={**demo_policy.purposes, "marketing.email": stricter})
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), changed)
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), changed)
        await keys.add_second_key(connection, SECRET.encode(), tenant.log_id, "service")
        await keys.drop_old_key(connection, SECRET.encode(), tenant.log_id, "service")
        await keys.revoke(connection, SECRET.encode(), tenant.log_id, "service")
        await keys.revoke(connection, SECRET.encode(), tenant.log_id, "service")
    later = system_events(await entries(tenant))[len(first) :]
    assert [getattr(one, "change", "policy") for one in later] == [
        "policy", "secret_added", "secret_dropped", "revoked",
    ]  # fmt: skip
    assert b"service" not in b"".join(await entries(tenant)), "operators put names into ids"


async def test_no_role_of_the_service_changes_or_removes_an_entry(tenant: Tenant, person: dict[str, str]) -> None:
    await tenant.record(WEB, subject=person)
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection:
        for table in ("ledger_entry", "ledger_tile", "event"):
            for statement in (f"UPDATE {table} SET log_id = log_id", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)


async def test_tiles_give_the_nodes_of_the_tree(tenant: Tenant) -> None:
    """Whether they are kept or worked out; some leaves are written straight into the table, for there must be many."""
    ledger = tenant.services.ledgers.of(tenant.log_id)
    have = await entries(tenant)
    more = [entry.SYSTEM + b"%d" % n for n in range(len(have), 66_000)]
    leaves = [tree.leaf_hash(one) for one in [*have, *more]]
    async with ledger.connection() as connection:
        await connection.execute(
            """INSERT INTO ledger_entry (log_id, idx, entry)
               SELECT $1, $2 + n - 1, e FROM unnest($3::bytea[]) WITH ORDINALITY AS m (e, n)""",
            ledger.log_id, len(have), more,
        )  # fmt: skip
        chance = random.Random(7)
        for kept in (False, True):
            if kept:
                await tiles.store(connection, ledger.log_id, 66_000)
                counts = await connection.fetch("SELECT level, count(*) AS n FROM ledger_tile GROUP BY 1 ORDER BY 1")
                assert [(row["level"], row["n"]) for row in counts] == [(0, 257), (1, 1)]
            for size in (66_000, 65_536, 65_537, chance.randrange(1_000, 66_000)):
                index = chance.randrange(size)
                root, proof = await tiles.prove(connection, ledger.log_id, index, size)
                assert tree.includes(root, size, index, leaves[index], proof)
                assert root == tree.Frontier().grown(leaves[:size]).root
                old = chance.randrange(1, size)
                consistency = await tiles.proved(
                    connection,
                    ledger.log_id,
                    size,
                    lambda node, old=old, size=size: tree.consistency_proof(old, size, node),
                )
                before = tree.Frontier().grown(leaves[:old]).root
                assert tree.grew(old, before, size, root, consistency)


async def test_what_a_ledger_signs_with_is_its_own(tenant: Tenant, make_tenant: Any, demo_policy: Policy) -> None:
    other = await make_tenant.make(demo_policy)
    mine, theirs = await known(tenant), await known(other)
    assert {one.raw for one in mine.known}.isdisjoint(one.raw for one in theirs.known)
    text = (await tenant.record(WEB, subject={"type": "login", "id": "ada"})).json()["receipt"]
    with pytest.raises(NoteError, match="no known key"):
        receipt.verify(text, theirs)
