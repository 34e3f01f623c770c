"""Exports over real ledgers: what is in them is what the database has, and whoever has the key can tell."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import random
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from conftest import NOTICE, Tenant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consent_service import app, db, exports, tenants
from consent_service.errors import NotFound, SetupError
from consent_service.exports import delivery, draft
from consent_service.ledger import append, audit, entry, lock_head, read_head, receipt, standing, turns
from consent_service.ledger import export as form
from consent_service.ledger.note import WITNESS, Signer
from consent_service.ledger.trust import Trust, trusting
from consent_service.ledger.verdict import Verdict, as_text
from consent_service.policies import Policy, store
from consent_service.subjects import Subject

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
MAIL = {"purpose": "marketing.email", "status": "given", "channel": "email"}
NO = {"purpose": "analytics", "status": "withdrawn"}
ALL = {"purpose": "*", "status": "objected"}


async def known(tenant: Tenant) -> Trust:
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        log = await ledger.log(connection, await read_head(connection, ledger.log_id))
    return Trust.parse(trusting(str(signer.verifier) for signer in log.signers))


async def get(tenant: Tenant, path: str, key: str = "dpo") -> httpx.Response:
    return await tenant.http.get(path, headers={"Authorization": f"Bearer {tenant.keys[key]}"})


async def export(tenant: Tenant, **wanted: Any) -> tuple[dict[str, Any], bytes]:
    """What was ordered, and the file."""
    made = await tenant.post("/v1/exports", wanted, key="dpo")
    assert made.status_code == 201, made.text
    answer = await get(tenant, made.json()["file"])
    assert answer.status_code == 200, answer.text
    return made.json(), answer.content


async def verified(tenant: Tenant, file: bytes) -> Verdict:
    return audit.verify(io.BytesIO(file), await known(tenant))


async def genuine(tenant: Tenant, file: bytes) -> Verdict:
    verdict = await verified(tenant, file)
    assert verdict.problems == []
    assert verdict.genuine
    assert verdict.trusted
    return verdict


def member(file: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(file)) as box:
        return box.read(name)


def opened(file: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in member(file, "events.ndjson").splitlines()]


@pytest.fixture(scope="session")
async def owner(database_url: str) -> Any:
    """Whoever may delete: erasing is not the service's yet."""
    async with await db.connect(database_url, size=2, role=None) as pool:
        yield pool


async def erase(tenant: Tenant, owner: db.Pool, indexes: Sequence[int], reason: str = "request") -> uuid.UUID:
    """An erasure as it leaves the tables."""
    salt, erasure = os.urandom(32), uuid.uuid4()
    async with db.connection(owner, tenant.log_id) as connection, connection.transaction():
        tip = await lock_head(connection, tenant.log_id)
        made = entry.ErasureMade(
            at=tip.now, erasure=erasure, reason=reason, by="", held=0, events=len(indexes),  # type: ignore[arg-type]
            sha256=entry.erased_digest(salt, sorted(indexes)),
        )  # fmt: skip
        await append(connection, tenant.log_id, tip, [entry.system(made)], tip.now)
        await connection.execute("DELETE FROM event WHERE log_id = $1 AND idx = ANY($2)", tenant.log_id, indexes)
        await connection.execute(
            "INSERT INTO erasure VALUES ($1, $2, $3, $4, $5, $6, $7)",
            tenant.log_id, erasure, tip.size, reason, salt, len(indexes), tip.now,
        )  # fmt: skip
        await connection.execute(
            "INSERT INTO erased SELECT $1, i, $3 FROM unnest($2::bigint[]) AS i", tenant.log_id, indexes, erasure
        )
    return erasure


async def events(tenant: Tenant) -> list[Any]:
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection:
        return await connection.fetch("SELECT * FROM event ORDER BY idx")


class Lively(msgspec.Struct):
    """A tenant with some of everything."""

    tenant: Tenant
    ada: dict[str, str]
    phone: dict[str, str]
    device: dict[str, str]
    drone: dict[str, str]


