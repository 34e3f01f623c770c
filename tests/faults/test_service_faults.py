"""What the running service survives: kills of any part at any moment, and a database that goes away at the worst one.

Each promise stands beside a control in which it is broken: without idempotency keys, kills do double records.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg
import httpx
import msgspec
import pytest
from demos import (
    CONSENT,
    Client,
    Demo,
    act,
    alive,
    is_free,
    new_place,
    running,
    subject,
    within,
)

from consent_service import app, db
from consent_service.consents import write
from consent_service.consents.prepare import Act
from consent_service.guard import Guard
from consent_service.ledger import Batcher, receipt
from consent_service.ledger.entry import PERSONAL, personal, tag
from consent_service.ledger.proof import Proof
from consent_service.ledger.tree import Frontier, leaf_hash
from consent_service.ledger.trust import Trust, trusting
from consent_service.vault import Place, Vault

LOST = (OSError, http.client.HTTPException)


# -- kill -9 between any two steps ------------------------------------------------------------------------------------


STEPS = ("record", "check allow", "withdraw", "check deny")


@pytest.mark.parametrize(
    "gap",
    [{1, 2, 3}, *(pytest.param({gap}, marks=pytest.mark.slow) for gap in (1, 2, 3))],
    ids=lambda gap: ", ".join(STEPS[n - 1] for n in gap),
)
def test_the_core_loop_survives_a_kill_of_everything_after(place: Path, gap: set[int]):
    demo = Demo(place).ready()
    keys, port = demo.keys, demo.port
    try:
        for number, step in enumerate(STEPS):
            if number in gap:
                workers, server = demo.workers(), demo.postmaster()
                assert len(workers) == 1
                demo.kill_group()
                assert within(2, lambda port=port: is_free(port))
                demo = Demo(place, port=port).ready()
                assert not any(alive(pid) for pid in (*workers, server))
                assert demo.keys == keys
                assert demo.port == port
            with demo.client() as client:
                take(step, client)
    finally:
        assert demo.stop() == 0, demo.said()


def take(step: str, client: Client) -> None:
    match step:
        case "record":
            assert client.record("ada").status == 201
        case "check allow":
            assert client.check("ada").allow == (True, "consent")
        case "withdraw":
            assert client.record("ada", "withdrawn").status == 201
        case "check deny":
            assert client.check("ada").allow == (False, "withdrawn")
            assert [e["event"]["records"][0]["status"] for e in client.history("ada")] == ["given", "withdrawn"]


# -- kills under load -------------------------------------------------------------------------------------------------


KILLS = ("group", "worker", "supervisor", "postmaster")
CLIENTS = 6
SHARED = [f"shared-{n}" for n in range(5)]


class Load:
    """Clients that record and withdraw, each act repeated until it is acknowledged; the places change with restarts."""

    def __init__(self, demo: Demo, *, keep_key: bool = True) -> None:
        self.demo = demo
        self.keep_key = keep_key
        self.acknowledged: dict[str, tuple[str, dict[str, Any]]] = {}
        """By act: whose it was, and the answer."""
        self.withdrawn: list[str] = []
        self.wrong: list[object] = []
        self.retries = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:  # noqa: PYI034
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        choose = random.Random(number)
        client = self.demo.client(patience=5)
        try:
            while not self._stop.is_set():
                if choose.random() < 0.25:
                    who = f"own-{number}-{uuid.uuid4().hex[:8]}"
                    client = self._insist(client, who, "given")
                    client = self._insist(client, who, "withdrawn")
                    self.withdrawn.append(who)
                else:
                    status = choose.choice(("given", "given", "refused"))
                    client = self._insist(client, choose.choice(SHARED), status)
                self._look(client, choose)
        except Exception as error:  # noqa: BLE001 -- a thread's failure is the test's
            self.wrong.append(error)
        finally:
            client.close()

    def _insist(self, client: Client, who: str, status: str) -> Client:
        """Record one act until it is acknowledged, wherever the service is by then."""
        name = uuid.uuid4().hex
        body = act(who, status, id=name, evidence={"n": name})
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                answer = client.call("POST", "/v1/consents", body)
            except LOST:
                answer = None
            if answer is not None and answer.status == 201:
                with self._lock:
                    self.acknowledged[name] = who, answer.body
                return client
            if answer is not None and answer.status != 503:
                self.wrong.append(answer)
            self.retries += 1
            client.close()
            time.sleep(0.05)
            client = self.demo.client(patience=5)
            if not self.keep_key:
                body = body | {"id": uuid.uuid4().hex}
        raise TimeoutError(f"{who} {status} was not acknowledged within a minute")

    def _look(self, client: Client, choose: random.Random) -> None:
        """Whoever has withdrawn stays denied, all the time."""
        if self.withdrawn:
            with suppress(*LOST):
                answer = client.check(choose.choice(self.withdrawn))
                if answer.status != 503 and answer.allow != (False, "withdrawn"):
                    self.wrong.append(answer)


def strike(demo: Demo, part: str) -> Demo:
    """Kill a part of the service; the service that runs afterwards."""
    workers, server = demo.workers(), demo.postmaster()
    match part:
        case "group":
            demo.kill_group()
        case "supervisor":
            os.kill(demo.pid, signal.SIGKILL)
            demo.process.wait(10)
            assert within(2, lambda: not any(alive(pid) for pid in workers)), "workers outlive their supervisor"
        case "worker":
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
        case "postmaster":
            os.kill(server, signal.SIGKILL)
    if part in {"group", "supervisor"}:
        assert within(2, lambda: is_free(demo.port)), "the port is not free"
        demo = Demo(demo.place, port=demo.port).ready()
    return demo


def torment(load: Load, order: list[str], choose: random.Random) -> None:
    """Strike again and again, each time once the clients get through."""
    for part in order:
        before = len(load.acknowledged)
        assert within(30, lambda before=before: len(load.acknowledged) >= before + 20), (part, load.demo.said())
        time.sleep(choose.uniform(0, 0.5))
        load.demo = strike(load.demo, part)
    before = len(load.acknowledged)
    assert within(30, lambda: len(load.acknowledged) >= before + 20), load.demo.said()


async def ledger(demo: Demo) -> SimpleNamespace:
    """What the database holds."""
    connection = await asyncpg.connect(demo.database_url())
    try:
        events = await connection.fetch(
            """SELECT log_id, idx, event, identifier, tenure, sequence, recorded_at, payload, key
               FROM event JOIN strand USING (log_id, identifier, tenure) ORDER BY idx"""
        )
        head = await connection.fetchrow("SELECT size, frontier, recorded_at FROM ledger_head")
        entries = await connection.fetch("SELECT idx, entry FROM ledger_entry ORDER BY idx")
        kept = await connection.fetchval("SELECT count(*) FROM idempotency")
        counted = dict(await connection.fetch("SELECT identifier, events FROM strand"))
    finally:
        await connection.close()
    vault = Vault((demo.data / "secret").read_text().strip().encode(), demo.data / "key-encryption-keys")
    return SimpleNamespace(events=events, entries=entries, head=head, kept=kept, counted=counted, vault=vault)


def assert_whole(found: SimpleNamespace) -> None:
    """The ledger's own promises: no gap, no step back in time, every sequence from 1."""
    assert [row["idx"] for row in found.entries] == list(range(found.head["size"]))
    grown = Frontier().grown([leaf_hash(row["entry"]) for row in found.entries])
    assert grown.frontier.write() == found.head["frontier"]
    about = {row["idx"]: row["entry"] for row in found.entries if row["entry"][:1] == PERSONAL}
    assert list(about) == [row["idx"] for row in found.events]
    for row in found.events:
        key = found.vault.open(Place(row["log_id"], row["identifier"], row["tenure"]), row["key"])
        payload = key.open(row["event"].bytes, row["payload"])
        assert about[row["idx"]] == personal(tag(key.tags, row["sequence"]), key.salt(row["event"]), payload)
    times = [row["recorded_at"] for row in found.events]
    assert times == sorted(times)
    assert not times or found.head["recorded_at"] >= times[-1]
    sequences: dict[bytes, list[int]] = {}
    for row in found.events:
        sequences.setdefault(row["identifier"], []).append(row["sequence"])
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in sequences.values())
    assert found.counted == {identifier: len(numbers) for identifier, numbers in sequences.items()}
    assert len({row["event"] for row in found.events}) == len(found.events) == found.kept


