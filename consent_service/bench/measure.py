"""One benchmark: interleaved runs of the service and its contenders, CPU seconds per 1,000 requests, latencies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from consent_service import __version__, db, demo, server, settings
from consent_service.bench import contenders
from consent_service.bench.load import Load, drive, post
from consent_service.settings import Settings

CONNECTIONS = (1, 8, 64)
ROUNDS = 3
SECONDS = 2.5
"""Length of one run."""
PREPARED = 2_000
"""Subjects that the check runs ask about."""


class Measure(msgspec.Struct, frozen=True):
    """One run."""

    job: str
    contender: str
    connections: int
    round: int
    requests_per_s: float
    service_cpu_s: float
    """CPU seconds of the serving processes per 1,000 requests."""
    database_cpu_s: float
    """The same for PostgreSQL."""
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Line(msgspec.Struct, frozen=True):
    """The median of a contender's runs at one number of connections."""

    job: str
    contender: str
    connections: int
    requests_per_s: float
    cpu_s: float
    """Service and database together, CPU seconds per 1,000 requests."""
    service_cpu_s: float
    database_cpu_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class AtHalfLoad(msgspec.Struct, frozen=True):
    """How long a record takes where there is room: at half the rate that the same connections reach at most."""

    requests_per_s: float
    connections: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    commit_p50_ms: float
    """Of the least that an acknowledged write takes: one row, committed by one connection until the disk has it."""
    commit_p95_ms: float
    commit_p99_ms: float


class Report(msgspec.Struct, frozen=True):
    """Everything that `bench.json` holds."""

    version: str
    machine: str
    seconds: float
    lines: list[Line]
    ratios: dict[str, float]
    """Cost of the service by cost of the contender in the same run, median over the rounds."""
    half: AtHalfLoad
    runs: list[Measure]


def table(report: Report) -> str:
    """The report for people, as Markdown."""
    half = report.half
    columns = ("requests_per_s", "cpu_s", "service_cpu_s", "database_cpu_s", "p50_ms", "p95_ms", "p99_ms")
    rows = [
        f"| {line.job} | {line.contender} | {line.connections} | "
        + " | ".join(f"{getattr(line, column):,.3g}" for column in columns)
        + " |"
        for line in report.lines
    ]
    return "\n".join((
        "| job | contender | connections | requests/s | CPU s/1,000 | service | database | p50 ms | p95 | p99 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        *(f"- {name} connections: {ratio:.2f} × the CPU" for name, ratio in report.ratios.items()),
        f"- record at half load, {half.requests_per_s:,.0f}/s over {half.connections} connections: "
        + _shares(half.p50_ms, half.p95_ms, half.p99_ms),
        "- a bare fsynced commit, one after the other: "
        + _shares(half.commit_p50_ms, half.commit_p95_ms, half.commit_p99_ms),
    ))  # fmt: skip


def _shares(p50: float, p95: float, p99: float) -> str:
    return f"p50 {p50:.3g} ms, p95 {p95:.3g} ms, p99 {p99:.3g} ms"


class _Running(msgspec.Struct):
    """A served contender."""

    name: str
    port: int
    process: psutil.Process


