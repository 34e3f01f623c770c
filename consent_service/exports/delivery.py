"""Delivering an export: piece by piece, page by page, in the memory of a page, however large it is.

What is fetched twice is the same both times, unless something was erased between. Nothing is held while somebody reads
slowly: each page is a statement of its own, and the work on it is done in a thread, so that other calls go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

import msgspec
from msgspec.structs import replace

from consent_service import db
from consent_service.errors import Frozen, NotFound
from consent_service.exports.model import ExportRow
from consent_service.ledger import Ledger, Log, columns, export, parquet, read_head, tree
from consent_service.ledger.container import Stream, Writer
from consent_service.ledger.entry import PERSONAL, ErasureReason, tag
from consent_service.ledger.export import ENCODER, Counts, Erased, Filter, Format, Line, Manifest, Span, Strand
from consent_service.ledger.note import Checkpoint, split
from consent_service.ledger.proof import Proof
from consent_service.ledger.tiles import entries, prove, proved
from consent_service.ledger.trust import trusting
from consent_service.vault import Place, StrandKey

T = TypeVar("T")
PAGE = 2_048
"""Entries read at a time; divides the number in a bundle."""
_CHUNK = 256
"""Events worked on before others get their turn."""
_MAX_KEYS = 4_096


class StrandRow(msgspec.Struct, frozen=True):
    """A strand of a subject."""

    identifier: bytes
    tenure: int
    key: bytes
    events: int


class OpenedRow(msgspec.Struct, frozen=True, gc=False):
    """An event, and what opens its entry."""

    idx: int
    event: UUID
    identifier: bytes
    tenure: int
    sequence: int
    payload: bytes
    key: bytes


class ErasureRow(msgspec.Struct, frozen=True):
    """An erasure, and its entry in the ledger."""

    erasure: UUID
    idx: int
    reason: ErasureReason
    salt: bytes
    events: int
    entry: bytes


class ErasedRow(msgspec.Struct, frozen=True):
    """An entry whose event was erased."""

    idx: int


READ_STRANDS = db.many("exports", "read_strands", StrandRow)
_READ_OPENED = db.many("exports", "read_opened", OpenedRow)
_READ_OPENED_OF = db.many("exports", "read_opened_of", OpenedRow)
_READ_ERASURES = db.many("exports", "read_erasures", ErasureRow)
_READ_ERASED = db.many("exports", "read_erased", ErasedRow)
_NOTE_PROGRESS = db.execute("exports", "note_progress")


async def demand_signing(ledger: Ledger, row: ExportRow) -> None:
    """A file is signed when it is fetched: not by a frozen ledger, and not in the name of an epoch that was given up.

    That one has signed another tree, or may have.
    """
    async with ledger.connection() as connection:
        head = await read_head(connection, ledger.log_id)
    if head.frozen is not None:
        raise Frozen(head.frozen)
    if head.epoch != row.epoch:
        raise NotFound("The ledger began a new epoch since the export was ordered. Order it anew.")


async def deliver(ledger: Ledger, row: ExportRow, tell: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """The pieces of the file of an export; `tell` hears of how many more entries were passed, twice of each.

    A piece may be empty: then there was work and nothing to show for it, which keeps a waiting caller waiting.

    Raises:
        NotFound: the database does not hold every entry of the range; nothing was signed.
    """
    delivery = _Delivery(ledger, row, tell)
    for part in (delivery.opening, delivery.entries, delivery.proof, delivery.events, delivery.strands,
                 delivery.erasures, delivery.closing):  # fmt: skip
        async for piece in part():
            yield piece


class _Delivery:
    """One walk through an export; its parts in their order."""

    def __init__(self, ledger: Ledger, row: ExportRow, tell: Callable[[int], None]) -> None:
        self.ledger = ledger
        self.tell = tell
        self.row = row
        self.wanted: Filter = row.wanted
        self.writer = Writer(row.created_at)
        self.keys: dict[tuple[bytes, int], StrandKey] = {}
        self.entries_done = self.personal = self.opened = self.erased = 0
        self.marks = bytearray((row.end - row.first) // 8 + 1)
        """A bit for each entry of the range whose event was written, or that was counted as erased."""
        self.told: dict[tuple[bytes, int], bytes] = {}
        """Of a subject: what tells the entries of a strand, once an event of it was written."""
        self.log: Log

    async def opening(self) -> AsyncIterator[bytes]:
        """What it is, and what everything is proved against."""
        row, add = self.row, self.writer.add
        async with self.ledger.connection() as connection:
            head = await read_head(connection, self.ledger.log_id)
            self.log = await self.ledger.log(connection, replace(head, epoch=row.epoch))
        yield add(export.README, export.readme(self.log.origin, row.created_at, row.format))
        yield add(export.CHECKPOINT, row.note.encode())
        if row.timestamp is not None:
            yield add(export.TIMESTAMP, row.timestamp)
        yield add(export.TRUST, trusting(str(verifier) for verifier in self.log.verifiers).encode())

    async def entries(self) -> AsyncIterator[bytes]:
        """All entries of the range, in bundles."""
        bundle: list[bytes] = []
        number = 0
        async for page in _ahead(self._read_entries, range(self.row.first, self.row.end, PAGE)):
            bundle.append(await asyncio.to_thread(self._bundled, page))
            if self.entries_done % export.BUNDLE == 0 or self.entries_done == self.row.end - self.row.first:
                yield await asyncio.to_thread(self.writer.add, export.bundle(number), b"".join(bundle))
                bundle, number = [], number + 1
            await self._note("running")
            self.tell(len(page))
            yield b""

    async def _read_entries(self, place: int) -> list[bytes]:
        try:
            async with self.ledger.connection() as connection:
                return await entries(connection, self.ledger.log_id, place, min(place + PAGE, self.row.end))
        except LookupError as error:
            raise NotFound(
                f"The database does not hold the whole ledger: {error}. Restore a copy that does, then fetch it again."
            ) from error

    def _bundled(self, page: list[bytes]) -> bytes:
        self.personal += sum([entry[:1] == PERSONAL for entry in page])
        self.entries_done += len(page)
        return export.bundled(page)

    async def proof(self) -> AsyncIterator[bytes]:
        """What shows that these are the entries of the range."""
        row = self.row
        span = Span(row.first, row.end, row.size, (), ())

        def nodes(node: tree.Nodes) -> tuple[bytes, ...]:
            return tuple(node(level, place) for level, place in span.places)

        async with self.ledger.connection() as connection:
            found = await proved(connection, self.ledger.log_id, row.size, nodes)
        cut = row.first.bit_count()
        yield self.writer.add(export.RANGE, str(span._replace(left=found[:cut], right=found[cut:])).encode())

    async def events(self) -> AsyncIterator[bytes]:
        """The events that are asked for and still there."""
        stream, form = self._stream(export.events(self.row.format)), _FORMS[self.row.format]()
        yield stream.write(form.head())
        left = self.entries_done
        async for page in self._pages():
            for at in range(0, len(page), _CHUNK):
                yield await asyncio.to_thread(self._written, stream, form, page[at : at + _CHUNK])
            await self._note("running")
            self.tell(len(page))
            left -= len(page)
            yield b""
        self.tell(left)
        yield stream.write(await asyncio.to_thread(form.foot)) + stream.close()

    def _stream(self, name: str) -> Stream:
        return self.writer.stream(name, export.packing(name))

    def _pages(self) -> AsyncIterator[list[OpenedRow]]:
        if self.wanted.subject is not None:
            return self._pages_of_subject()
        return _ahead(self._read_opened, range(self.row.first, self.row.end, PAGE))

    async def _read_opened(self, place: int) -> list[OpenedRow]:
        wanted = self.wanted
        async with self.ledger.connection() as connection:
            return await _READ_OPENED(
                connection, self.ledger.log_id, place, min(place + PAGE, self.row.end), wanted.purposes,
                wanted.statuses, wanted.actors, wanted.kinds,
            )  # fmt: skip

    async def _pages_of_subject(self) -> AsyncIterator[list[OpenedRow]]:
        row, place = self.row, self.row.first
        while True:
            async with self.ledger.connection() as connection:
                page = await _READ_OPENED_OF(
                    connection, self.ledger.log_id, place, row.end, row.identifiers, row.tenures, PAGE
                )
            if not page:
                return
            yield page
            place = page[-1].idx + 1

    def _written(self, stream: Stream, form: _Form, page: Sequence[OpenedRow]) -> bytes:
        """The next bytes of the file; runs in a thread."""
        lines = [self._line(row) for row in page]
        if self.wanted != _EVERYTHING:
            lines = [line for line in lines if export.matches(self.wanted, export.SAID.decode(line.payload))]
        for line in lines:
            place = line.index - self.row.first
            self.marks[place >> 3] |= 1 << (place & 7)
        self.opened += len(lines)
        return stream.write(form.rows(lines))

    def _line(self, row: OpenedRow) -> Line:
        key = self._key(row.identifier, row.tenure, row.key)
        if self.wanted.subject is not None:
            self.told[row.identifier, row.tenure] = key.tags
        payload = msgspec.Raw(key.open(row.event.bytes, row.payload))
        return Line(row.idx, tag(key.tags, row.sequence), key.salt(row.event), payload)

    def _key(self, identifier: bytes, tenure: int, wrapped: bytes) -> StrandKey:
        key = self.keys.get((identifier, tenure))
        if key is None:
            if len(self.keys) >= _MAX_KEYS:
                self.keys.clear()
            key = self.ledger.vault.open(Place(self.ledger.log_id, identifier, tenure), wrapped)
            self.keys[identifier, tenure] = key
        return key

    async def strands(self) -> AsyncIterator[bytes]:
        """Of a subject: what tells its entries from others, and that none is missing.

        What was erased tells nothing, unless that happened after an event of it was written.
        """
        row = self.row
        if self.wanted.subject is None:
            return
        async with self.ledger.connection() as connection:
            found = await READ_STRANDS(connection, self.ledger.log_id, row.identifiers)
        told = self.told | {
            (one.identifier, one.tenure): self._key(one.identifier, one.tenure, one.key).tags for one in found
        }
        strands = [
            Strand(told[identifier, tenure], events, tenure, is_account)
            for identifier, tenure, events, is_account in zip(
                row.identifiers, row.tenures, row.events, row.accounts, strict=True
            )
            if (identifier, tenure) in told
        ]
        yield self.writer.add(export.STRANDS, ENCODER.encode(strands))

    async def erasures(self) -> AsyncIterator[bytes]:
        """What was erased, and that the ledger says so; last, so that nothing erased meanwhile is missing."""
        stream = self._stream(export.ERASURES)
        row, after = self.row, -1
        while True:
            async with self.ledger.connection() as connection:
                found = await _READ_ERASURES(connection, self.ledger.log_id, row.first, row.end, after, _CHUNK)
            for one in found:
                yield stream.write(ENCODER.encode(await self._proved(one)) + b"\n")
                async for indexes in self._indexes(one.erasure):
                    yield stream.write(ENCODER.encode(indexes) + b"\n")
            if not found:
                break
            after = found[-1].idx
        yield stream.close()

    async def _proved(self, one: ErasureRow) -> Erased:
        """An erasure whose entry came later is proved by the tree that ends with it."""
        ours = self.row.size
        size = max(ours, one.idx + 1)
        async with self.ledger.connection() as connection:
            root, hashes = await prove(connection, self.ledger.log_id, one.idx, size)
            grown = [] if size == ours else await proved(
                connection, self.ledger.log_id, size, lambda node: tree.consistency_proof(ours, size, node)
            )  # fmt: skip
        note = self.row.note if size == ours else self.ledger.sign(self.log, size, root)
        return Erased(
            erasure=one.erasure, reason=one.reason, index=one.idx, events=one.events, salt=one.salt, entry=one.entry,
            proof=str(Proof(None, one.idx, tuple(hashes), note)), consistency=grown or msgspec.UNSET,
        )  # fmt: skip

    async def _indexes(self, erasure: UUID) -> AsyncIterator[list[int]]:
        after = -1
        while True:
            async with self.ledger.connection() as connection:
                rows = await _READ_ERASED(connection, self.ledger.log_id, erasure, after, export.LISTED)
            if not rows:
                return
            found = [row.idx for row in rows]
            for index in found:
                place = index - self.row.first
                if self.row.first <= index < self.row.end and not self.marks[place >> 3] >> (place & 7) & 1:
                    self.marks[place >> 3] |= 1 << (place & 7)  # what was held and is released was erased twice
                    self.erased += 1
            yield found
            after = found[-1]

    async def closing(self) -> AsyncIterator[bytes]:
        """The manifest, signed, and the end of the file."""
        row, entries, personal = self.row, self.row.end - self.row.first, self.personal
        manifest = Manifest(
            format=export.FORMAT, export=row.export, origin=self.log.origin, epoch=row.epoch,
            created_at=row.created_at, size=row.size, root=Checkpoint.parse(split(row.note)[0]).root.hex(),
            first=row.first, end=row.end, filter=self.wanted, events=row.format, members=(),
            counts=Counts(entries, personal, entries - personal, self.opened, self.erased,
                          personal - self.opened - self.erased),
        )  # fmt: skip
        await demand_signing(self.ledger, row)  # as it was when the first piece was asked for
        yield await asyncio.to_thread(export.sealed, self.writer, manifest, self.log.signers)
        await self._note("done")

    async def _note(self, status: str) -> None:
        async with self.ledger.connection() as connection:
            await _NOTE_PROGRESS(
                connection, self.ledger.log_id, self.row.export, status, self.entries_done, self.opened
            )


class _Form(Protocol):
    """How events are written."""

    def head(self) -> bytes:
        """What comes before them."""

    def rows(self, lines: Sequence[Line]) -> bytes:
        """The next of them."""

    def foot(self) -> bytes:
        """What comes behind them."""


class _Lines:
    """NDJSON."""

    def head(self) -> bytes:
        return b""

    def rows(self, lines: Sequence[Line]) -> bytes:
        return b"".join([ENCODER.encode(line) + b"\n" for line in lines])

    def foot(self) -> bytes:
        return b""


class _Table:
    """CSV."""

    def head(self) -> bytes:
        return columns.head()

    def rows(self, lines: Sequence[Line]) -> bytes:
        return columns.rows(lines)

    def foot(self) -> bytes:
        return b""


_FORMS: dict[Format, Callable[[], _Form]] = {"ndjson": _Lines, "csv": _Table, "parquet": parquet.Table}
_EVERYTHING = Filter()


async def _ahead(read: Callable[[int], Awaitable[T]], places: Iterable[int]) -> AsyncIterator[T]:
    """What is read at each place, the next one being read while this one is worked on."""
    waiting: list[asyncio.Future[T]] = []
    try:
        for place in places:
            waiting.append(asyncio.ensure_future(read(place)))
            if len(waiting) > 1:
                yield await waiting.pop(0)
        while waiting:
            yield await waiting.pop(0)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
