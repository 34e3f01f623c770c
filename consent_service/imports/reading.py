"""Reading a list in: rows become acts, many of them under way at once, and how far that has come is noted.

Whoever starts it again after a crash, or with a longer file, goes on from there, if the bytes before are the same; else
from the first row. Nothing is recorded twice either way: the key of an act is made of the list's name, the place of the
row and what it says. A row that says something else is another act.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias
from uuid import UUID

import msgspec
from msgspec.structs import replace

from consent_service import db, ids
from consent_service.auth import Credential
from consent_service.consents import ConsentBody, Repeated, Suppressed, Writer
from consent_service.errors import ConsentError, Erased, Invalid, Malformed
from consent_service.imports.mapping import Mapping, Meaning, told
from consent_service.imports.refusals import Refusals
from consent_service.imports.sheet import Mark, Row, Sheet
from consent_service.ledger import Ledger, append, lock_head
from consent_service.ledger.entry import ImportMade, system
from consent_service.states import RESTRICTIVE

CREDENTIAL = "import:list"
"""Who reports: no key has this id."""
_CHUNK = 256
_UNDER_WAY = 2
"""Chunks: one is written while the next one is read."""
_NOTE_EVERY = 4_096
_SALT = 32
_KINDS: dict[type[ConsentError], str] = {
    Malformed: "unreadable", Invalid: "invalid", Suppressed: "suppressed", Erased: "erased",
}  # fmt: skip


class Job(NamedTuple):
    """A list, and how it is to be read."""

    name: str
    """Of the list: what was read under it before is known again."""
    mapping: Mapping
    refusals: Path | None
    """Where refused rows go; None: they are counted only."""
    dry_run: bool = False
    again: bool = True
    """Whether the stream can be read from its beginning again, and so be gone on with another time."""


class Tally(msgspec.Struct):
    """What became of the rows."""

    recorded: int = 0
    effective: int = 0
    """Of those: how many a check takes into account at once."""
    without_effect: dict[str, int] = {}
    """Of those: the others, by what a check answers."""
    repeated: int = 0
    """Recorded before."""
    passed_over: int = 0
    refused: dict[str, int] = {}
    """By kind: unreadable, invalid, suppressed, erased."""

    @property
    def refusals(self) -> int:
        """How many rows were refused."""
        return sum(self.refused.values())


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did; what it continued is counted in."""

    list: str
    reading: UUID | None
    """None: a dry run."""
    rows: int
    continued: int
    """Of those: how many an earlier run had done."""
    tally: Tally
    salt: str
    """The entry in the ledger says SHA-256 of this (hex) and the file."""
    sha256: str


class Progress(msgspec.Struct, frozen=True):
    """How far a list has come."""

    reading: UUID
    salt: bytes
    position: int
    line: int
    rows: int
    digest: bytes
    tally: bytes
    refusals: int
    refusals_digest: bytes
    finished: bool

    @property
    def mark(self) -> Mark:
        """The same as the file's reader knows it."""
        return Mark(self.position, self.line, self.rows, self.digest)


class _State(msgspec.Struct):
    reason: str
    effective: bool


class _Answer(msgspec.Struct):
    """What counts of an answer (`Recorded`)."""

    effective: bool
    states: list[_State]


Outcome: TypeAlias = bytes | ConsentError | None
"""The answer to a row, or why there is none; None: it was passed over."""

_READ = db.one("imports", "read_progress", Progress)
_BEGIN = db.execute("imports", "begin")
_SAVE = db.execute("imports", "save_progress")
_SAID = msgspec.json.Encoder(order="sorted")
_TALLY = msgspec.json.Decoder(Tally)
_ANSWER = msgspec.json.Decoder(_Answer)


async def run(ledger: Ledger, writer: Writer, stream: BinaryIO, job: Job, tell: Callable[[int], None]) -> Found:
    """Read a list in. `tell` hears, again and again, how many bytes are done with.

    Raises:
        SetupError: the file, its header or the mapping cannot be accepted; nothing was recorded.
        Unavailable, Frozen: it stopped half-way; start it again.
    """
    reading = await _open(ledger, writer, stream, job)
    with closing(reading.refusals):
        await reading.all(tell)
    return reading.found()


