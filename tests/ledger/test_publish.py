"""A ledger that is not any more what it signed takes no writes, until it is again or somebody gives up what is lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec
import pytest
from conftest import NOTICE, SECRET, Serve, Tenant
from msgspec.structs import replace

from consent_service import auth, clock, db, erasures, keys, tenants
from consent_service.consents import write
from consent_service.errors import Frozen, Invalid, Unavailable
from consent_service.ledger import Ledgers, publish, read_head, receipt, standing, tree, turns
from consent_service.ledger.anchor import Anchored, FileAnchor
from consent_service.ledger.entry import LogKeyChanged, Ruptured, read_system
from consent_service.ledger.note import WITNESS, Checkpoint, Signer, read, sign
from consent_service.ledger.outside import Outside, reaching
from consent_service.ledger.publish import Publisher
from consent_service.ledger.trust import Trust, trusting
from consent_service.ledger.turns import Recovered
from consent_service.policies import Policy, store
from consent_service.settings import Settings

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
NO = {"purpose": "analytics", "status": "withdrawn"}


class Copy(NamedTuple):
    """A ledger at a moment: what a backup holds of it."""

    head: asyncpg.Record
    entries: list[asyncpg.Record]
    tiles: list[asyncpg.Record]


class Yard:
    """A tenant, its publisher with an anchor, and a database whose owner can turn time back."""

    def __init__(self, tenant: Tenant, anchor: FileAnchor | None, owner: asyncpg.Connection[Any]) -> None:
        self.tenant = tenant
        self.anchor = anchor
        self.owner = owner
        self.ledger = tenant.services.ledgers.of(tenant.log_id)
        self.publisher = Publisher(tenant.services.ledgers, Outside(anchor), every_s=0)

    async def publish(self) -> bool:
        return await self.publisher.publish(self.tenant.log_id)

    async def status(self) -> standing.Status:
        async with self.ledger.connection() as connection:
            return await standing.status(connection, self.ledger)

    async def record(self, *records: dict[str, Any], person: dict[str, str] | None = None) -> Any:
        return await self.tenant.record(*records, subject=person or {"type": "login", "id": uuid.uuid4().hex})

    async def copy(self) -> Copy:
        own = self.tenant.log_id
        head = await self.owner.fetchrow("SELECT * FROM ledger_head WHERE log_id = $1", own)
        assert head is not None
        return Copy(
            head,
            await self.owner.fetch("SELECT idx, entry FROM ledger_entry WHERE log_id = $1 ORDER BY idx", own),
            await self.owner.fetch("SELECT level, n, root, hashes FROM ledger_tile WHERE log_id = $1", own),
        )

    async def restore(self, copy: Copy) -> None:
        """What matters here of restoring a backup: the ledger as it was."""
        own = self.tenant.log_id
        for table in ("ledger_entry", "ledger_tile", "checkpoint"):
            await self.owner.execute(f"DELETE FROM {table} WHERE log_id = $1", own)
        for table in ("event", "idempotency"):
            await self.owner.execute(f"DELETE FROM {table} WHERE log_id = $1 AND idx >= $2", own, copy.head["size"])
        await self.replay(copy.entries)
        await self.owner.executemany(
            "INSERT INTO ledger_tile (log_id, level, n, root, hashes) VALUES ($1, $2, $3, $4, $5)",
            [(own, *row.values()) for row in copy.tiles],
        )
        await self.owner.execute(
            "UPDATE ledger_head SET epoch = $2, size = $3, frontier = $4, frozen = $5, demanded = $6 WHERE log_id = $1",
            own, *(copy.head[name] for name in ("epoch", "size", "frontier", "frozen", "demanded")),
        )  # fmt: skip

    async def replay(self, entries: list[asyncpg.Record]) -> None:
        await self.owner.executemany(
            "INSERT INTO ledger_entry (log_id, idx, entry) VALUES ($1, $2, $3)",
            [(self.tenant.log_id, *row.values()) for row in entries],
        )

    async def replay_tail(self, copy: Copy) -> None:
        """What a stream of changes would bring: the entries that are missing, and the head beyond them."""
        size = await self.owner.fetchval("SELECT size FROM ledger_head WHERE log_id = $1", self.tenant.log_id)
        await self.replay(copy.entries[size:])
        await self.owner.execute(
            "UPDATE ledger_head SET size = $2, frontier = $3 WHERE log_id = $1",
            self.tenant.log_id, copy.head["size"], copy.head["frontier"],
        )  # fmt: skip

    async def lose(self, copy: Copy) -> Recovered:
        """An older copy is restored, and what it lacks is given up."""
        await self.restore(copy)
        assert not await self.publish()
        async with self.ledger.connection() as connection:
            return (await erasures.recover(connection, self.ledger, self.anchor))[0]

    async def entries(self) -> list[bytes]:
        return [row["entry"] for row in (await self.copy()).entries]


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def yard(tenant: Tenant, tmp_path: Path, owner: asyncpg.Connection[Any]) -> Yard:
    return Yard(tenant, FileAnchor(tmp_path / "anchor"), owner)


async def test_a_restored_older_copy_is_frozen_and_thaws_by_itself_once_the_tail_is_back(yard: Yard) -> None:
    person = {"type": "login", "id": uuid.uuid4().hex}
    said = {"id": uuid.uuid4().hex, "subject": person, "records": [WEB], "method": "form", "notice": NOTICE}
    assert (await yard.tenant.post("/v1/consents", said)).status_code == 201
    before_export = (await yard.tenant.post("/v1/exports", {}, key="dpo")).json()["file"]
    backup = await yard.copy()
    assert (await yard.record(NO, person=person)).status_code == 201
    assert await yard.publish()
    newest, before = await yard.copy(), await yard.status()

    yard.ledger.signed = None  # another process, which knows what the anchor knows
    await yard.restore(backup)
    assert not await yard.publish()
    status = await yard.status()
    assert status.frozen is not None
    assert f"had {before.size} entries, and {backup.head['size']} are here" in status.frozen

    refused = await yard.record(NO, person=person)
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/frozen")
    assert "older than what was signed" in refused.json()["detail"]
    linked = await yard.tenant.post("/v1/links", {"identifier": {"type": "loyalty", "id": "1"}, "login": "x"})
    assert (linked.status_code, linked.json()["type"]) == (503, "/problems/frozen")
    assert (await yard.tenant.check(person, "analytics", channel="web")).keys() >= {"allow", "reason"}, "reads go on"
    history = await yard.tenant.post("/v1/subjects/history", {"subject": person}, key="dpo")
    assert history.status_code == 200
    assert status.checkpoint is None, "nothing is signed"
    ordered = await yard.tenant.post("/v1/exports", {}, key="dpo")
    assert ordered.status_code == 503
    fetched = await yard.tenant.http.get(before_export, headers={"Authorization": f"Bearer {yard.tenant.keys['dpo']}"})
    assert (fetched.status_code, fetched.json()["type"]) == (503, "/problems/frozen")
    again = await yard.tenant.post("/v1/consents", said)
    assert again.status_code == 503, "nor a receipt once more"
    assert not await yard.publish()

    await yard.replay_tail(newest)
    assert await yard.publish()
    after = await yard.status()
    assert (after.frozen, after.size, after.root) == (None, before.size, before.root)
    assert (await yard.record(NO, person=person)).status_code == 201


async def test_what_was_answered_before_is_not_signed_once_more_while_frozen(yard: Yard, demo_policy: Policy) -> None:
    """Nor where the policy in force would refuse the act now, so that the answer of then is looked up."""
    person = {"type": "login", "id": uuid.uuid4().hex}
    said = {"id": uuid.uuid4().hex, "subject": person, "records": [WEB], "method": "form", "notice": NOTICE}
    first = await yard.tenant.post("/v1/consents", said)
    narrower = msgspec.structs.replace(demo_policy.purposes["analytics"], channels=("app",))
    policy = msgspec.structs.replace(demo_policy, purposes={**demo_policy.purposes, "analytics": narrower})
    async with yard.ledger.connection() as connection:
        await tenants.apply_policy(connection, yard.tenant.log_id, store.Policies(), policy)
    again = await yard.tenant.post("/v1/consents", said)
    assert (again.status_code, again.content) == (201, first.content)
    backup = await yard.copy()
    await yard.record({"purpose": "marketing.email", "status": "given", "channel": "email"})
    await yard.publish()
    yard.ledger.signed = None
    await yard.restore(backup)
    assert not await yard.publish()
    refused = await yard.tenant.post("/v1/consents", said)
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/frozen")


async def test_control_without_an_anchor_another_process_notices_nothing(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    yard = Yard(tenant, None, owner)
    backup = await yard.copy()
    await yard.record(WEB)
    assert await yard.publish()
    yard.ledger.signed = None
    await yard.restore(backup)
    assert await yard.publish()
    assert (await yard.status()).frozen is None


async def test_a_process_remembers_what_it_signed(tenant: Tenant, owner: asyncpg.Connection[Any]) -> None:
    """A failover to a copy that lags: nothing was anchored since, but somebody holds a receipt."""
    yard = Yard(tenant, None, owner)
    backup = await yard.copy()
    assert (await yard.record(WEB)).status_code == 201
    newest = await yard.copy()
    await yard.restore(backup)
    refused = await yard.record(WEB)
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/frozen"), "before anybody looks"
    assert not await yard.publish()
    other = Yard(tenant, None, owner)
    other.ledger.signed = None
    assert not await other.publish(), "what one process knows, all obey"
    await yard.replay_tail(newest)
    assert await yard.publish()
    assert (await yard.record(WEB)).status_code == 201


async def test_other_entries_in_the_place_of_those_signed_freeze_the_ledger(yard: Yard) -> None:
    backup = await yard.copy()
    await yard.record(WEB)
    await yard.publish()
    newest = await yard.copy()
    await yard.restore(backup)
    yard.ledger.signed = None
    for _ in range(3):  # before anybody compared: now it is longer than the anchor, and another one
        answer = await yard.record(NO)
        assert answer.status_code == 201, answer.text
    assert not await yard.publish()
    frozen = (await yard.status()).frozen
    assert frozen is not None
    assert f"first {newest.head['size']} entries in the database are not those that were signed" in frozen


async def test_an_entry_altered_in_the_database_is_never_published(yard: Yard) -> None:
    await yard.record(WEB)
    await yard.publish()
    for _ in range(2):
        await yard.record(WEB)
    size = (await yard.status()).size
    last = await yard.owner.fetchrow(
        "SELECT idx, entry FROM ledger_entry WHERE log_id = $1 AND idx = $2", yard.tenant.log_id, size - 1
    )
    assert last is not None
    change = "UPDATE ledger_entry SET entry = $3 WHERE log_id = $1 AND idx = $2"
    await yard.owner.execute(change, yard.tenant.log_id, size - 1, last["entry"][:-1] + b"!")
    assert not await yard.publish()
    assert (await yard.status()).published == size - 2
    await yard.owner.execute("DELETE FROM ledger_entry WHERE log_id = $1 AND idx = $2", yard.tenant.log_id, size - 2)
    assert not await yard.publish()
    await yard.replay([(await yard_record(yard, size - 2, b"?"))])
    assert not await yard.publish()


async def yard_record(yard: Yard, idx: int, entry: bytes) -> asyncpg.Record:
    row = await yard.owner.fetchrow("SELECT $1::bigint AS idx, $2::bytea AS entry", idx, entry)
    assert row is not None
    return row


async def test_an_anchor_that_the_ledger_never_signed_freezes_it(yard: Yard) -> None:
    await yard.record(WEB)
    await yard.publish()
    assert yard.anchor is not None
    good = await yard.anchor.read(yard.tenant.slug)
    assert good is not None
    forged = sign(str(Checkpoint((await yard.status()).origin, 1, b"\0" * 32)), [Signer("x", b"\0" * 32)])
    for note in (forged, "nonsense", good.note.replace("\n\n", "\n\n\n"), good.note.replace(good.note[-9], "A")):
        now = await yard.anchor.read(yard.tenant.slug)
        assert await yard.anchor.swap(yard.tenant.slug, now, note)
        yard.publisher._quiet.clear()
        assert not await yard.publish(), note
        assert "anchor" in str((await yard.status()).frozen)
        now = await yard.anchor.read(yard.tenant.slug)
        assert await yard.anchor.swap(yard.tenant.slug, now, good.note)
        assert await yard.publish()
        assert (await yard.status()).frozen is None


async def test_what_is_lost_can_be_given_up_in_a_new_epoch_that_says_so(yard: Yard) -> None:
    await yard.record(WEB)
    backup = await yard.copy()
    lost = (await yard.record(WEB)).json()["receipt"]
    await yard.publish()
    before = await yard.status()
    async with yard.ledger.connection() as connection:
        with pytest.raises(Invalid, match="not frozen"):
            await erasures.recover(connection, yard.ledger, yard.anchor)
    made = await yard.lose(backup)
    kept = backup.head["size"]
    assert (made.origin, made.epoch) == (f"{before.origin}/2", 2)
    assert (made.kept, made.lost) == (kept, 1)
    entries = await yard.entries()
    assert entries[:-1] == [row["entry"] for row in backup.entries]
    said = read_system(entries[-1])
    assert isinstance(said, Ruptured)
    assert (said.kept, said.lost, said.lost_root) == (kept, before.size, before.root)
    assert said.kept_root == tree.Frontier().grown([tree.leaf_hash(one) for one in entries[:-1]]).root.hex()

    told = (await yard.record(WEB)).json()
    assert told["rev"] == f"2.{kept + 2}"
    assert await yard.publish()
    after = await yard.status()
    new, old = (Trust.parse(trusting(status.keys)) for status in (after, before))
    assert receipt.verify(told["receipt"], new).checkpoint.origin == after.origin == made.origin
    receipt.verify(lost, old)  # nobody can say that it was never promised
    assert set(before.keys) <= set(after.retired)
    assert (await yard.status()).frozen is None
    yard.publisher._quiet.clear()
    assert await yard.publish()


async def test_each_epoch_has_an_address_of_its_own(yard: Yard) -> None:
    """A tile is kept for ever by whoever saw it: one of the log that was given up must not stand for the next one's."""
    await yard.record(WEB)
    backup = await yard.copy()
    await yard.record(WEB)
    await yard.publish()
    lost = f"tile/entries/000.p/{(await yard.status()).size}"
    get, first = yard.tenant.http.get, f"/ledger/{yard.tenant.slug}"
    assert (await get(f"{first}/{lost}")).content == (await get(f"{first}/1/{lost}")).content != b""
    assert (await get(f"{first}/checkpoint")).text == (await get(f"{first}/1/checkpoint")).text
    made = await yard.lose(backup)
    assert await yard.publish()
    size = (await yard.status()).size
    assert (await get(f"{first}/2/checkpoint")).text.startswith(f"{made.origin}\n{size}\n")
    assert (await get(f"{first}/2/tile/entries/000.p/{size}")).content.endswith((await yard.entries())[-1])
    for epoch in ("", "/1", "/3", "/02", "/x"):
        for path in ("checkpoint", "tile/0/000.p/1", lost):
            answer = await get(f"{first}{epoch}/{path}")
            assert (answer.status_code, answer.headers.get("cache-control")) == (404, "no-store")
            assert "is in epoch 2" in answer.json()["detail"]


