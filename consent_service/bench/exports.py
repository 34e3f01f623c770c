"""How fast an export is made and checked, and in how much memory: both by the commands that anybody uses."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from consent_service import db, demo, ids, server, settings, tenants
from consent_service.errors import SetupError
from consent_service.ledger import Ledger, Ledgers, lock_head
from consent_service.ledger.entry import personal, tag
from consent_service.ledger.tree import Frontier, leaf_hash
from consent_service.settings import Settings
from consent_service.states import Event, EventNotice, EventRecord
from consent_service.subjects import Subject
from consent_service.vault import VALUE, Place

BATCH = 8_192
PER_STRAND = 4
"""Events of one identifier."""
_BYTES = 5_000
"""That an event takes while this runs: in the tables, their log, and the file."""
_GRADE = 3
_ENCODER = msgspec.json.Encoder(order="sorted")
_GROW = db.execute("bench", "grow_head")
_EVENT = (
    "log_id", "idx", "event", "kind", "identifier", "tenure", "sequence", "purposes", "statuses", "credential", "grade",
    "recorded_at", "payload",
)  # fmt: skip
_STRAND = ("log_id", "identifier", "tenure", "namespace", "key", "value", "events")


class Run(msgspec.Struct, frozen=True):
    """One command."""

    seconds: float
    cpu_s: float
    """Of the command itself, its start included; what the database uses beside it is not in it."""
    events_per_s: float
    peak_mb: float
    """Largest resident set."""


class ExportReport(msgspec.Struct, frozen=True):
    """What was measured."""

    events: int
    load_s: float
    file_mb: float
    export: Run
    verify: Run


def run_export(events: int, progress: Callable[[str], None]) -> ExportReport:
    """Measure an export of so many events. Uses a database of its own and leaves nothing behind.

    Raises:
        SetupError: the disk has no room for it.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < events * _BYTES + (1 << 30):
        raise SetupError(
            f"{events} events need about {events * _BYTES / 1e9:.0f} GB in {tempfile.gettempdir()}, which has "
            f"{free / 1e9:.0f}. Take fewer, or name another place by TMPDIR."
        )
    with tempfile.TemporaryDirectory(prefix="consent-bench-") as folder:
        chosen = Settings(data=f"{folder}/data", port=0, log_level="warning")
        with server.database(chosen) as (url, _):
            began = time.monotonic()
            key = asyncio.run(_load(url, settings.secret(chosen), chosen, events, progress))
            load_s = time.monotonic() - began
            file = Path(folder, "export.zip")
            progress("exporting")
            of_demo = ("--data", chosen.data, "--tenant", demo.TENANT, "--json")
            made = _measured(events, "ledger", "export", "--output", str(file), *of_demo)
            progress("verifying")
            checked = _measured(events, "verify", str(file), "--key", key, "--json")
            return ExportReport(events, round(load_s, 1), round(file.stat().st_size / 1e6, 1), made, checked)


def export_table(report: ExportReport) -> str:
    """The report for people, as Markdown."""
    return "\n".join((
        f"{report.events} events, {report.file_mb} MB",
        "",
        "| | s | CPU s | events/s | peak MB |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {name} | {run.seconds:.1f} | {run.cpu_s:.1f} | {run.events_per_s:,.0f} | {run.peak_mb:.0f} |"
            for name, run in (("export", report.export), ("verify", report.verify))
        ),
    ))  # fmt: skip


def _measured(events: int, *arguments: str) -> Run:
    began = time.monotonic()
    command = [sys.executable, "-m", "consent_service.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603 -- our own command
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SetupError(f"`consent {' '.join(arguments[:2])}` ended with {process.returncode}.")
    seconds = time.monotonic() - began
    cpu_s = used.ru_utime + used.ru_stime
    return Run(round(seconds, 2), round(cpu_s, 2), round(events / seconds, 1), round(used.ru_maxrss / 1024, 1))


async def _load(url: str, secret: bytes, chosen: Settings, events: int, progress: Callable[[str], None]) -> str:
    """Fill the example tenant; returns the key that its ledger signs with."""
    await db.migrate(url)
    await demo.set_up(url, secret, chosen, "http://127.0.0.1")
    async with await db.connect(url, size=1, role=None) as pool, db.connection(pool) as connection:
        log_id = await tenants.find(connection, demo.TENANT)
        assert log_id is not None, "it was set up a moment ago"  # noqa: S101 -- above
        ledger = Ledgers(pool, secret).of(log_id)
        tip = await lock_head(connection, log_id)
        frontier, first = Frontier.read(tip.size, tip.frontier), tip.size
        for start in range(0, events, BATCH):
            made = list(_people(ledger, first + start, min(BATCH, events - start), tip.now))
            entries = [one.entry for one in made]
            await _copy(connection, log_id, first + start, made)
            frontier = frontier.grown([leaf_hash(entry) for entry in entries]).frontier
            progress(f"loaded {start + len(made)} of {events}")
        await _GROW(connection, log_id, frontier.size, frontier.write())
        return str((await ledger.log(connection, tip)).signers[0].verifier)


class _Made(NamedTuple):
    strand: tuple[Any, ...] | None
    event: tuple[Any, ...]
    entry: bytes


def _people(ledger: Ledger, first: int, count: int, now: datetime) -> Iterator[_Made]:
    """Events as the write path would have made them, each person's side by side."""
    log_id, sequence = ledger.log_id, 0
    for index in range(first, first + count):
        new = sequence in (0, PER_STRAND)
        if new:
            subject, sequence = Subject("login", f"person-{index}"), 0
            identifier = ledger.hasher.identifier(subject)
            key = ledger.vault.make(Place(log_id, identifier, 1))
        sequence += 1
        event = ids.event_id()
        payload = _payload(subject, event, now)
        row = (
            log_id, index, event, "consent", identifier, 1, sequence, ["analytics", "marketing.email"],
            ["given", "refused"], "service", _GRADE, now, key.seal(event.bytes, payload),
        )  # fmt: skip
        strand = (log_id, identifier, 1, "login", key.wrapped, key.seal(VALUE, subject.id.encode()), PER_STRAND)
        yield _Made(strand if new else None, row, personal(tag(key.tags, sequence), key.salt(event), payload))


def _payload(subject: Subject, event: Any, now: datetime) -> bytes:
    records = [
        EventRecord("analytics", "given", "web", None, None, now),
        EventRecord("marketing.email", "refused", "email", None, None, now),
    ]
    said = Event(
        event=event, recorded_at=now, subject=subject, records=records, method="banner_button",
        notice=EventNotice("web-banner", 1, "en", "0" * 64), evidence={"page": f"/offers/{event.hex[:6]}"},
        grade="service_attested", guardian=None, credential="service", policy=1,
    )  # fmt: skip
    return _ENCODER.encode(said)


async def _copy(connection: db.Connection, log_id: int, first: int, made: list[_Made]) -> None:
    strands = [one.strand for one in made if one.strand is not None]
    await connection.copy_records_to_table("strand", records=strands, columns=_STRAND)
    await connection.copy_records_to_table("event", records=[one.event for one in made], columns=_EVENT)
    entries = [(log_id, index, one.entry) for index, one in enumerate(made, first)]
    await connection.copy_records_to_table("ledger_entry", records=entries, columns=("log_id", "idx", "entry"))