async def furnish(tenant: Tenant) -> Lively:
    ada, phone = {"type": "login", "id": "ada"}, {"type": "phone", "id": "+49 30 23125 042"}
    first = {"id": str(uuid.uuid4()), "records": [WEB], "notice": NOTICE, "method": "banner_button"}
    minted = (await tenant.post("/v1/devices", first, key="publishable")).json()
    device, drone = minted["identifier"], {"type": "asset", "id": "SN-1"}
    await tenant.record(WEB, MAIL, subject=ada, evidence={"note": "=1+1\u2028 \"quoted\", 'and' more\n"})
    await tenant.record(WEB, subject=phone)
    for linked in ({"identifier": phone, "login": ada},
                   {"identifier": device, "login": ada, "proof": minted["token"]},
                   {"identifier": phone, "group": {"type": "household", "id": "h"}},
                   {"identifier": drone, "login": {"type": "login", "id": "=bob"}}):  # fmt: skip
        answer = await tenant.post("/v1/links", linked)
        assert answer.status_code == 201, answer.text
    link = answer.json()["link"]
    await tenant.post("/v1/consents", {"subject": phone, "records": [NO]})
    await tenant.post("/v1/consents", {"subject": drone, "records": [ALL]})
    await tenant.post(f"/v1/links/{link}/end", {})
    await tenant.post("/v1/consents", {"subject": drone, "records": [NO]})
    people = [{"type": "login", "id": f"+{number}"} for number in range(5)]
    await asyncio.gather(*(tenant.record(WEB, subject=one) for one in people))
    return Lively(tenant, ada, phone, device, drone)


@pytest.fixture
async def lively(tenant: Tenant) -> Lively:
    return await furnish(tenant)


async def test_an_export_opens_every_event_and_proves_it(lively: Lively) -> None:
    made, file = await export(lively.tenant)
    verdict = await genuine(lively.tenant, file)
    rows = await events(lively.tenant)
    assert [line["index"] for line in opened(file)] == [row["idx"] for row in rows]
    assert [line["payload"]["event"] for line in opened(file)] == [str(row["event"]) for row in rows]
    assert verdict.manifest is not None
    counts = verdict.manifest.counts
    assert (counts.opened, counts.erased, counts.other) == (len(rows), 0, 0)
    assert counts.entries == made["entries"] == made["size"]
    told = (await get(lively.tenant, f"/v1/exports/{made['id']}")).json()
    assert (told["status"], told["entries_done"], told["events_done"]) == ("done", made["size"], len(rows))


@pytest.mark.parametrize("form", ["ndjson", "csv", "parquet"])
async def test_every_form_opens_the_same(lively: Lively, owner: db.Pool, form: str) -> None:
    rows = await events(lively.tenant)
    await erase(lively.tenant, owner, [rows[2]["idx"], rows[5]["idx"]])
    _, file = await export(lively.tenant, format=form)
    verdict = await genuine(lively.tenant, file)
    assert verdict.manifest is not None
    assert verdict.manifest.counts.opened == len(rows) - 2
    assert verdict.manifest.counts.erased == 2
    assert [(one.reason, one.events) for one in verdict.erasures] == [("request", 2)]
    assert verdict.erasures[0].erasure in str(member(file, "erasures.ndjson"))
    if form == "csv":
        text = member(file, "events.csv").decode("utf-8-sig")
        table = list(csv.DictReader(io.StringIO(text)))
        assert [int(row["index"]) for row in table] == [row["idx"] for row in await events(lively.tenant)]
        assert all(row["payload"].startswith("{") for row in table)
        ids = {row["subject_id"] for row in table}
        assert {"'+0", "'=bob", "ada"} <= ids, "what a spreadsheet would take for a formula is quoted"
        assert "\r\n" in text
    if form == "parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(io.BytesIO(member(file, "events.parquet")))
        assert table.column("index").to_pylist() == [row["idx"] for row in await events(lively.tenant)]
        assert {"ada", "=bob"} <= set(table.column("subject_id").to_pylist())


async def test_a_file_fetched_twice_is_the_same_until_something_is_erased(lively: Lively, owner: db.Pool) -> None:
    made, first = await export(lively.tenant)
    await lively.tenant.record(WEB, subject={"type": "login", "id": "later"})
    again = (await get(lively.tenant, made["file"])).content
    assert again == first
    rows = await events(lively.tenant)
    erasure = await erase(lively.tenant, owner, [rows[3]["idx"]], "retention")
    await lively.tenant.record(WEB, subject={"type": "login", "id": "later still"})
    shorter = (await get(lively.tenant, made["file"])).content
    verdict = await genuine(lively.tenant, shorter)
    assert [one.erasure for one in verdict.erasures] == [str(erasure)], "its entry came after the export was ordered"
    await lively.tenant.record(WEB, subject={"type": "login", "id": "and later"})
    assert (await get(lively.tenant, made["file"])).content == shorter