async def test_a_copy_older_than_the_recovery_is_found_out_too(yard: Yard) -> None:
    oldest = await yard.copy()
    await yard.record(WEB)
    await yard.publish()
    yard.ledger.signed = None
    await yard.lose(oldest)
    made = await yard.lose(oldest)
    assert made.epoch == 3
    assert await yard.publish()


async def test_a_key_is_revoked_although_the_ledger_is_frozen(yard: Yard) -> None:
    await yard.record(WEB)
    await yard.publish()
    newest = await yard.copy()
    first = tree.Frontier().grown([tree.leaf_hash(row["entry"]) for row in newest.entries[:3]]).frontier
    await yard.owner.execute("DELETE FROM ledger_entry WHERE log_id = $1 AND idx >= 3", yard.tenant.log_id)
    await yard.owner.execute(
        "UPDATE ledger_head SET size = 3, frontier = $2 WHERE log_id = $1", yard.tenant.log_id, first.write()
    )
    yard.ledger.signed = None
    assert not await yard.publish()
    secret = SECRET.encode()
    async with yard.ledger.connection() as connection:
        new = auth.Credential(yard.tenant.log_id, "new", "service", "new", frozenset({"check"}), frozenset(), None)
        with pytest.raises(Frozen):
            await keys.create_key(connection, secret, new)
        await keys.revoke(connection, secret, yard.tenant.log_id, "service")
        assert not await keys.is_valid(connection, secret, yard.tenant.log_id, "service", yard.tenant.keys["service"])
    await yard.replay_tail(newest)
    assert await yard.publish()
    entries = await yard.entries()
    assert len(entries) == len(newest.entries) + 1
    said = read_system(entries[-1])
    assert (said.change, said.credential) == ("revoked", yard.ledger.hasher.once("credential", "service").hex())
    assert await yard.publish()
    assert len(await yard.entries()) == len(entries), "once"