def times_recorded(found: SimpleNamespace) -> Counter[str]:
    def said(row: Any) -> str:
        key = found.vault.open(Place(row["log_id"], row["identifier"], row["tenure"]), row["key"])
        return str(msgspec.json.decode(key.open(row["event"].bytes, row["payload"]))["evidence"]["n"])

    return Counter(map(said, found.events))


def assert_proved(found: SimpleNamespace, load: Load) -> None:
    """Every receipt that was handed out is genuine, and its entry stands in the tree at its index."""
    data, tenant = str(load.demo.data), str(load.demo.facts["tenant"])
    told = subprocess.check_output([CONSENT, "ledger", "status", "--data", data, "--tenant", tenant, "--json"])
    status = json.loads(told)
    assert status["frozen"] is None
    trust, places = Trust.parse(trusting(status["keys"])), set()
    for name, (_, answer) in load.acknowledged.items():
        proved = receipt.verify(answer["receipt"], trust)
        opened = msgspec.json.decode(Proof.parse(answer["receipt"]).extra or b"", type=receipt.Opening)
        assert found.entries[proved.index]["entry"] == opened.entry
        assert json.loads(proved.payload)["evidence"]["n"] == name
        leaves = [leaf_hash(row["entry"]) for row in found.entries[: proved.checkpoint.size]]
        if len(places) < 20:  # the whole tree of each would take minutes; each is in one that the log signed
            assert Frontier().grown(leaves).root == proved.checkpoint.root
        places.add(proved.index)
    assert len(places) == len(load.acknowledged)