async def test_an_order_is_an_entry_of_the_ledger_and_names_nobody(lively: Lively) -> None:
    made, _ = await export(lively.tenant, subject=lively.ada, format="csv")
    ledger = lively.tenant.services.ledgers.of(lively.tenant.log_id)
    async with ledger.connection() as connection:
        raw = await connection.fetchval("SELECT entry FROM ledger_entry WHERE idx = $1", made["size"])
        row = await connection.fetchrow("SELECT * FROM export")
    said = entry.read_system(raw)
    assert isinstance(said, entry.ExportMade)
    assert (str(said.export), said.size) == (made["id"], made["size"])
    assert said.by == ledger.hasher.once("credential", "dpo").hex()
    assert b"ada" not in raw
    assert "ada" not in str(dict(row))
    assert made["filter"]["subject"] == ledger.hasher.identifier(msgspec.convert(lively.ada, Subject)).hex()


CHOICES = [
    {"purposes": ["analytics"]},
    {"purposes": ["marketing.email"], "channels": ["web"]},
    {"channels": ["email"]},
    {"statuses": ["withdrawn", "objected"]},
    {"kinds": ["link"]},
    {"kinds": ["consent"], "actors": ["service"]},
    {"actors": ["publishable"]},
    {"actors": ["nobody"]},
]


def wanted(payload: dict[str, Any], choice: dict[str, Any]) -> bool:
    """The same rule, said once more."""
    kind = "link" if "change" in payload else "consent"
    if payload["credential"] not in choice.get("actors", [payload["credential"]]):
        return False
    if kind not in choice.get("kinds", [kind]):
        return False
    if not {"purposes", "channels", "statuses"} & set(choice):
        return True
    for record in payload.get("records", []):
        fits = [
            record["purpose"] in [*choice.get("purposes", [record["purpose"]]), "*"],
            record["channel"] in [*choice.get("channels", [record["channel"]]), None],
            record["status"] in choice.get("statuses", [record["status"]]),
        ]
        if all(fits):
            return True
    return False


async def test_a_filter_leaves_out_what_was_not_asked_for_and_nothing_else(lively: Lively) -> None:
    everything = opened((await export(lively.tenant))[1])
    for choice in CHOICES:
        made, file = await export(lively.tenant, **choice)
        verdict = await genuine(lively.tenant, file)
        expected = [line["index"] for line in everything if wanted(line["payload"], choice)]
        assert [line["index"] for line in opened(file)] == expected, choice
        assert verdict.manifest is not None
        assert verdict.manifest.counts.other == len(everything) - len(expected)
        assert {name: list(made["filter"][name]) for name in choice} == {k: sorted(v) for k, v in choice.items()}


async def test_a_time_is_a_range_of_entries_in_which_nothing_is_missing(lively: Lively, owner: db.Pool) -> None:
    rows = await events(lively.tenant)
    await erase(lively.tenant, owner, [rows[6]["idx"]], "retention")
    left = await events(lively.tenant)
    moments = sorted({row["recorded_at"] for row in rows})
    for start, end in [(0, 3), (3, 7), (5, len(moments) - 1), (2, None), (None, 4)]:
        choice = {}
        if start is not None:
            choice["from"] = moments[start].isoformat()
        if end is not None:
            choice["until"] = moments[end].isoformat()
        made, file = await export(lively.tenant, **choice)
        await genuine(lively.tenant, file)
        expected = [
            row["idx"] for row in left
            if (start is None or row["recorded_at"] >= moments[start])
            and (end is None or row["recorded_at"] < moments[end])
        ]  # fmt: skip
        assert [line["index"] for line in opened(file)] == expected
        assert made["first"] <= expected[0]
        assert expected[-1] < made["end"]
        assert (made["first"] > 0) == bool(start)


async def test_a_subjects_export_shows_that_its_history_is_complete(lively: Lively, owner: db.Pool) -> None:
    everything = opened((await export(lively.tenant))[1])
    mine = [lively.ada, lively.phone, lively.device]
    expected = [line["index"] for line in everything if line["payload"]["subject"] in mine]
    for asked in mine:
        made, file = await export(lively.tenant, subject=asked)
        await genuine(lively.tenant, file)
        assert [line["index"] for line in opened(file)] == expected, "whoever is linked now is the account"
        assert (made["first"], made["end"]) == (0, made["size"])
        strands = msgspec.json.decode(member(file, "strands.json"))
        assert sum(one["events"] for one in strands) == len(expected)
        assert sum(one["account"] for one in strands) == 1
    await erase(lively.tenant, owner, [expected[1]])
    _, file = await export(lively.tenant, subject=lively.ada)
    await genuine(lively.tenant, file)
    assert [line["index"] for line in opened(file)] == [index for index in expected if index != expected[1]]
    _, file = await export(lively.tenant, subject=lively.ada, statuses=["withdrawn"])
    await genuine(lively.tenant, file)
    assert len(opened(file)) == 1