async def test_two_keys_sign_while_one_follows_the_other(yard: Yard) -> None:
    first = await yard.status()
    old_receipt = (await yard.record(WEB)).json()["receipt"]
    await yard.publish()
    async with yard.ledger.connection() as connection:
        with pytest.raises(Invalid, match="One key signs only"):
            await turns.retire_key(connection, yard.ledger)
        both = await turns.add_key(connection, yard.ledger)
        with pytest.raises(Invalid, match="Two keys sign already"):
            await turns.add_key(connection, yard.ledger)
    assert both.keys[:1] == first.keys
    assert len(both.keys) == 2
    old, new = (Trust.parse(trusting([key])) for key in both.keys)
    between = (await yard.record(WEB)).json()["receipt"]
    assert {receipt.verify(between, one).index for one in (old, new)} == {(await yard.status()).size - 1}
    async with yard.ledger.connection() as connection:
        done = await turns.retire_key(connection, yard.ledger)
    assert (done.keys, done.retired) == (both.keys[1:], both.keys[0])
    after = (await yard.record(WEB)).json()["receipt"]
    receipt.verify(after, new)
    with pytest.raises(receipt.NoteError, match="no known key"):
        receipt.verify(after, old)
    receipt.verify(old_receipt, old)
    said = [read_system(one) for one in await yard.entries() if one[:1] == b"\2"]
    assert [(s.change, s.key) for s in said if isinstance(s, LogKeyChanged)] == [
        ("added", both.keys[1]), ("retired", both.keys[0])
    ]  # fmt: skip
    yard.publisher._quiet.clear()
    assert await yard.publish(), "what the retired key signed is still the anchor's"
    fresh = Ledgers(yard.tenant.services.pool, SECRET.encode()).of(yard.tenant.log_id)
    async with fresh.connection() as connection:
        status = await standing.status(connection, fresh)
    assert (status.keys, status.retired) == (done.keys, both.keys[:1])