async def torment_and_compare(place: Path, order: list[str], seed: int) -> dict[str, Any]:
    """Kill under load, then compare what was acknowledged with what is there; the figures."""
    choose, kills = random.Random(seed), len(order)
    choose.shuffle(order)
    began = time.monotonic()
    load = Load(Demo(place).ready())
    try:
        with load:
            await asyncio.to_thread(torment, load, order, choose)
        took = time.monotonic() - began
        assert load.wrong == []
        found = await ledger(load.demo)
        assert_whole(found)
        # Every client has gone on until it was answered, so what is there is what was acknowledged: no more, no less.
        assert times_recorded(found) == Counter(load.acknowledged.keys())
        assert_proved(found, load)
        with load.demo.client() as client:
            for who in {who for who, _ in load.acknowledged.values()}:
                history = client.history(who)
                assert [e["sequence"] for e in history] == list(range(1, len(history) + 1))
                told = {e["event"]["evidence"]["n"]: e["event"]["event"] for e in history}
                assert len(told) == len(history)
                mine = {n: answer["event"] for n, (whose, answer) in load.acknowledged.items() if whose == who}
                assert told == mine
            assert len(load.withdrawn) > kills
            assert {client.check(who).allow for who in load.withdrawn} == {(False, "withdrawn")}
    finally:
        code = load.demo.stop()
    assert code == 0, load.demo.said()
    return {"kills": kills, "acts": len(load.acknowledged), "retries": load.retries, "seconds": round(took, 1)}


async def test_kills_under_load_lose_nothing_and_double_nothing(place: Path):
    print(await torment_and_compare(place, [*KILLS, *KILLS], seed=20))  # noqa: T201 -- the figures, with -s


@pytest.mark.slow
@pytest.mark.parametrize("seed", [21, 22])
async def test_fifty_kills_under_load_lose_nothing_and_double_nothing(place: Path, seed: int):
    """30 of parts of the service, and 20 of the database."""
    order = [*("group", "worker", "supervisor") * 10, *("postmaster",) * 20]
    print(await torment_and_compare(place, order, seed))  # noqa: T201