async def _open(ledger: Ledger, writer: Writer, stream: BinaryIO, job: Job) -> _Reading:
    """Go on with what an earlier run began, or begin."""
    shape = _SAID.encode(job.mapping)
    listed = ledger.hasher.once("list", f"{job.name}\0{shape.decode()}")
    before = None
    if job.again and not job.dry_run:
        async with ledger.connection() as connection:
            before = await _READ(connection, ledger.log_id, listed)
    if before is not None and before.position:
        made = _Reading(ledger, writer, job, listed, Sheet(stream, before.salt, job.mapping.delimiter), before)
        if made.sheet.skip_to(before.mark) and made.refusals.go_on(
            before.refusals, before.refusals_digest, finished=before.finished
        ):
            if made.sheet.goes_on:
                await made.note(before.mark)  # it is not at its end any more
            return made
        stream.seek(0)
    salt = os.urandom(_SALT)
    first = Progress(ids.event_id(), salt, 0, 0, 0, b"", b"{}", 0, b"", finished=False)
    made = _Reading(ledger, writer, job, listed, Sheet(stream, salt, job.mapping.delimiter), first)
    made.refusals.start(replace=before is not None and not before.finished and not before.refusals)
    if job.again and not job.dry_run:
        async with ledger.connection() as connection:
            await _BEGIN(connection, ledger.log_id, listed, first.reading, salt)
    return made