async def test_many_publishers_publish_each_checkpoint_once(yard: Yard) -> None:
    publishers = [Publisher(yard.tenant.services.ledgers, Outside(yard.anchor), every_s=0) for _ in range(4)]
    for _ in range(6):
        await asyncio.gather(*(yard.record(WEB) for _ in range(5)))
        await asyncio.gather(*(one.publish(yard.tenant.log_id) for one in publishers))
    assert await yard.publish()
    rows = await yard.owner.fetch(
        "SELECT size, note, published_at FROM checkpoint WHERE log_id = $1 ORDER BY size", yard.tenant.log_id
    )
    assert rows[-1]["size"] == (await yard.status()).size
    assert rows[-1]["published_at"] is not None
    assert yard.anchor is not None
    anchored = await yard.anchor.read(yard.tenant.slug)
    assert anchored is not None
    assert anchored.note == rows[-1]["note"]


async def test_what_others_publish_while_one_looks_is_no_reason_to_freeze(yard: Yard) -> None:
    assert yard.anchor is not None

    class Busy(FileAnchor):
        """While somebody reads it, the ledger grows, and is published by others."""

        async def read(self, key: str) -> Anchored | None:
            await yard.record(WEB)
            assert await Publisher(yard.tenant.services.ledgers, Outside(yard.anchor), every_s=0).publish(
                yard.tenant.log_id
            )
            return await super().read(key)

    busy = Publisher(yard.tenant.services.ledgers, Outside(Busy(yard.anchor._folder)), every_s=0)
    for _ in range(3):
        await yard.record(WEB)
        await busy.publish(yard.tenant.log_id)
        assert (await yard.status()).frozen is None