async def test_a_thing_that_changed_hands_brings_one_tenure_only(lively: Lively) -> None:
    bob = {"type": "login", "id": "=bob"}
    _, file = await export(lively.tenant, subject=bob)
    await genuine(lively.tenant, file)
    said = [(line["payload"]["subject"]["id"], line["payload"].get("records")) for line in opened(file)]
    assert [records[0]["purpose"] for subject, records in said if subject == "SN-1" and records] == ["*"]
    _, file = await export(lively.tenant, subject=lively.drone)
    await genuine(lively.tenant, file)
    assert {line["payload"]["subject"]["id"] for line in opened(file)} == {"SN-1"}
    assert len(opened(file)) == 1, "what was said on it since nobody has it; the rest is theirs who had it"


async def test_what_was_annulled_is_not_followed(lively: Lively) -> None:
    tenant = lively.tenant
    link = next(
        line["payload"]["link"] for line in opened((await export(tenant))[1])
        if line["payload"].get("link") and line["payload"]["subject"] == lively.phone
    )  # fmt: skip
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        await connection.execute("UPDATE link SET annul_asked = 'boss' WHERE link = $1", uuid.UUID(link))
    before, _ = await export(tenant, subject=lively.ada)
    answer = await tenant.post(f"/v1/links/{link}/annul", {"reason": "false"}, key="dpo")
    assert answer.status_code == 200, answer.text
    row = await exports.find(ledger, before["id"])
    with pytest.raises(NotFound, match="annulled"):
        await exports.fetch(ledger, row)
    refused = await get(tenant, before["file"])
    assert (refused.status_code, "annulled" in refused.json()["detail"]) == (404, True), "nor given out any more"
    _, file = await export(tenant, subject=lively.ada)
    await genuine(tenant, file)
    assert lively.phone not in [line["payload"]["subject"] for line in opened(file)]


