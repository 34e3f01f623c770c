"""The processes: workers that share a port, a supervisor that keeps them, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from demos import (
    Demo,
    act,
    alive,
    is_free,
    new_place,
    processes,
    running,
    subject,
    within,
)

CHECK = {"subject": subject("ada"), "purpose": "marketing.email"}


def counted(demo: Demo, operation: str) -> int:
    """How many answers of an operation /metrics tells of."""
    with demo.client() as client:
        text = client.call("GET", "/metrics", key="").body
    lines = re.findall(r'^consent_requests_total\{operation="(\w+)",status="200"\} ([0-9.e+]+)$', text, re.MULTILINE)
    return int(sum(float(number) for name, number in lines if name == operation))


def in_flight(demo: Demo, body: dict[str, Any], path: str = "/v1/consents") -> tuple[socket.socket, bytes]:
    """A connection whose request has been sent up to the middle of its body; and the rest of it."""
    raw = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", demo.port), timeout=20)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {demo.keys['service']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    connection.sendall(head.encode() + raw[:20])
    time.sleep(0.2)  # accepted and read by a worker
    return connection, raw[20:]


def finish(connection: socket.socket, rest: bytes) -> int:
    """Send the rest; the answer's status, 0 where there is none."""
    with closing(connection):
        try:
            connection.sendall(rest)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
        except (OSError, http.client.HTTPException):
            return 0
        return answer.status


# Two workers


def test_both_workers_serve_and_metrics_add_up(place: Path):
    with running(place, "--workers", "2") as demo:
        workers = demo.workers()
        assert len(workers) == 2
        before = {pid: cpu(pid) for pid in workers}

        def ask(_: int) -> int:
            with demo.client() as client:  # each call on a connection of its own
                return client.call("POST", "/v1/check", CHECK).status

        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(ask, range(400))) == {200}
        assert within(2, lambda: counted(demo, "check") == 400)
        assert all(cpu(pid) > before[pid] for pid in workers), "one worker did nothing"
        assert [counted(demo, "check") for _ in range(10)] == [400] * 10  # whichever is asked

        os.kill(workers[0], signal.SIGKILL)
        assert within(10, lambda: len(demo.workers()) == 2)
        assert within(2, lambda: counted(demo, "check") == 400)  # what the dead one counted still counts
    assert demo.process.returncode == 0, demo.said()