async def test_one_ledger_that_fails_does_not_keep_others_from_being_published(
    make_tenant: Any, demo_policy: Any, yard: Yard
) -> None:
    other = await make_tenant.make(demo_policy)
    assert yard.anchor is not None
    (yard.anchor._folder / f"{yard.tenant.slug}.checkpoint").mkdir()
    assert yard.tenant.log_id < other.log_id
    await yard.publisher.sweep()
    async with other.services.ledgers.of(other.log_id).connection() as connection:
        found = await standing.read(connection, other.log_id)
    assert found.published == found.size
    assert (await yard.status()).published == 0


@asynccontextmanager
async def cosigning(serve: Serve, signer: Signer, tmp_path: Path, *, silent: bool = False) -> AsyncIterator[Outside]:
    """A witness that cosigns whatever it is sent, or says nothing; and the file that asks for it."""

    async def cosign(_scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        text = body.decode().partition("\n\n")[2].rpartition("\n\n")[0] + "\n"
        line = b"" if silent else signer.line(text, int(clock.now().timestamp())).encode()
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 503 if silent else 200, "headers": headers})
        await send({"type": "http.response.body", "body": line})

    policy = tmp_path / "witnesses"
    async with serve(cosign) as url:
        policy.write_text(f"witness one {signer.verifier} {url}\nquorum one\n")
        async with reaching(Settings(data=str(tmp_path), witnesses=str(policy))) as outside:
            yield outside