class _Reading:
    """One run over a file."""

    def __init__(
        self, ledger: Ledger, writer: Writer, job: Job, listed: bytes, sheet: Sheet, progress: Progress
    ) -> None:
        self._ledger = ledger
        self._writer = writer
        self._job = job
        self._listed = listed
        self._progress = progress
        self._meaning = Meaning(job.mapping, sheet.header)
        self._credential = Credential(
            ledger.log_id, CREDENTIAL, "service", "consent import", frozenset({"write:attested"}), frozenset(), None
        )
        self._tally = _TALLY.decode(progress.tally)
        self.sheet = sheet
        self.refusals = Refusals(job.refusals, sheet.header, sheet.delimiter, progress.salt)

    async def all(self, tell: Callable[[int], None]) -> None:
        """Every row that is left, chunk by chunk in their order."""
        rows, noted = self.sheet.rows(), self.sheet.mark().rows
        under_way: deque[tuple[Mark, asyncio.Task[list[tuple[Row, Outcome]]]]] = deque()
        try:
            while (chunk := list(islice(rows, _CHUNK))) or under_way:
                if chunk:
                    under_way.append((self.sheet.mark(), asyncio.create_task(self._take(chunk))))
                if chunk and len(under_way) < _UNDER_WAY:
                    continue
                mark, task = under_way[0]
                self._settle(await task)
                under_way.popleft()
                if mark.rows - noted >= _NOTE_EVERY:
                    await self.note(mark)
                    noted = mark.rows
                tell(mark.position)
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        await self._finish()

    def found(self) -> Found:
        """What came of it."""
        mark, progress = self.sheet.mark(), self._progress
        return Found(
            list=self._job.name,
            reading=None if self._job.dry_run else progress.reading,
            rows=mark.rows,
            continued=progress.rows,
            tally=self._tally,
            salt=progress.salt.hex(),
            sha256=mark.digest.hex(),
        )

    async def _take(self, rows: Sequence[Row]) -> list[tuple[Row, Outcome]]:
        """Record rows; what became of each."""
        outcomes: dict[int, Outcome] = {}
        acts: dict[int, ConsentBody] = {}
        for row in rows:
            try:
                act = self._act(row)
            except (Malformed, Invalid) as error:
                outcomes[row.number] = error
            else:
                outcomes[row.number] = None
                if act is not None:
                    acts[row.number] = act
        outcomes |= await self._send(acts)
        erased = {number: acts[number] for number, one in outcomes.items() if isinstance(one, Erased)}
        # What was erased is not said again, except for a no, which takes nothing that the erasure gave.
        outcomes |= await self._send({
            number: replace(act, id=f"{act.id}again")
            for number, act in erased.items()
            if all(record.status in RESTRICTIVE for record in act.records)
        })  # fmt: skip
        return [(row, outcomes[row.number]) for row in rows]

    async def _send(self, acts: dict[int, ConsentBody]) -> dict[int, Outcome]:
        answers = await self._writer.listed(list(acts.values()), self._credential, rehearse=self._job.dry_run)
        return dict(zip(acts, answers, strict=True))

    def _act(self, row: Row) -> ConsentBody | None:
        if row.wrong is not None:
            raise Malformed(f"The row {row.wrong}.")
        act = self._meaning.act(row.cells)
        if act is None:
            return None
        place = f"{self._job.name}\0{row.number}\0".encode()
        return replace(act, id=hashlib.sha256(place + _SAID.encode(act)).hexdigest())

    def _settle(self, outcomes: Sequence[tuple[Row, Outcome]]) -> None:
        """Count what became of rows, and put aside those that were refused."""
        tally, refused = self._tally, []
        for row, outcome in outcomes:
            if isinstance(outcome, bytes):
                tally.recorded += 1
                answer = _ANSWER.decode(outcome)
                if answer.effective:
                    tally.effective += 1
                else:
                    _add(tally.without_effect, next(state.reason for state in answer.states if not state.effective))
            elif outcome is None:
                tally.passed_over += 1
            elif isinstance(outcome, Repeated):
                tally.repeated += 1
            else:
                _add(tally.refused, _KINDS[type(outcome)])
                refused.append((row, _reason(outcome)))
        self.refusals.add(refused)

    async def _finish(self) -> None:
        """Note the end, and have an entry of the ledger say so; unless there was nothing to do."""
        mark, progress, tally = self.sheet.mark(), self._progress, self._tally
        if self._job.dry_run or (progress.finished and mark.position == progress.position):
            return
        ledger = self._ledger
        async with ledger.connection() as connection, connection.transaction():
            tip = await lock_head(connection, ledger.log_id)
            entry = ImportMade(
                at=tip.now, reading=progress.reading, recorded=tally.recorded + tally.repeated,
                refused=tally.refusals, sha256=mark.digest.hex(),
            )  # fmt: skip
            await append(connection, ledger.log_id, tip, [system(entry)], tip.now)
            await _SAVE(connection, *self._noted(mark), tip.now)

    async def note(self, mark: Mark) -> None:
        """Have it known how far it has come."""
        if not self._job.dry_run:
            async with self._ledger.connection() as connection:
                await _SAVE(connection, *self._noted(mark), None)

    def _noted(self, mark: Mark) -> Iterator[int | bytes | UUID]:
        yield from (self._ledger.log_id, self._listed, self._progress.reading, mark.position, mark.line, mark.rows)
        yield from (mark.digest, _SAID.encode(self._tally), self.refusals.size, self.refusals.digest)


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _reason(error: ConsentError) -> str:
    """In one line, by the fields of the row."""
    if not error.errors:
        return str(error)
    return "; ".join(f"{wrong.pointer}: {wrong.detail}" for wrong in told(error.errors))


def as_text(found: Found, job: Job) -> str:
    """For people."""
    tally = found.tally
    began = "Nothing is recorded: a dry run. Of" if job.dry_run else "Of"
    lines = [f"{began} {found.rows} rows ({found.continued} of them by an earlier run):"]
    lines.append(f"  {tally.recorded} recorded, {tally.effective} of them with effect")
    lines += [f"    {count} without: {reason}" for reason, count in sorted(tally.without_effect.items())]
    lines.append(f"  {tally.repeated} recorded before")
    lines.append(f"  {tally.passed_over} passed over, as the mapping says")
    lines.append(f"  {tally.refusals} refused" + (f", see {job.refusals}" if tally.refusals and job.refusals else ""))
    lines += [f"    {count} {kind}" for kind, count in sorted(tally.refused.items())]
    if not job.again:
        lines.append("Standard input cannot be gone on with: another run reads it from its first row.")
    return "\n".join(lines)