def run(progress: Callable[[str], None]) -> Report:
    """Measure everything; in about two minutes. Uses a database of its own and leaves nothing behind."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="consent-bench-") as folder, contextlib.ExitStack() as stack:
        chosen = Settings(data=f"{folder}/data", port=0, pool=8, log_level="warning")
        url, _ = stack.enter_context(server.database(chosen))
        postmaster = psutil.Process(int((Path(chosen.data) / "pg" / "postmaster.pid").read_text().split("\n")[0]))
        facts = asyncio.run(_set_up(url, chosen))
        running = {
            "service": stack.enter_context(_service(chosen, url)),
            "plain": stack.enter_context(_contender("plain", url)),
            "bare": stack.enter_context(_contender("bare", url)),
        }
        bench = _Bench(running, postmaster, facts["keys"]["service"], progress)
        runs = bench.all()
        half = bench.at_half_load(runs, url)
    return Report(
        version=__version__,
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        seconds=round(time.monotonic() - begun, 1),
        lines=_lines(runs),
        ratios=_ratios(runs),
        half=half,
        runs=runs,
    )


async def _set_up(url: str, chosen: Settings) -> dict[str, Any]:
    await db.migrate(url)
    async with await db.connect(url, size=1, role=None) as pool, db.connection(pool) as connection:
        await contenders.make_table(connection)
    return await demo.set_up(url, settings.secret(chosen), chosen, "http://127.0.0.1")


@contextlib.contextmanager
def _service(chosen: Settings, url: str) -> Iterator[_Running]:
    listener = server.bind(chosen)
    orders = server.Orders(chosen, url, listener.fileno(), os.getpid())
    with _process("consent_service.server", server.ORDERS, orders, listener, "/readyz") as process:
        yield _Running("service", listener.getsockname()[1], process)


@contextlib.contextmanager
def _contender(name: str, url: str) -> Iterator[_Running]:
    listener = server.bind(Settings(port=0))
    orders = contenders.Orders(name, url, listener.fileno(), 8)
    with _process("consent_service.bench.contenders", contenders.ORDERS, orders, listener, None) as process:
        yield _Running(name, listener.getsockname()[1], process)


@contextlib.contextmanager
def _process(
    module: str, variable: str, orders: msgspec.Struct, listener: socket.socket, ready: str | None
) -> Iterator[psutil.Process]:
    environment = {**os.environ, variable: msgspec.json.encode(orders).decode()}
    process = subprocess.Popen([sys.executable, "-m", module], env=environment, pass_fds=[listener.fileno()])  # noqa: S603
    try:
        deadline = time.monotonic() + 30
        while ready is not None and not server.answers(server.address(listener), ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{module} did not start")
            time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        listener.close()


class _Bench:
    """The runs, in turn, so that a machine that slows down slows all of them."""

    def __init__(
        self, running: dict[str, _Running], postmaster: psutil.Process, key: str, progress: Callable[[str], None]
    ) -> None:
        self._running = running
        self._postmaster = postmaster
        self._key = key
        self._progress = progress
        self._count = 0

    def all(self) -> list[Measure]:
        """Every run, after a warm-up that is not counted."""
        for contender in ("service", "plain"):
            self._run("record", contender, 64, -1, 1)
        for contender in ("service", "bare"):
            self._run("check", contender, 64, -1, 1)
        runs: list[Measure] = []
        for turn in range(ROUNDS):
            for connections in CONNECTIONS:
                for job, pair in (("record", ("service", "plain")), ("check", ("service", "bare"))):
                    order = pair if turn % 2 == 0 else pair[::-1]
                    runs += [self._run(job, contender, connections, turn, SECONDS) for contender in order]
        return runs

    def at_half_load(self, runs: list[Measure], url: str) -> AtHalfLoad:
        """Records at half of what the most connections reached, and bare commits beside them, in turn."""
        most = CONNECTIONS[-1]
        best = [r.requests_per_s for r in runs if (r.job, r.contender, r.connections) == ("record", "service", most)]
        rate = statistics.median(best) / 2
        port = self._running["service"].port
        loads, commits = [], []
        for _ in range(ROUNDS):
            loads.append(asyncio.run(drive(port, self._records(), most, SECONDS, 201, rate)))
            commits.append(asyncio.run(_commits(url, SECONDS)))
            self._progress(f"record at {rate:.0f}/s: p99 {loads[-1].percentile(0.99):.2f} ms; a bare commit: p99 "
                           f"{commits[-1].percentile(0.99):.2f} ms")  # fmt: skip

        def median(found: list[Load], share: float) -> float:
            return round(statistics.median(load.percentile(share) for load in found), 2)

        return AtHalfLoad(
            round(rate, 1), most, *(median(found, share) for found in (loads, commits) for share in (0.5, 0.95, 0.99))
        )

    def _run(self, job: str, contender: str, connections: int, turn: int, seconds: float) -> Measure:
        running = self._running[contender]
        requests = self._records() if job == "record" else self._checks()
        expected = 201 if job == "record" else 200
        service, database = _cpu(running.process), _cpu(self._postmaster)
        load = asyncio.run(drive(running.port, requests, connections, seconds, expected))
        service, database = _cpu(running.process) - service, _cpu(self._postmaster) - database
        measure = _measure(job, contender, connections, turn, load, service, database)
        self._progress(
            f"{job:6} {contender:8} {connections:3} connections: {measure.requests_per_s:7.0f}/s, "
            f"{measure.service_cpu_s + measure.database_cpu_s:.3f} CPU s per 1,000"
        )
        return measure

    def _records(self) -> Iterator[bytes]:
        """Records of four purposes, each of a new person, each with a key of its own."""
        while True:
            self._count += 1
            yield post("/v1/consents", self._key, _RECORD % (self._count, self._count))

    def _checks(self) -> Iterator[bytes]:
        """Checks about people who have records, one after the other."""
        while True:
            self._count += 1
            yield post("/v1/check", self._key, _CHECK % (self._count % PREPARED + 1))


_RECORD = (
    b'{"id":"order-%d","subject":{"type":"login","id":"person-%d"},"method":"form",'
    b'"notice":{"id":"web-banner","version":1,"language":"en"},"records":['
    b'{"purpose":"marketing.email","status":"given"},'
    b'{"purpose":"analytics","status":"given","channel":"web"},'
    b'{"purpose":"personalisation","status":"given","channel":"web"},'
    b'{"purpose":"profiling","status":"refused","channel":"web"}]}'
)
_CHECK = b'{"subject":{"type":"login","id":"person-%d"},"purpose":"marketing.email","channel":"email"}'


async def _commits(url: str, seconds: float) -> Load:
    """Rows of about the size of an act, each committed by itself, one after the other."""
    latencies: list[float] = []
    async with await db.connect(url, size=1, role=None) as pool, db.connection(pool) as connection:
        begun = now = time.perf_counter()
        while now < begun + seconds:
            await contenders.insert(connection, uuid.uuid4(), "login", "person-0", _RECORD % (0, 0))
            before, now = now, time.perf_counter()
            latencies.append((now - before) * 1000)
    return Load(len(latencies), now - begun, sorted(latencies))


def _cpu(process: psutil.Process) -> float:
    """CPU seconds of a process, of its living children and of those that have ended."""
    own = process.cpu_times()
    children = 0.0
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            children += times.user + times.system
    return float(own.user + own.system + own.children_user + own.children_system) + children


def _measure(
    job: str, contender: str, connections: int, turn: int, load: Load, service: float, database: float
) -> Measure:
    return Measure(
        job=job,
        contender=contender,
        connections=connections,
        round=turn,
        requests_per_s=round(load.requests / load.seconds, 1),
        service_cpu_s=round(service / load.requests * 1000, 4),
        database_cpu_s=round(database / load.requests * 1000, 4),
        p50_ms=round(load.percentile(0.50), 2),
        p95_ms=round(load.percentile(0.95), 2),
        p99_ms=round(load.percentile(0.99), 2),
    )


def _lines(runs: list[Measure]) -> list[Line]:
    keys = dict.fromkeys((run.job, run.connections, run.contender) for run in runs)
    lines = []
    for job, connections, contender in sorted(keys):
        group = [r for r in runs if (r.job, r.connections, r.contender) == (job, connections, contender)]

        def median(name: str, group: list[Measure] = group) -> float:
            return round(float(statistics.median(getattr(run, name) for run in group)), 4)

        cpu = round(statistics.median(run.service_cpu_s + run.database_cpu_s for run in group), 4)
        names = ("requests_per_s", "service_cpu_s", "database_cpu_s", "p50_ms", "p95_ms", "p99_ms")
        lines.append(Line(job, contender, connections, cpu_s=cpu, **{name: median(name) for name in names}))
    return lines


def _ratios(runs: list[Measure]) -> dict[str, float]:
    """Pair by pair, so that what slowed one run of a pair slowed the other."""
    ratios: dict[str, float] = {}
    for job, other in (("record", "plain"), ("check", "bare")):
        for connections in CONNECTIONS:
            pairs = [
                _cost(runs, job, "service", connections, turn) / _cost(runs, job, other, connections, turn)
                for turn in range(ROUNDS)
            ]
            ratios[f"{job}: service / {other} at {connections}"] = round(statistics.median(pairs), 3)
    return ratios


def _cost(runs: list[Measure], job: str, contender: str, connections: int, turn: int) -> float:
    found = next(r for r in runs if (r.job, r.contender, r.connections, r.round) == (job, contender, connections, turn))
    return found.service_cpu_s + found.database_cpu_s