async def test_a_witness_that_saw_a_checkpoint_is_shown_beside_the_log(
    yard: Yard, serve: Serve, tmp_path: Path
) -> None:
    signer = Signer("witness.example", b"w" * 32, WITNESS)
    async with cosigning(serve, signer, tmp_path) as outside:
        publisher = Publisher(yard.tenant.services.ledgers, outside, every_s=0)
        await yard.record(WEB)
        assert await publisher.publish(yard.tenant.log_id)
    shown = await yard.tenant.http.get(f"/ledger/{yard.tenant.slug}/checkpoint")
    status = await yard.status()
    trust = Trust.parse(f"log {status.keys[0]}\nwitness one {signer.verifier}\nquorum one\n")
    note = read(shown.text, trust.known)
    trust.demand(Checkpoint.parse(note.text), note)
    assert status.published == status.size


async def test_what_too_few_witnesses_saw_is_anchored_and_not_shown(yard: Yard, serve: Serve, tmp_path: Path) -> None:
    signer = Signer("witness.example", b"w" * 32, WITNESS)
    async with cosigning(serve, signer, tmp_path, silent=True) as outside:
        publisher = Publisher(yard.tenant.services.ledgers, outside, every_s=0)
        await yard.record(WEB)
        assert not await publisher.publish(yard.tenant.log_id)
        assert (await yard.status()).published == 0
        assert outside.anchor is not None
        anchored = await outside.anchor.read(yard.tenant.slug)
        assert anchored is not None
        assert anchored.note.split("\n")[1] == str((await yard.status()).size)
    async with cosigning(serve, signer, tmp_path) as outside:
        publisher = Publisher(yard.tenant.services.ledgers, outside, every_s=0)
        assert await publisher.publish(yard.tenant.log_id), "the next round asks again"
    assert (await yard.status()).published == (await yard.status()).size


async def test_an_export_of_an_epoch_that_was_given_up_is_not_signed_any_more(yard: Yard) -> None:
    """It would have to prove what was erased since, in a tree of that epoch which is not the one that was signed."""
    key = {"Authorization": f"Bearer {yard.tenant.keys['dpo']}"}
    await yard.record(WEB)
    made = (await yard.tenant.post("/v1/exports", {}, key="dpo")).json()
    assert (await yard.tenant.http.get(made["file"], headers=key)).status_code == 200
    backup = await yard.copy()
    await yard.record(WEB)
    await yard.publish()
    await yard.lose(backup)
    answer = await yard.tenant.http.get(made["file"], headers=key)
    assert (answer.status_code, "new epoch" in answer.text) == (404, True)


async def test_a_thaw_undoes_no_freeze_that_it_did_not_look_at(yard: Yard) -> None:
    """Of two processes one finds that all is well again, and the other has just found that it is not."""
    await yard.record(WEB)
    ledger = yard.ledger
    async with ledger.connection() as connection:
        log = await ledger.log(connection, await read_head(connection, ledger.log_id))
        held = await standing.read(connection, ledger.log_id)
        held = await standing.freeze(connection, ledger.log_id, log, held, "nobody can be asked")
        missing = Checkpoint(log.origin, held.size + 5, bytes(32))
        worse = await standing.settle(connection, ledger, log, held, [missing])
        assert worse.demanded == str(missing)
        after = await standing.settle(connection, ledger, log, held, [])
        assert after.demanded == str(missing)
        assert after.frozen is not None
        less = await standing.settle(connection, ledger, log, held, [Checkpoint(log.origin, held.size + 1, bytes(32))])
        assert less.demanded == str(missing), "the larger of two stays"


class Mute(FileAnchor):
    """An anchor that can be read and takes nothing new."""

    async def swap(self, key: str, old: Anchored | None, note: str) -> bool:
        raise Unavailable(f"{key} {old} {note}")