@pytest.mark.parametrize(("body", "pointers"), [
    ({"purposes": ["analytics", "nonsense", "rubbish"]}, ["/purposes/1", "/purposes/2"]),
    ({"channels": ["smoke"]}, ["/channels/0"]),
    ({"statuses": ["maybe"], "kinds": ["thing"]}, ["/statuses/0", "/kinds/0"]),
    ({"from": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, ["/until"]),
    ({"from": "yesterday"}, ["/from"]),
    ({"format": "xml"}, ["/format"]),
    ({"subject": {"type": "login", "id": " ada"}}, ["/subject/id"]),
    ({"actors": ["service", "a\0"]}, ["/actors/1"]),
])  # fmt: skip
async def test_what_cannot_be_asked_for_is_told_by_its_place(tenant: Tenant, body: Any, pointers: list[str]) -> None:
    answer = await tenant.post("/v1/exports", body, key="dpo")
    assert answer.status_code == 422
    assert [wrong["pointer"] for wrong in answer.json()["errors"]] == pointers


async def test_exports_of_others_are_not_there(lively: Lively, make_tenant: Any, demo_policy: Policy) -> None:
    other = await make_tenant.make(demo_policy)
    made, _ = await export(lively.tenant)
    for path in (made["file"], f"/v1/exports/{made['id']}"):
        assert (await get(other, path)).status_code == 404
        assert (await get(lively.tenant, path.replace(made["id"], str(uuid.uuid4())))).status_code == 404
        assert (await get(lively.tenant, path.replace(made["id"], "none"))).status_code == 404
        assert (await get(lively.tenant, path, key="service")).status_code == 403


async def test_a_key_of_another_ledger_proves_nothing(lively: Lively, make_tenant: Any, demo_policy: Policy) -> None:
    other = await make_tenant.make(demo_policy)
    _, file = await export(lively.tenant)
    verdict = await verified(other, file)
    assert (verdict.genuine, set(verdict.counts)) == (False, {"signature"})
    _, table = await export(lively.tenant, format="parquet")
    assert set((await verified(other, table)).counts) == {"signature"}
    alone = audit.verify(io.BytesIO(file), None)
    assert (alone.genuine, alone.consistent, alone.trusted) == (False, True, False)
    first, *rest = as_text(alone).split("\n")
    assert first.startswith("NOT CHECKED whose it is")
    assert rest[0].strip() in [str(log) for log in (await known(lively.tenant)).logs]
    assert not any(line.startswith("Genuine") for line in rest)


async def test_what_is_older_than_a_rotation_is_verified_by_the_keys_that_the_status_tells(lively: Lively) -> None:
    """One that was ordered before it and fetched after is signed by both: its checkpoint then, its manifest now."""
    ledger = lively.tenant.services.ledgers.of(lively.tenant.log_id)
    ordered, before = await export(lively.tenant)
    async with ledger.connection() as connection:
        await turns.add_key(connection, ledger)
        await turns.retire_key(connection, ledger)
        status = await standing.status(connection, ledger)
    across = (await get(lively.tenant, ordered["file"])).content
    assert not set(status.keys) & set(status.retired)
    for file in (before, across):
        assert audit.verify(io.BytesIO(file), Trust.parse(trusting([*status.keys, *status.retired]))).genuine
        assert set(audit.verify(io.BytesIO(file), Trust.parse(trusting(status.keys))).counts) == {"signature"}


async def test_the_files_head_alone_is_asked_for_without_work(lively: Lively) -> None:
    made, _ = await export(lively.tenant)
    key = {"Authorization": f"Bearer {lively.tenant.keys['dpo']}"}
    answer = await lively.tenant.http.head(made["file"], headers=key)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/zip"
    assert made["id"] in answer.headers["content-disposition"]


async def test_an_export_while_writes_go_on_is_that_of_its_moment(lively: Lively) -> None:
    stop = asyncio.Event()

    async def write() -> int:
        count = 0
        while not stop.is_set():
            await lively.tenant.record(WEB, subject={"type": "login", "id": f"w-{count}"})
            count += 1
        return count

    writing = asyncio.create_task(write())
    before = len(await events(lively.tenant))
    made = [await export(lively.tenant) for _ in range(5)]
    both = await asyncio.gather(*(get(lively.tenant, made[0][0]["file"]) for _ in range(2)))
    stop.set()
    assert await writing > 0
    assert {answer.content for answer in both} == {made[0][1]}
    sizes = []
    for _, file in made:
        verdict = await genuine(lively.tenant, file)
        assert verdict.manifest is not None
        sizes.append(verdict.manifest.counts.opened)
    assert sizes == sorted(sizes)
    assert sizes[0] >= before


class Client:
    """Somebody on the other end of a download, who may leave, or stop reading."""

    def __init__(self, tenant: Tenant, path: str) -> None:
        head = [(b"authorization", f"Bearer {tenant.keys['dpo']}".encode())]
        self.scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": head,
                      "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}  # fmt: skip
        self.left, self.reads = asyncio.Event(), asyncio.Event()
        self.reads.set()
        self.messages: list[Any] = []

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        await self.reads.wait()


@pytest.mark.parametrize("way", ["leaves", "stops reading"])
async def test_a_client_that_goes_or_stalls_ends_the_delivery(lively: Lively, way: str) -> None:
    made, _ = await export(lively.tenant)
    client = Client(lively.tenant, made["file"])
    guarded = app.build(lively.tenant.services)
    guarded._answer_s = 0.1
    if way == "leaves":
        client.left.set()
    else:
        client.reads.clear()
    async with asyncio.timeout(5):
        await guarded(client.scope, client.receive, client.send)
    assert len(client.messages) <= 2
    assert client.messages[-1].get("more_body", True), "what was sent is not taken for a whole file"
    assert lively.tenant.services.pool.get_idle_size() == lively.tenant.services.pool.get_size(), "nothing is held"


async def test_other_calls_go_on_while_a_file_is_made(lively: Lively, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on events is done in chunks, off the loop: between two of them everybody gets a turn."""
    monkeypatch.setattr(delivery, "_CHUNK", 1)
    made, first = await export(lively.tenant)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(turn())
    assert (await get(lively.tenant, made["file"])).content == first
    counting.cancel()
    assert turns > len(await events(lively.tenant))


async def test_pages_are_joined_without_a_seam(lively: Lively, owner: db.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = await events(lively.tenant)
    for place in (2, 5, 6):
        await erase(lively.tenant, owner, [rows[place]["idx"]])
    made, first = await export(lively.tenant)
    of_ada, ada = await export(lively.tenant, subject=lively.ada)
    for name, count in (("PAGE", 4), ("_CHUNK", 2), ("_MAX_KEYS", 1)):
        monkeypatch.setattr(delivery, name, count)
    assert (await get(lively.tenant, made["file"])).content == first
    assert (await get(lively.tenant, of_ada["file"])).content == ada
    for name, count in (("BUNDLE", 8), ("LISTED", 1)):
        monkeypatch.setattr(form, name, count)
    many = (await get(lively.tenant, made["file"])).content
    assert b"entries/00000002" in many
    await genuine(lively.tenant, many)


async def test_a_checkpoint_that_was_published_is_the_one_that_is_exported(lively: Lively) -> None:
    """With whoever else signed it, and its timestamp."""
    tenant = lively.tenant
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        status = await standing.status(connection, ledger)
        note = status.checkpoint + Signer("witness.example", bytes(32), WITNESS).line("x", 1)
        await connection.execute(
            "INSERT INTO checkpoint (log_id, epoch, size, note, timestamp) VALUES ($1, 1, $2, $3, $4)",
            tenant.log_id, status.size, note, b"token",
        )  # fmt: skip
    _, file = await export(tenant)
    await genuine(tenant, file)
    assert member(file, "checkpoint").decode() == note
    assert member(file, "timestamp.tsr") == b"token"


@pytest.mark.parametrize("place", [0, 3, -1])
async def test_a_range_of_which_entries_are_lost_is_not_signed(lively: Lively, owner: db.Pool, place: int) -> None:
    made, _ = await export(lively.tenant)
    ledger = lively.tenant.services.ledgers.of(lively.tenant.log_id)
    row = await exports.find(ledger, made["id"])
    async with db.connection(owner, lively.tenant.log_id) as connection:
        gone = range(row.end)[place]
        await connection.execute("DELETE FROM ledger_entry WHERE log_id = $1 AND idx = $2", ledger.log_id, gone)
    pieces = await exports.fetch(ledger, row)
    with pytest.raises(NotFound, match="does not hold the whole ledger"):
        b"".join([piece async for piece in pieces])


def test_only_what_is_wrong_with_the_file_is_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost database is no file that cannot be written, and a full disk is no lost database."""
    lost = pytest.raises(ConnectionResetError, match="by peer")
    with lost, exports.saving(tmp_path / "x.zip") as take:
        take(b"some")
        raise ConnectionResetError("by peer")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SetupError, match="No such file"), exports.saving(tmp_path / "no" / "x.zip"):
        pass
    with exports.saving(tmp_path / "x.zip") as take:
        take(b"whole")
    assert [(file.name, file.read_bytes(), file.stat().st_mode & 0o777) for file in tmp_path.iterdir()] == [
        ("x.zip", b"whole", 0o600)
    ]  # fmt: skip
    monkeypatch.setattr(draft, "private", lambda _path, flags: os.open("/dev/full", flags & ~os.O_CREAT))
    full = pytest.raises(SetupError, match="No space left")
    with full, exports.saving(tmp_path / "y.zip") as take, db.told():
        take(bytes(1 << 20))


async def test_a_frozen_ledger_takes_no_order(lively: Lively, owner: db.Pool) -> None:
    async with db.connection(owner) as connection:
        await connection.execute("UPDATE ledger_head SET frozen = 'rest' WHERE log_id = $1", lively.tenant.log_id)
    answer = await lively.tenant.post("/v1/exports", {}, key="dpo")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/frozen")


async def test_purposes_of_an_earlier_policy_can_be_asked_for(lively: Lively, demo_policy: Policy) -> None:
    tenant = lively.tenant
    without = {name: purpose for name, purpose in demo_policy.purposes.items() if name != "newsletter"}
    later = msgspec.structs.replace(demo_policy, purposes=without)
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), later)
    made, _ = await export(tenant, purposes=["newsletter"])
    assert made["filter"]["purposes"] == ["newsletter"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["yes", "no", "all", "link", "end", "erase"]),
        st.integers(0, 2),
    ),
    max_size=14,
)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "purposes": st.lists(st.sampled_from(["analytics", "marketing.email"]), max_size=2),
        "channels": st.lists(st.sampled_from(["web", "email"]), max_size=2),
        "statuses": st.lists(st.sampled_from(["given", "withdrawn", "objected"]), max_size=2),
        "kinds": st.lists(st.sampled_from(["consent", "link"]), max_size=2),
        "actors": st.lists(st.sampled_from(["service", "dpo"]), max_size=2),
        "subject": st.integers(0, 2),
        "from": st.integers(0, 20),
        "until": st.integers(0, 20),
        "format": st.sampled_from(["ndjson", "csv"]),
    },
)