async def dawdle(demo: Demo) -> None:
    """Let commits take 50 ms, so that a kill at any moment mostly falls between a COMMIT and its answer."""
    connection = await asyncpg.connect(demo.database_url().replace("consent@/consent", "postgres@/postgres"))
    try:
        await connection.execute("ALTER SYSTEM SET commit_delay = 50000")
        await connection.execute("ALTER SYSTEM SET commit_siblings = 0")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


async def test_control_without_their_keys_retries_double_records(place: Path):
    def kill_until_doubled() -> tuple[int, int]:
        for kill in range(1, 16):
            before = len(load.acknowledged)
            assert within(30, lambda before=before: len(load.acknowledged) >= before + 20), load.demo.said()
            load.demo = strike(load.demo, "worker")
            doubles = sum(n > 1 for n in times_recorded(asyncio.run(ledger(load.demo))).values())
            if doubles:
                return kill, doubles
        return 0, 0

    with running(place) as demo:
        await dawdle(demo)
        load = Load(demo, keep_key=False)
        with load:
            kills, doubles = await asyncio.to_thread(kill_until_doubled)
        assert doubles, "the fault does not bite"
        assert_whole(await ledger(demo))
    print({"kills": kills, "doubles": doubles})  # noqa: T201


# -- a connection that is lost at the worst moment --------------------------------------------------------------------


_WRITES = b'"recorded_at":'
"""Stands in what is sent with the statement that writes a batch and commits by itself."""


class Proxy:
    """Stands between the service and PostgreSQL, and cuts or freezes what passes."""

    def __init__(self, database_url: str, folder: Path) -> None:
        parts = urlsplit(database_url)
        query = parse_qs(parts.query)
        self._to = query["host"][0] if "host" in query else None
        self._at = unquote(parts.hostname or ""), parts.port or 5432
        self._port = int(query.get("port", ["5432"])[0])
        self._socket = folder / ".s.PGSQL.5432"
        who = parts.netloc.rpartition("@")[0]
        self.url = f"postgresql://{who}@{parts.path}?host={quote(str(folder))}&port=5432"
        self.cut: str = ""
        """Where to cut at a COMMIT: `before` it is passed on, `after` it, or nowhere."""
        self.cuts = 0
        self.times = 0
        """How many cuts are left."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._over = asyncio.Event()
        self._frozen: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:  # noqa: PYI034
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.thaw()
        self._over.set()
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    def freeze(self) -> None:
        """No byte passes, and nobody is told."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def abandon(self) -> None:
        """What is connected now stays frozen for ever; new connections are served."""
        self._frozen |= self._open

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        if self._to is not None:
            up = await asyncio.open_unix_connection(f"{self._to}/.s.PGSQL.{self._port}")
        else:
            up = await asyncio.open_connection(*self._at)
        both = {writer, up[1]}
        self._open |= both
        answers = asyncio.create_task(self._pass(up[0], writer))
        try:
            await self._ask(reader, up[1], answers)
        except OSError:
            pass
        finally:
            answers.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await answers
            self._open -= both
            for end in both:
                end.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, up: asyncio.StreamWriter, answers: asyncio.Task[None]) -> None:
        while data := await self._read(reader, up):
            if self.times and _WRITES in data:
                self.times -= 1
                self.cuts += 1
                if self.cut == "after":
                    answers.cancel()
                    with suppress(asyncio.CancelledError):
                        await answers
                    up.write(data)
                    await asyncio.sleep(0.1)  # it commits; its answer is read by nobody
                return
            up.write(data)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await self._read(reader, writer):
                writer.write(data)
        writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        data = await reader.read(65_536)
        await self._flowing.wait()
        if writer in self._frozen:
            await self._over.wait()
        return data