async def test_a_recovery_erases_again_with_the_new_epoch_or_does_not_happen(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong after it is in the new epoch cannot leave somebody there who was erased."""
    person, own = {"type": "login", "id": uuid.uuid4().hex}, yard.tenant.log_id
    eraser = erasures.Eraser(yard.tenant.services.ledgers, yard.anchor)
    await yard.record(WEB, person=person)
    backup = await yard.copy()
    kept = [dict(row) for row in await yard.owner.fetch("SELECT * FROM strand WHERE log_id = $1", own)]
    events = [dict(row) for row in await yard.owner.fetch("SELECT * FROM event WHERE log_id = $1", own)]
    dpo = auth.Credential(
        yard.tenant.log_id, "dpo", "officer", "dpo", frozenset({"requests:approve"}), frozenset(), None
    )
    await eraser.erase(msgspec.json.encode({"subject": person}), dpo)
    await yard.publish()
    await yard.restore(backup)
    for table in ("erasure", "erased", "consent_state"):
        await yard.owner.execute(f"DELETE FROM {table} WHERE log_id = $1", own)
    for table, rows in (("strand", kept), ("event", events)):
        for row in rows:
            marks = ", ".join(f"${place}" for place in range(1, len(row) + 1))
            await yard.owner.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", *row.values())
    assert not await yard.publish()

    async def fails(*_: object) -> None:
        raise Unavailable("power is gone")

    async with yard.ledger.connection() as connection:
        with monkeypatch.context() as broken:
            broken.setattr(erasures, "_DESTROY", fails)
            with pytest.raises(Unavailable):
                await erasures.recover(connection, yard.ledger, yard.anchor)
        assert (await standing.read(connection, own)).frozen is not None
        assert await yard.owner.fetchval("SELECT count(*) FROM strand WHERE log_id = $1", own) == len(kept)
        assert yard.anchor is not None
        made, again = await erasures.recover(connection, yard.ledger, Mute(yard.anchor._folder))
    assert (made.epoch, again) == (2, 1)
    assert await yard.owner.fetchval("SELECT count(*) FROM strand WHERE log_id = $1", own) < len(kept)
    assert await yard.publish(), "what the anchor was not told then, it is told now"


async def test_nobody_lets_a_tree_grow_that_is_not_the_one_which_was_signed(yard: Yard) -> None:
    """A link's receipt was signed, and the database forgets it: whatever would be written then is refused."""
    await yard.record(WEB)
    backup = await yard.copy()
    login = {"type": "login", "id": uuid.uuid4().hex}
    card = {"type": "loyalty", "id": uuid.uuid4().hex}
    made = await yard.tenant.post("/v1/links", {"identifier": card, "login": login["id"]})
    assert made.status_code == 201, made.text
    for table in ("link", "consent_state"):
        await yard.owner.execute(f"DELETE FROM {table} WHERE log_id = $1", yard.tenant.log_id)
    for other_than_signed in (False, True):
        await yard.restore(backup)
        if other_than_signed:  # as many entries, others
            grown = tree.Frontier.read(backup.head["size"], backup.head["frontier"]).grown([bytes(32)] * 2).frontier
            await yard.owner.execute(
                "UPDATE ledger_head SET size = $2, frontier = $3 WHERE log_id = $1",
                yard.tenant.log_id, grown.size, grown.write(),
            )  # fmt: skip
        for answer in (
            await yard.record(WEB),
            await yard.tenant.post("/v1/links", {"identifier": card, "login": login["id"]}),
            await yard.tenant.post("/v1/exports", {}, key="dpo"),
            await yard.tenant.post("/v1/subjects/erase", {"subject": login}, key="dpo"),
        ):
            assert answer.status_code in (200, 503), answer.text
            assert answer.status_code == 503 or answer.json().get("erasure", "") is None, "nobody is there to be erased"


async def test_a_copy_from_before_a_rotation_goes_on_with_none_of_the_keys_before(yard: Yard) -> None:
    await yard.record(WEB)
    await yard.publish()
    backup, before = await yard.copy(), await yard.status()
    async with yard.ledger.connection() as connection:
        await turns.add_key(connection, yard.ledger)
        await turns.retire_key(connection, yard.ledger)
    await yard.publish()
    (newer,) = (await yard.status()).keys
    yard.ledger.signed = None
    await yard.restore(backup)
    await yard.owner.execute("UPDATE ledger_head SET first_key = 1, last_key = 1 WHERE log_id = $1", yard.tenant.log_id)
    assert not await yard.publish()
    assert "older than what was signed" in str((await yard.status()).frozen), "and not: signed by nobody we know"
    async with yard.ledger.connection() as connection:
        await erasures.recover(connection, yard.ledger, yard.anchor)
    after = await yard.status()
    (key,) = after.keys
    assert key.rpartition("+")[2] not in {one.rpartition("+")[2] for one in (*before.keys, newer)}
    told = (await yard.record(WEB)).json()
    assert receipt.verify(told["receipt"], Trust.parse(trusting([key]))).checkpoint.origin == after.origin
    assert await yard.publish()


async def test_an_anchor_that_is_empty_all_of_a_sudden_is_told_of(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(publish._LOG, "warning", lambda event, **_: said.append(event))
    await yard.record(WEB)
    await yard.publish()
    assert said == []
    await yard.record(WEB)
    elsewhere = Outside(FileAnchor(tmp_path / "new"))
    assert await Publisher(yard.tenant.services.ledgers, elsewhere, every_s=0).publish(yard.tenant.log_id)
    assert said == ["anchor_empty"]


@pytest.mark.parametrize("anchored", [True, False])
async def test_what_was_signed_in_a_later_epoch_is_remembered(yard: Yard, anchored: bool) -> None:
    oldest = await yard.copy()
    await yard.record(WEB)
    await yard.publish()
    await yard.lose(oldest)
    await yard.record(WEB)
    if not anchored:
        yard.publisher = Publisher(yard.tenant.services.ledgers, Outside(None), every_s=0)
    await yard.owner.execute("DELETE FROM consent_state WHERE log_id = $1", yard.tenant.log_id)
    await yard.restore(oldest)
    assert (await yard.record(WEB)).status_code == 503
    assert not await yard.publish()
    assert (await yard.status()).frozen is not None


async def test_an_answer_that_is_given_again_is_signed_again_and_remembered(yard: Yard) -> None:
    backup, person = await yard.copy(), {"type": "login", "id": uuid.uuid4().hex}
    first = await yard.tenant.record(WEB, subject=person, id="once")
    yard.ledger.signed = None  # another process, or this one started anew
    again = await yard.tenant.record(WEB, subject=person, id="once")
    assert again.json()["receipt"] == first.json()["receipt"]
    for table in ("consent_state", "strand"):
        await yard.owner.execute(f"DELETE FROM {table} WHERE log_id = $1", yard.tenant.log_id)
    await yard.restore(backup)
    assert (await yard.record(WEB)).status_code == 503


async def test_a_batch_that_another_writer_of_the_process_overtakes_is_written_all_the_same(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, links = write._READ_BATCH, [{"identifier": {"type": "loyalty", "id": "card"}, "login": "ada"}]

    async def late(*args: Any) -> Any:
        found = await real(*args)
        if links:
            assert (await yard.tenant.post("/v1/links", links.pop())).status_code == 201
        return found

    monkeypatch.setattr(write, "_READ_BATCH", late)
    answer = await yard.record(WEB)
    assert answer.status_code == 201, answer.text


async def test_a_policy_that_was_lost_is_not_taken_for_the_next_one(yard: Yard, demo_policy: Policy) -> None:
    """Both would be version 2, and a process that goes on has the lost one in mind."""
    own, services = yard.tenant.log_id, yard.tenant.services
    await yard.record(WEB)
    await yard.publish()
    backup = await yard.copy()
    kept = {name: one for name, one in demo_policy.purposes.items() if name != "fraud.prevention"}
    async with db.connection(services.pool, own) as connection:
        await tenants.apply_policy(
            connection, own, services.ledgers.of(own).policies, replace(demo_policy, purposes=kept)
        )
    lost = (await yard.record(WEB)).json()["receipt"]
    await yard.publish()
    await yard.restore(backup)
    await yard.owner.execute("DELETE FROM policy_version WHERE log_id = $1 AND version > 1", own)
    await yard.owner.execute("UPDATE ledger_head SET policy = 1 WHERE log_id = $1", own)
    await yard.owner.execute("DELETE FROM consent_state WHERE log_id = $1", own)
    assert not await yard.publish()
    async with yard.ledger.connection() as connection:
        await erasures.recover(connection, yard.ledger, yard.anchor)
    kept = {name: one for name, one in demo_policy.purposes.items() if name != "analytics"}
    async with db.connection(services.pool, own) as connection:
        await tenants.apply_policy(connection, own, store.Policies(), replace(demo_policy, purposes=kept))
    assert (await yard.record(WEB)).status_code == 422, "analytics is no purpose of the policy in force"
    shown = await yard.tenant.post("/v1/receipts", {"receipt": lost, "format": "text"}, key="dpo")
    assert shown.status_code in (200, 404), shown.text


async def test_a_new_epoch_is_remembered_though_it_is_smaller(yard: Yard) -> None:
    """What it signs after much was lost counts, and not the larger tree of before."""
    oldest = await yard.copy()
    for _ in range(5):
        await yard.record(WEB)
    await yard.publish()
    await yard.owner.execute("DELETE FROM consent_state WHERE log_id = $1", yard.tenant.log_id)
    await yard.lose(oldest)
    assert await yard.publish()
    copy = await yard.copy()
    await yard.record(WEB)
    await yard.owner.execute("DELETE FROM consent_state WHERE log_id = $1", yard.tenant.log_id)
    await yard.restore(copy)
    assert (await yard.record(WEB)).status_code == 503