@pytest.fixture
def fresh(make_tenant: Any, demo_policy: Policy) -> Any:
    """Makes a tenant; a plain function, which can be shown in a line."""

    async def make() -> Tenant:
        return await make_tenant.make(demo_policy)

    return make


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, asked=st.lists(ASKED, min_size=1, max_size=3))
async def test_whatever_happened_and_is_asked_for_what_is_opened_is_what_there_is(
    fresh: Any, owner: db.Pool, steps: list[Any], asked: list[dict[str, Any]]
) -> None:
    tenant = await fresh()
    phones = [{"type": "phone", "id": f"+49 30 {number}"} for number in range(3)]
    linked: list[str] = []
    for step, number in steps:
        match step:
            case "yes":
                await tenant.record(WEB, *([MAIL] if number else []), subject=phones[number])
            case "no" | "all":
                said = NO if step == "no" else ALL
                await tenant.post("/v1/consents", {"subject": phones[number], "records": [said]})
            case "link":
                body = {"identifier": phones[number], "login": {"type": "login", "id": "ada"}, "replace": True}
                linked += [answer.json()["link"]] if (answer := await tenant.post("/v1/links", body)).is_success else []
            case "end":
                if linked:
                    await tenant.post(f"/v1/links/{linked.pop()}/end", {})
            case "erase":
                rows = await events(tenant)
                if some := [row["idx"] for row in rows[number :: max(2, len(rows) // 2)]]:
                    await erase(tenant, owner, some)
    await compare(tenant, phones, asked)


async def compare(tenant: Tenant, phones: list[dict[str, str]], asked: list[dict[str, Any]]) -> None:
    """What is opened, with what the history of the database says by the same wish."""
    everything = opened((await export(tenant))[1])
    assert [line["index"] for line in everything] == [row["idx"] for row in await events(tenant)]
    moments = sorted({line["payload"]["recorded_at"] for line in everything}) or ["2026-01-01T00:00:00Z"]
    for one in asked:
        choice = {name: value for name, value in one.items() if value != []}
        for name in ("from", "until"):
            if name in choice:
                choice[name] = moments[choice[name] % len(moments)]
        if "subject" in choice:
            choice["subject"] = phones[choice["subject"]]
        if choice.get("from", "") >= choice.get("until", "9"):
            del choice["until"]
        _, file = await export(tenant, **choice)
        verdict = await genuine(tenant, file)
        rest = {name: value for name, value in choice.items() if name not in ("from", "until", "subject", "format")}
        within = [
            line for line in everything
            if choice.get("from", "") <= line["payload"]["recorded_at"] < choice.get("until", "9")
            and wanted(line["payload"], rest)
        ]  # fmt: skip
        assert verdict.manifest is not None
        if "subject" not in choice:
            assert verdict.manifest.counts.opened == len(within)
        elif "format" not in choice or choice["format"] == "ndjson":
            found = [line["index"] for line in opened(file)]
            own = [line["index"] for line in within if line["payload"]["subject"] == choice["subject"]]
            assert set(found) <= {line["index"] for line in within}
            others = {"phone"} if not any("change" in line["payload"] for line in everything) else {"phone", "login"}
            assert {line["payload"]["subject"]["type"] for line in opened(file)} <= others
            assert set(own) <= set(found) or others == {"phone", "login"}


async def test_proof_that_was_held_and_is_released_was_erased_once(lively: Lively, owner: db.Pool) -> None:
    """Its events are named by two erasures: the person's, and the end of the hold."""
    indexes = [row["idx"] for row in await events(lively.tenant)][:2]
    await erase(lively.tenant, owner, indexes)
    await erase(lively.tenant, owner, indexes[:1], "retention")
    _, file = await export(lively.tenant)
    found = await genuine(lively.tenant, file)
    assert found.manifest is not None
    assert (found.manifest.counts.erased, found.manifest.counts.other) == (2, 0)


@pytest.mark.parametrize("part", ["events", "strands", "erasures"])
async def test_who_is_erased_while_the_file_is_written_makes_no_liar_of_it(
    lively: Lively, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    tenant = lively.tenant
    made = (await tenant.post("/v1/exports", {"subject": lively.ada}, key="dpo")).json()
    before = getattr(delivery._Delivery, part)

    async def after_the_erasure(self: Any) -> Any:
        answer = await tenant.post("/v1/subjects/erase", {"subject": lively.ada}, key="dpo")
        assert answer.status_code in (200, 201), answer.text
        async for piece in before(self):
            yield piece

    monkeypatch.setattr(delivery._Delivery, part, after_the_erasure)
    await genuine(tenant, (await get(tenant, made["file"])).content)


async def test_an_erasure_cannot_name_what_is_yet_to_come(lively: Lively, owner: db.Pool) -> None:
    """Else whoever signs could have some ready, and drop what comes to displease."""
    last = max(row["idx"] for row in await events(lively.tenant))
    await erase(lively.tenant, owner, range(last + 2, last + 6))
    for number in range(4):
        await lively.tenant.record(WEB, subject={"type": "login", "id": f"later-{number}"})
    async with db.connection(owner, lively.tenant.log_id) as connection:
        await connection.execute("DELETE FROM event WHERE log_id = $1 AND idx > $2", lively.tenant.log_id, last)
    _, file = await export(lively.tenant)
    found = await verified(lively.tenant, file)
    assert "suppressed" in found.counts


async def test_evidence_that_grows_when_it_is_kept_is_refused(lively: Lively) -> None:
    """RFC 8785 writes some numbers out: 1e20 has 21 digits."""
    evidence = b'{"a":[' + b",".join([b"1e20"] * 12_500) + b"]}"
    body = msgspec.json.encode({
        "id": uuid.uuid4().hex, "subject": lively.ada, "records": [WEB], "method": "form", "notice": NOTICE,
        "evidence": msgspec.Raw(evidence),
    })  # fmt: skip
    answer = await lively.tenant.post("/v1/consents", body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/evidence"), answer.text


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_long_evidence_is_exported_and_proved(lively: Lively, form: str) -> None:
    evidence = {"a": ["é" * 100] * 300}
    told = await lively.tenant.record(WEB, subject=lively.ada, evidence=evidence)
    assert told.status_code == 201, told.text
    receipt.verify(told.json()["receipt"], await known(lively.tenant))
    _, file = await export(lively.tenant, format=form)
    await genuine(lively.tenant, file)


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
async def test_whatever_people_send_cannot_spoil_an_export(tenant: Tenant, kind: str) -> None:
    """Evidence that packs as tightly as it can, and stands in CSV at six times its length."""
    for _ in range(15):
        answer = await tenant.record(WEB, subject={"type": "login", "id": "ada"}, evidence={"note": ";" * 64_900})
        assert answer.status_code == 201, answer.text
    _, file = await export(tenant, format=kind)
    await genuine(tenant, file)


class Random:
    """Links, ends, annulments, erasures and looks in any order."""

    def __init__(self, tenant: Tenant, seed: int) -> None:
        self.tenant, self.chance = tenant, random.Random(seed)
        self.people = [{"type": "login", "id": name} for name in ("ada", "bob")]
        self.things = [{"type": kind, "id": "+49301"} for kind in ("phone", "loyalty", "asset")]
        self.home = {"type": "household", "id": "home"}
        self.links: list[str] = []

    def anybody(self) -> dict[str, str]:
        return self.chance.choice([*self.people, *self.things])

    async def step(self) -> None:
        acts = [self.link, self.link, self.link, self.member, self.group, self.say, self.look, self.erase]
        await self.chance.choice([*acts, self.end, self.annul] if self.links else acts)()

    async def _tie(self, **body: Any) -> None:
        answer = await self.tenant.post("/v1/links", body)
        self.links.extend([answer.json()["link"]] if answer.is_success else [])

    async def link(self) -> None:
        await self._tie(identifier=self.chance.choice(self.things), login=self.chance.choice(self.people), replace=True)

    async def member(self) -> None:
        await self._tie(identifier=self.people[0], login=self.people[1], replace=True)

    async def group(self) -> None:
        await self._tie(identifier=self.anybody(), group=self.home)

    async def say(self) -> None:
        await self.tenant.record(WEB, subject=self.anybody())

    async def look(self) -> None:
        await self.tenant.post("/v1/subjects/history", {"subject": self.anybody()}, key="dpo")

    async def erase(self) -> None:
        await self.tenant.post("/v1/subjects/erase", {"subject": self.anybody()}, key="dpo")

    async def end(self) -> None:
        await self.tenant.post(f"/v1/links/{self.chance.choice(self.links)}/end", {})

    async def annul(self) -> None:
        link = self.chance.choice(self.links)
        async with self.tenant.services.ledgers.of(self.tenant.log_id).connection() as connection:
            await connection.execute("UPDATE link SET annul_asked = 'boss' WHERE link = $1", uuid.UUID(link))
        await self.tenant.post(f"/v1/links/{link}/annul", {"reason": "false"}, key="dpo")


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happened_the_exports_of_everybody_are_genuine(tenant: Tenant, seed: int) -> None:
    history = Random(tenant, seed)
    for _ in range(22):
        await history.step()
    for one in [None, *history.people, *history.things, history.home]:
        _, file = await export(tenant, **({} if one is None else {"subject": one}))
        await genuine(tenant, file)


async def test_a_ledger_that_freezes_under_way_signs_nothing(
    lively: Lively, owner: db.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = lively.tenant
    made = (await tenant.post("/v1/exports", {}, key="dpo")).json()
    before = delivery._Delivery.events

    async def frozen(self: Any) -> Any:
        async with db.connection(owner) as connection:
            await connection.execute("UPDATE ledger_head SET frozen = 'older' WHERE log_id = $1", tenant.log_id)
        async for piece in before(self):
            yield piece

    monkeypatch.setattr(delivery._Delivery, "events", frozen)
    with pytest.raises(AssertionError):  # the connection is cut: the answer has no end
        await get(tenant, made["file"])