class Behind:
    """The whole application with its database behind a proxy."""

    def __init__(self, proxy: Proxy, tenant: Any, http: httpx.AsyncClient, made: app.Services) -> None:
        self.proxy = proxy
        self.tenant = tenant._replace(http=http, services=made)

    async def act(self, who: dict[str, str], key: str, status: str = "given") -> httpx.Response:
        return await self.tenant.record(
            {"purpose": "marketing.email", "status": status}, subject=who, id=key, evidence={"n": key}
        )

    async def events(self, who: dict[str, str]) -> list[str]:
        answer = await self.tenant.post("/v1/subjects/history", {"subject": who, "limit": 1000}, "dpo")
        assert answer.status_code == 200, answer.text
        return [event["event"]["evidence"]["n"] for event in answer.json()["events"]]


@asynccontextmanager
async def behind(settings: Any, database_url: str, tenant: Any, folder: Path) -> AsyncIterator[Behind]:
    async with Proxy(database_url, folder) as proxy, app.services(settings, proxy.url) as made:
        transport = httpx.ASGITransport(app=app.build(made), raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as http:
            yield Behind(proxy, tenant, http, made)


@pytest.fixture
async def cut_off(settings: Any, database_url: str, tenant: Any) -> AsyncIterator[Behind]:
    with new_place() as folder:
        async with behind(settings, database_url, tenant, folder) as made:
            yield made


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("times", [1, 2, 6])
async def test_a_connection_cut_at_commit_leaves_exactly_one_record(cut_off: Behind, person: Any, cut: str, times: int):
    keys = [uuid.uuid4().hex for _ in range(10)]
    assert (await cut_off.act(person, "warm")).status_code == 201
    cut_off.proxy.cut, cut_off.proxy.times = cut, times
    first = await asyncio.gather(*(cut_off.act(person, key) for key in keys))
    assert {answer.status_code for answer in first} <= {201, 503}
    cut_off.proxy.times = 0
    # What was committed though cut is found by the next try, which then writes nothing that could be cut.
    assert cut_off.proxy.cuts >= (min(times, 4) if cut == "before" else 1)
    again = await asyncio.gather(*(cut_off.act(person, key) for key in keys))
    assert {answer.status_code for answer in again} == {201}
    for once, twice in zip(first, again, strict=True):
        assert once.status_code == 503 or once.content == twice.content
    assert sorted(await cut_off.events(person)) == sorted([*keys, "warm"])


@pytest.mark.parametrize(("cut", "committed"), [("before", False), ("after", True)])
async def test_control_the_cut_leaves_both_outcomes_and_without_the_key_a_double(
    cut_off: Behind, person: Any, monkeypatch: pytest.MonkeyPatch, cut: str, committed: bool
):
    monkeypatch.setattr("consent_service.ledger.batch._TRIES", 1)
    assert (await cut_off.act(person, "warm")).status_code == 201
    cut_off.proxy.cut, cut_off.proxy.times = cut, 1
    key = uuid.uuid4().hex
    assert (await cut_off.act(person, key)).status_code == 503
    assert (key in await cut_off.events(person)) is committed
    body = {"purpose": "marketing.email", "status": "given"}
    answer = await cut_off.tenant.record(body, subject=person, id=uuid.uuid4().hex, evidence={"n": key})
    assert answer.status_code == 201
    assert (await cut_off.events(person)).count(key) == (2 if committed else 1)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, a fifth as long."""
    create = asyncpg.create_pool
    monkeypatch.setattr(
        asyncpg, "create_pool", lambda *a, **k: create(*a, **(k | {"timeout": 1, "command_timeout": 2}))
    )
    monkeypatch.setattr(app, "Guard", lambda *a, **k: Guard(*a, answer_s=6, **k))


@pytest.mark.usefixtures("hurried")
async def test_a_frozen_database_is_told_in_time_and_recovered_from(
    settings: Any, database_url: str, tenant: Any, person: Any
):
    with new_place() as folder:
        async with behind(settings, database_url, tenant, folder) as made:
            await frozen_and_thawed(made, person, told_s=7)


@pytest.mark.slow
async def test_a_frozen_database_is_told_in_time_with_the_real_limits(cut_off: Behind, person: Any):
    await frozen_and_thawed(cut_off, person, told_s=31)


async def frozen_and_thawed(made: Behind, person: Any, told_s: float) -> None:
    tenant, http, keys = made.tenant, made.tenant.http, [uuid.uuid4().hex for _ in range(12)]
    assert (await made.act(person, "warm")).status_code == 201
    made.proxy.freeze()
    began = time.monotonic()
    writes = [asyncio.create_task(made.act(person, key)) for key in keys]
    asked = {"subject": person, "purpose": "marketing.email"}
    checks = [asyncio.create_task(tenant.post("/v1/check", asked)) for _ in range(12)]
    ready = asyncio.create_task(http.get("/readyz"))
    for _ in range(5):
        asked_at = time.monotonic()
        assert (await http.get("/livez")).status_code == 200
        assert time.monotonic() - asked_at < 0.5
        await asyncio.sleep(0.1)
    answers = await asyncio.gather(ready, *checks, *writes)
    assert {answer.status_code for answer in answers} == {503}, [answer.text for answer in answers]
    assert time.monotonic() - began < told_s
    made.proxy.thaw()
    assert await soon(10, lambda: is_ready(http))
    again = await asyncio.gather(*(made.act(person, key) for key in keys))
    assert {answer.status_code for answer in again} == {201}
    assert sorted(await made.events(person)) == sorted([*keys, "warm"])


@pytest.mark.usefixtures("hurried")
async def test_connections_that_stay_frozen_are_given_up(settings: Any, database_url: str, tenant: Any, person: Any):
    """As after a failover: what was open leads nowhere for ever, what is opened now is answered."""
    with new_place() as folder:
        async with behind(settings, database_url, tenant, folder) as made:
            await asyncio.gather(*(made.act(person, f"warm-{n}") for n in range(4)))
            await asyncio.gather(*(made.tenant.check(person, "marketing.email") for _ in range(20)))
            made.proxy.abandon()
            assert await soon(45, lambda: is_ready(made.tenant.http))  # one dead connection after the other

            async def is_recorded() -> bool:
                return (await made.act(person, "later")).status_code == 201

            assert await soon(20, is_recorded)
            assert (await made.events(person)).count("later") == 1


async def is_ready(http: httpx.AsyncClient) -> bool:
    return (await http.get("/readyz")).status_code == 200


async def soon(seconds: float, done: Callable[[], Any]) -> bool:
    end = time.monotonic() + seconds
    while not await done():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.05)
    return True


@asynccontextmanager
async def head_held(database_url: str, log_id: int) -> AsyncIterator[None]:
    """Somebody else has the ledger's head."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM ledger_head WHERE log_id = $1 FOR UPDATE", log_id)
            yield
    finally:
        await connection.close()


async def test_a_head_that_somebody_holds_too_long_is_a_503_and_no_fault_of_ours(
    tenant: Any, database_url: str, person: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consent_service.ledger.batch._TRIES", 1)
    record = {"purpose": "marketing.email", "status": "given"}
    async with head_held(database_url, tenant.log_id):
        began = time.monotonic()
        answer = await tenant.record(record, subject=person, id="held")
        assert answer.status_code == 503, answer.text
        assert time.monotonic() - began < 8
    assert (await tenant.record(record, subject=person, id="held")).status_code == 201


async def test_a_head_that_is_given_back_in_time_only_costs_time(tenant: Any, database_url: str, person: Any):
    async with head_held(database_url, tenant.log_id):
        waiting = asyncio.create_task(tenant.record({"purpose": "marketing.email", "status": "given"}, subject=person))
        await asyncio.sleep(1)
        assert not waiting.done()
    assert (await waiting).status_code == 201


async def test_what_is_submitted_as_a_batch_ends_is_done_too():
    async def work(items: Any) -> Any:
        await asyncio.sleep(0)
        return items

    batcher: Batcher[int, int] = Batcher(work)
    async with asyncio.timeout(2):
        assert [await batcher.submit(n) for n in range(5)] == list(range(5))


# -- one act that the database refuses --------------------------------------------------------------------------------


def poisoned(monkeypatch: pytest.MonkeyPatch, how: Callable[[Any], Any]) -> None:
    """Acts whose subject's id begins with `poison` are changed behind every check."""
    submit = Batcher.submit

    async def spoil(self: Any, item: Any) -> Any:
        bad = isinstance(item, Act) and item.subject.id.startswith("poison")
        return await submit(self, how(item) if bad else item)

    monkeypatch.setattr(Batcher, "submit", spoil)


def with_nul(made: Any) -> Any:
    """Class 22: text that the database cannot hold."""
    return msgspec.structs.replace(made, method="form\0")


def with_null(made: Any) -> Any:
    """Class 23: a column that must not be null."""
    return msgspec.structs.replace(made, subject=msgspec.structs.replace(made.subject, type=None))


@pytest.mark.parametrize("how", [with_nul, with_null])
@pytest.mark.parametrize("bad", [{0}, {39}, {5, 6, 30}, set(range(40))], ids=str)
async def test_a_poisoned_act_fails_alone(
    tenant: Any, monkeypatch: pytest.MonkeyPatch, how: Callable[[Any], Any], bad: set[int]
):
    poisoned(monkeypatch, how)
    batches = []
    commit = write._Book.commit

    async def counted(self: Any, acts: Any) -> Any:
        batches.append(len(acts))
        return await commit(self, acts)

    monkeypatch.setattr(write._Book, "commit", counted)
    who = [subject(f"{'poison' if n in bad else 'sound'}-{n}-{uuid.uuid4().hex}") for n in range(40)]
    record = {"purpose": "marketing.email", "status": "given"}
    assert (await tenant.record(record, subject=subject("warm"))).status_code == 201
    batches.clear()
    answers = await asyncio.gather(*(tenant.record(record, subject=one) for one in who))
    assert batches[0] > 1, "nothing was batched"
    assert {n for n, answer in enumerate(answers) if answer.status_code == 422} == bad
    assert {answer.status_code for answer in answers} <= {201, 422}
    for n, one in enumerate(who):
        assert (await tenant.check(one, "marketing.email"))["allow"] is (n not in bad)
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        rows = await connection.fetch("SELECT idx FROM event WHERE log_id = $1 ORDER BY idx", tenant.log_id)
        size = await connection.fetchval("SELECT size FROM ledger_head WHERE log_id = $1", tenant.log_id)
    assert [row["idx"] for row in rows] == list(range(size - (1 + 40 - len(bad)), size))


@pytest.mark.parametrize(("failures", "status"), [(1, 201), (3, 201), (99, 503)])
@pytest.mark.parametrize("error", [asyncpg.SerializationError, asyncpg.DeadlockDetectedError])
async def test_a_conflict_is_tried_again_and_in_the_end_told(
    tenant: Any, person: Any, monkeypatch: pytest.MonkeyPatch, failures: int, status: int, error: type[Exception]
):
    left = failures
    commit = write._Book.commit

    async def conflicting(self: Any, acts: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise error
        return await commit(self, acts)

    monkeypatch.setattr(write._Book, "commit", conflicting)
    monkeypatch.setattr("consent_service.ledger.batch._FIRST_PAUSE_S", 0.001)
    record = {"purpose": "marketing.email", "status": "given"}
    answers = await asyncio.gather(*(tenant.record(record, subject=person, id=f"n{n}") for n in range(3)))
    assert {answer.status_code for answer in answers} == {status}
    left = 0
    again = await asyncio.gather(*(tenant.record(record, subject=person, id=f"n{n}") for n in range(3)))
    assert {answer.status_code for answer in again} == {201}
    events = await tenant.post("/v1/subjects/history", {"subject": person}, "dpo")
    assert len(events.json()["events"]) == 3