def cpu(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_killed_worker_is_replaced_and_no_acknowledged_record_is_lost(place: Path):
    with running(place, "--workers", "2") as demo:
        acknowledged: list[str] = []
        stop = threading.Event()

        def record(number: int) -> None:
            with demo.client(patience=5) as client:
                while not stop.is_set():
                    name = f"{number}-{len(acknowledged)}-{time.monotonic_ns()}"
                    try:
                        answer = client.record(f"person-{number}", id=name, evidence={"n": name})
                    except (OSError, http.client.HTTPException):
                        continue
                    if answer.status == 201:
                        acknowledged.append(name)

        threads = [threading.Thread(target=record, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                time.sleep(0.5)
                old = demo.workers()
                os.kill(old[0], signal.SIGKILL)
                assert within(10, lambda old=old: len(set(demo.workers()) - {old[0]}) == 2)
                assert old[1] in demo.workers()
        finally:
            stop.set()
            for thread in threads:
                thread.join(20)
        with demo.client() as client:
            histories = [event for n in range(4) for event in client.history(f"person-{n}")]
        there = [event["event"]["evidence"]["n"] for event in histories]
        assert len(there) == len(set(there))
        assert set(acknowledged) <= set(there)
        assert len(acknowledged) > 50


def test_a_killed_supervisor_takes_its_workers_with_it(place: Path):
    demo = Demo(place, "--workers", "2").ready()
    workers, server = demo.workers(), demo.postmaster()
    os.kill(demo.pid, signal.SIGKILL)
    demo.process.wait(5)
    assert within(2, lambda: not any(alive(pid) for pid in workers))
    assert within(2, lambda: is_free(demo.port))
    assert within(10, lambda: not alive(server))


# The end


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_answers_what_is_in_flight_and_leaves_nothing(place: Path, workers: str):
    demo = Demo(place, "--workers", workers).ready()
    slow = [in_flight(demo, act(f"slow-{n}", "given")) for n in range(4)]
    with demo.client() as idle, ThreadPoolExecutor(4) as pool:
        assert idle.check("ada").status == 200
        demo.process.terminate()
        assert within(5, lambda: is_free(demo.port))  # nobody new is let in
        time.sleep(0.5)
        assert demo.process.poll() is None
        assert list(pool.map(lambda one: finish(*one), slow)) == [201] * 4
        began = time.monotonic()
        assert demo.process.wait(20) == 0, demo.said()
        assert time.monotonic() - began < 8
    assert within(2, lambda: not processes(place))
    began = time.monotonic()
    with running(place, port=demo.port) as again, again.client() as client:
        assert time.monotonic() - began < 15
        assert [client.check(f"slow-{n}").allow for n in range(4)] == [(True, "consent")] * 4


async def test_sigterm_waits_for_an_act_that_waits_for_the_ledger(place: Path):
    demo = Demo(place).ready()
    connection = await asyncpg.connect(demo.database_url())
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM ledger_head FOR UPDATE")
            with demo.client() as client:
                waiting = asyncio.create_task(asyncio.to_thread(client.record, "ada"))
                await asyncio.sleep(0.5)
                demo.process.terminate()
                await asyncio.sleep(1)
                assert not waiting.done()
                await connection.execute("SELECT 1")
                await connection.execute("COMMIT")
                assert (await waiting).status == 201
                await connection.execute("BEGIN")
    finally:
        await connection.close()
    assert await asyncio.to_thread(demo.process.wait, 20) == 0, demo.said()


def test_requests_that_never_end_do_not_hold_up_the_stop(place: Path):
    demo = Demo(place, environment={"CONSENT_STOP_S": "1"}).ready()
    connection, _ = in_flight(demo, act("ada", "given"))
    with closing(connection):
        began = time.monotonic()
        assert demo.stop() == 0, demo.said()
        assert time.monotonic() - began < 6
    assert not processes(place)


def test_ctrl_c_reaches_the_whole_group_and_leaves_no_process(place: Path):
    demo = Demo(place, "--workers", "2").ready()
    slow = in_flight(demo, act("ada", "given"))
    os.killpg(demo.pid, signal.SIGINT)
    time.sleep(0.7)
    assert finish(*slow) == 201
    assert demo.process.wait(20) == 0, demo.said()
    assert not processes(place)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_asking_twice_changes_nothing(place: Path, how: signal.Signals):
    demo = Demo(place).ready()
    slow = in_flight(demo, act("ada", "given"))
    for _ in range(3):
        os.killpg(demo.pid, how)
        time.sleep(0.4)
    assert finish(*slow) == 201
    assert demo.process.wait(20) == 0, demo.said()
    assert "Traceback" not in demo.said()
    assert not processes(place)


STAGES = {
    "import": lambda demo: demo.pid,
    "cluster": lambda demo: (demo.data / "pg.new").exists(),
    "database": lambda demo: (demo.data / "pg" / "postmaster.pid").exists(),
    "workers": lambda demo: demo.workers(),
}


@pytest.mark.parametrize(
    ("how", "stage"),
    [
        (signal.SIGINT, "cluster"),
        (signal.SIGTERM, "workers"),
        *(
            pytest.param(how, stage, marks=pytest.mark.slow)
            for how, stage in (
                (signal.SIGINT, "import"), (signal.SIGTERM, "import"), (signal.SIGTERM, "cluster"),
                (signal.SIGINT, "database"), (signal.SIGTERM, "database"), (signal.SIGINT, "workers"),
            )
        ),
    ],
)  # fmt: skip
def test_an_end_in_the_middle_of_the_start_leaves_no_process(how: signal.Signals, stage: str):
    with new_place() as place:
        demo = Demo(place)
        assert within(20, lambda: STAGES[stage](demo))
        os.killpg(demo.pid, how)
        demo.process.wait(20)
        assert within(5, lambda: not processes(place))
        with running(place) as again, again.client() as client:
            assert client.record("ada").status == 201


# What is shared


def test_the_service_goes_on_when_the_postmaster_is_killed(place: Path):
    with running(place) as demo, demo.client() as client:
        assert client.record("ada").status == 201
        worker, killed = demo.workers(), demo.postmaster()
        os.kill(killed, signal.SIGKILL)
        assert client.call("GET", "/livez", key="").status == 200
        assert within(10, lambda: demo.postmaster() not in (None, killed))  # until then its orphans may answer
        assert within(10, lambda: client.call("GET", "/readyz", key="").status == 200)
        assert client.check("ada").allow == (True, "consent")
        assert demo.workers() == worker  # no worker had to go for it


def test_a_second_demo_on_the_same_folder_shares_the_database_and_outlives_the_first(place: Path):
    with running(place) as first, running(place, data=first.data) as second:
        assert second.keys == first.keys
        assert second.port != first.port
        assert second.postmaster() == first.postmaster()
        with first.client() as one, second.client() as other:
            assert one.record("ada").status == 201
            assert other.check("ada").allow == (True, "consent")
            assert other.record("ada", "withdrawn").status == 201
            assert one.check("ada").allow == (False, "withdrawn")
            began = second.postmaster()
            assert first.stop() == 0
            assert within(10, lambda: second.postmaster() not in (None, began)), "it goes with whoever started it"
            assert within(10, lambda: other.call("GET", "/readyz", key="").status == 200)
            assert other.check("ada").allow == (False, "withdrawn")
            assert other.record("bob").status == 201
    assert second.process.returncode == 0, second.said()


def test_demos_that_start_at_once_on_a_new_folder_agree_on_the_keys():
    with new_place() as place:
        demos = [Demo(place, data=place / "new") for _ in range(3)]
        try:
            for demo in demos:
                demo.ready()
            assert len({json.dumps(demo.keys) for demo in demos}) == 1
            for demo in demos:
                with demo.client() as client:
                    assert client.record("ada").status == 201
                    assert len(client.history("ada")) >= 1
        finally:
            codes = [demo.stop() for demo in demos]
        assert codes == [0] * 3


def test_only_what_belongs_to_a_head_counts_against_it(place: Path):
    with running(place) as demo:
        body = json.dumps(CHECK).encode()
        request = (
            f"POST /v1/check HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {demo.keys['service']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        with socket.create_connection(("127.0.0.1", demo.port), timeout=20) as connection:
            connection.sendall(request * 300 + request[:40])
            heard = b""
            while heard.count(b"HTTP/1.1 200") < 300 and (piece := connection.recv(65_536)):
                heard += piece
            assert heard.count(b"HTTP/1.1 200") == 300
        with socket.create_connection(("127.0.0.1", demo.port), timeout=20) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: t\r\nX: " + b"x" * 70_000 + b"\r\n\r\n")
            heard = connection.recv(65_536)
            assert heard.startswith(b"HTTP/1.1 400") or not heard


async def test_whoever_serves_owns_nothing(place: Path):
    with running(place) as demo:
        connection = await asyncpg.connect(demo.database_url())
        logins = await connection.fetch(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'consent'"
        )
        owned = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tableowner = 'consent_worker'")
        await connection.close()
    assert [row["usename"] for row in logins] == ["consent_worker"]
    assert owned == 0


async def test_a_worker_that_stands_still_with_the_ledger_in_hand_does_not_hold_up_the_other(place: Path):
    """Stopped amid writes, it may hold the head; the database takes it away after a second."""
    with running(place, "--workers", "2") as demo:
        victim = demo.workers()[0]
        stop = threading.Event()
        done: list[float] = []

        def record(number: int) -> None:
            client = demo.client(patience=1)
            while not stop.is_set():
                try:
                    if client.record(f"person-{number}").status == 201:
                        done.append(time.monotonic())
                except (OSError, http.client.HTTPException):
                    client.close()
            client.close()

        threads = [threading.Thread(target=record, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                await asyncio.sleep(0.3)
                os.kill(victim, signal.SIGSTOP)
                stopped = time.monotonic()
                await asyncio.sleep(4)
                os.kill(victim, signal.SIGCONT)
                assert any(stopped + 2.5 < moment < stopped + 4 for moment in done), "the ledger stood still"
        finally:
            os.kill(victim, signal.SIGCONT)
            stop.set()
            for thread in threads:
                await asyncio.to_thread(thread.join, 20)
        with demo.client() as client:
            assert client.record("ada").status == 201
