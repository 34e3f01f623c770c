"""The one file that an export is: a ZIP archive (PKWARE APPNOTE 6.3.10) of which every byte is determined.

Any unpacker reads it. It is written front to back and read by its directory. Of members there are three kinds: *whole*
ones, whose size was known before they were written, stored as they are; *streamed* ones, stored or deflated, whose
sizes follow them. Names are ASCII, all times are the same one, nothing lies between members, before or behind them: so
headers and directory can be made anew from the directory's numbers, and are compared byte by byte. What the members
hold is covered by digests of both the packed and the unpacked bytes, which stand in the manifest.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

import msgspec

Kind = Literal["whole", "stored", "deflated"]
Code: TypeAlias = Literal[
    "missing", "altered", "reordered", "duplicated", "suppressed", "truncated", "added", "replayed", "signature"
]
"""What may be wrong with an export; `audit.CODES` tells what each means."""

MAGIC = b"PK\3\4"
"""How the file begins."""
CHUNK = 262_144
"""Bytes that are read, and inflated, at a time."""
MAX_MEMBERS = 100_000
_MAX_RATIO = 1_032
"""Deflate packs no tighter."""
_SLACK = 1_048_576
_LEVEL = 1
"""Of deflate: the next levels take three times as long for a tenth less."""

_LOCAL, _DESCRIPTOR, _CENTRAL, _END, _END64, _LOCATOR = (
    MAGIC, b"PK\7\x08", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7",
)  # fmt: skip
_HEADER, _ENTRY, _LAST = (
    struct.Struct("<4sHHHHHIIIHH"),
    struct.Struct("<4sHHHHHHIIIHHHHHII"),
    struct.Struct("<4sHHHHIIH"),
)
_LAST64, _WHERE64 = struct.Struct("<4sQHHIIQQQQ"), struct.Struct("<4sIQI")
_STREAMED = 8
_DEFLATE = 8
_LARGE, _MANY = 0xFFFF_FFFF, 0xFFFF
_ZIP, _ZIP64 = 20, 45
_FILE = 0o100_644 << 16
_UNIX = 3 << 8
_MAX_NAME = 255


class Damaged(ValueError):
    """A file that cannot be an export as it was written."""

    def __init__(self, code: Code, what: str) -> None:
        super().__init__(what)
        self.code = code


class Member(msgspec.Struct, frozen=True):
    """One member as the manifest has it."""

    name: str
    size: int
    sha256: str
    """Of what it holds (hex)."""
    packed: int
    packed_sha256: str
    """Of its bytes in the file."""


class Entry(NamedTuple):
    """One member as the directory has it."""

    name: bytes
    kind: Kind
    crc: int
    packed: int
    size: int
    at: int
    """Where its header begins."""

    @property
    def data(self) -> int:
        """Where its bytes begin."""
        return self.at + len(local(self, 0))


def stamp(at: datetime) -> int:
    """A time as archives keep it: date and time of day in UTC, every second second, from 1980 on."""
    at = at.astimezone(UTC)
    date = (max(at.year, 1980) - 1980) << 9 | at.month << 5 | at.day
    return date << 16 | at.hour << 11 | at.minute << 5 | at.second // 2


# -- the bytes around the members ------------------------------------------------------------------------------------


def local(entry: Entry, stamped: int) -> bytes:
    """The header in front of a member. Of a streamed one the sizes follow it, as 64-bit numbers."""
    time, date = stamped & _MANY, stamped >> 16
    if entry.kind == "whole":
        sizes = (entry.crc, entry.size, entry.size)
        return _HEADER.pack(_LOCAL, _ZIP, 0, 0, time, date, *sizes, len(entry.name), 0) + entry.name
    method = _DEFLATE if entry.kind == "deflated" else 0
    extra = struct.pack("<HHQQ", 1, 16, 0, 0)
    head = _HEADER.pack(_LOCAL, _ZIP64, _STREAMED, method, time, date, 0, _LARGE, _LARGE, len(entry.name), len(extra))
    return head + entry.name + extra


def descriptor(entry: Entry) -> bytes:
    """What follows a member."""
    if entry.kind == "whole":
        return b""
    return _DESCRIPTOR + struct.pack("<IQQ", entry.crc, entry.packed, entry.size)


def directory(entries: Sequence[Entry], stamped: int, at: int) -> bytes:
    """The end of the file, from `at` on: the directory and what leads to it."""
    central = b"".join(_record(entry, stamped) for entry in entries)
    count, size = len(entries), len(central)
    end = b""
    if count >= _MANY or at >= _LARGE:
        end += _LAST64.pack(_END64, 44, _UNIX | _ZIP64, _ZIP64, 0, 0, count, count, size, at)
        end += _WHERE64.pack(_LOCATOR, 0, at + size, 1)
    count, at = min(count, _MANY), min(at, _LARGE)
    return central + end + _LAST.pack(_END, 0, 0, count, count, size, at, 0)


def _record(entry: Entry, stamped: int) -> bytes:
    numbers = (entry.size, entry.packed, entry.at)
    large = [number for number in numbers if number >= _LARGE]
    extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    size, packed, at = (min(number, _LARGE) for number in numbers)
    version = _ZIP if entry.kind == "whole" and not large else _ZIP64
    flags, method = (0, 0) if entry.kind == "whole" else (_STREAMED, _DEFLATE if entry.kind == "deflated" else 0)
    return _ENTRY.pack(
        _CENTRAL, _UNIX | version, version, flags, method, stamped & _MANY, stamped >> 16, entry.crc, packed, size,
        len(entry.name), len(extra), 0, 0, 0, _FILE, at,
    ) + entry.name + extra  # fmt: skip


# -- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """Writes a container front to back; each call returns the next bytes of the file."""

    def __init__(self, at: datetime) -> None:
        self._stamp = stamp(at)
        self._at = 0
        self._entries: list[Entry] = []
        self.members: list[Member] = []

    def add(self, name: str, data: bytes) -> bytes:
        """A whole member."""
        digest = hashlib.sha256(data).hexdigest()
        entry = Entry(name.encode("ascii"), "whole", zlib.crc32(data), len(data), len(data), self._at)
        return self._take(entry, digest, digest, local(entry, self._stamp) + data)

    def stream(self, name: str, kind: Kind) -> Stream:
        """A member that is written piece by piece; nothing else may be written before it is closed."""
        entry = Entry(name.encode("ascii"), kind, 0, 0, 0, self._at)
        return Stream(self, entry, local(entry, self._stamp))

    def finish(self) -> bytes:
        """The end of the file."""
        return directory(self._entries, self._stamp, self._at)

    def close(self, entry: Entry, digest: str, packed_digest: str, rest: bytes) -> bytes:
        """A stream has ended."""
        head = len(local(entry, self._stamp))
        self._take(entry, digest, packed_digest, b"")
        self._at += head + entry.packed + len(descriptor(entry))
        return rest + descriptor(entry)

    def _take(self, entry: Entry, digest: str, packed_digest: str, written: bytes) -> bytes:
        self._entries.append(entry)
        self.members.append(Member(entry.name.decode(), entry.size, digest, entry.packed, packed_digest))
        self._at += len(written)
        return written


class Stream:
    """A member on its way into the file."""

    def __init__(self, writer: Writer, entry: Entry, head: bytes) -> None:
        self._writer = writer
        self._entry = entry
        self._head = head
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS) if entry.kind == "deflated" else None
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self._crc = self._in = self._out = 0

    def write(self, data: bytes) -> bytes:
        """The bytes of the file that this piece brings; may be none yet."""
        self._plain.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self._in += len(data)
        return self._put(data if self._deflate is None else self._deflate.compress(data))

    def close(self) -> bytes:
        """The last of it."""
        rest = self._put(b"" if self._deflate is None else self._deflate.flush())
        entry = self._entry._replace(crc=self._crc, packed=self._out, size=self._in)
        return self._writer.close(entry, self._plain.hexdigest(), self._packed.hexdigest(), rest)

    def _put(self, packed: bytes) -> bytes:
        self._packed.update(packed)
        self._out += len(packed)
        head, self._head = self._head, b""
        return head + packed


# -- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """A container, read without trust: nothing is unpacked to a disk, and never more than a piece at a time.

    Raises:
        Damaged: the bytes around the members are not exactly those that a writer writes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.length = file.seek(0, 2)
        at, size, count = self._end()
        if count > MAX_MEMBERS or self.length - at > MAX_MEMBERS * (_ENTRY.size + _MAX_NAME):
            raise Damaged("altered", f"the file has more than {MAX_MEMBERS} members")
        raw = self._read(at, size)
        self.stamp, found = _apart(raw, count)
        if directory(found, self.stamp, at) != self._read(at, self.length - at):
            raise Damaged("altered", "the directory of the file is not as it is written")
        names = [entry.name for entry in found]
        if len(set(names)) < len(names):
            raise Damaged("duplicated", "a member stands in the file twice")
        self._demand_gapless(found, at)
        self.entries = {entry.name.decode("ascii"): entry for entry in found}
        """By name, in their order."""
        self.digests: dict[str, Member] = {}
        """Of the members that were read to their end."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """What a member holds; its digests are known once the last piece was taken.

        Raises:
            Damaged: its bytes are not what the directory says.
        """
        entry = self.entries[name]
        if entry.size > entry.packed * _MAX_RATIO + _SLACK:
            raise Damaged("altered", f"{name!a} swells to {entry.size} bytes")
        plain, packed, size, crc = hashlib.sha256(), hashlib.sha256(), 0, 0
        for piece in _unpacked(self._raw(entry, packed), entry):
            plain.update(piece)
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            if size > entry.size:
                break
            yield piece
        if (size, crc) != (entry.size, entry.crc):
            raise Damaged("altered", f"{name!a} has another size or checksum than the directory says")
        self.digests[name] = Member(name, size, plain.hexdigest(), entry.packed, packed.hexdigest())

    def whole(self, name: str, limit: int) -> bytes:
        """All that a member holds.

        Raises:
            Damaged: it is larger than `limit`, or see `pieces`.
        """
        if self.entries[name].size > limit:
            raise Damaged("altered", f"{name!a} is larger than {limit} bytes")
        return b"".join(self.pieces(name))

    def seekable(self, name: str) -> tuple[int, int]:
        """Where the bytes of a member that is not deflated begin and end."""
        entry = self.entries[name]
        return entry.data, entry.data + entry.size

    def _end(self) -> tuple[int, int, int]:
        """Where the directory is, its length, and how many members it has."""
        size = _LAST.size
        tail = self._read(max(0, self.length - size), size)
        if len(tail) < size or tail[:4] != _END:
            start = max(0, self.length - CHUNK)
            end = self._read(start, CHUNK).rfind(_END)
            if 0 <= end < self.length - start - size:
                raise Damaged("added", "there are bytes behind the end of the file")
            raise Damaged("truncated", "the file ends early, or is no export")
        *_, count, _, length, at, comment = _LAST.unpack(tail)
        if comment:
            raise Damaged("altered", "the end of the file is not as it is written")
        if at == _LARGE or count == _MANY:
            far = self._read(max(0, self.length - size - _WHERE64.size - _LAST64.size), _LAST64.size)
            if len(far) == _LAST64.size and far[:4] == _END64:
                *_, count, length, at = _LAST64.unpack(far)
        if at + length > self.length:
            raise Damaged("truncated", "the file is shorter than its directory says")
        return at, length, count

    def _demand_gapless(self, entries: Sequence[Entry], end: int) -> None:
        """Every byte before the directory belongs to a member, in the order of the directory."""
        at = 0
        for entry in entries:
            head = local(entry, self.stamp)
            after = entry.at + len(head) + entry.packed
            tail = descriptor(entry)
            if entry.at != at or after + len(tail) > end:
                raise Damaged("altered", "there are gaps between the members of the file, or they overlap")
            if self._read(at, len(head)) != head or self._read(after, len(tail)) != tail:
                raise Damaged("altered", f"what stands around {entry.name.decode()!a} is not as it is written")
            at = after + len(tail)
        if at != end:
            raise Damaged("added", "there is something between the last member and the directory")

    def _raw(self, entry: Entry, digest: hashlib._Hash) -> Iterator[bytes]:
        at, left = entry.data, entry.packed
        while left:
            piece = self._read(at, min(left, CHUNK))
            if not piece:
                raise Damaged("truncated", "the file ends early")
            digest.update(piece)
            at, left = at + len(piece), left - len(piece)
            yield piece

    def _read(self, at: int, count: int) -> bytes:
        self.file.seek(at)
        return self.file.read(count)


def _apart(raw: bytes, count: int) -> tuple[int, list[Entry]]:
    """The numbers in a directory. What else stands in it is compared once it was made anew."""
    at, found, stamped = 0, [], 0
    for _ in range(count):
        if at + _ENTRY.size > len(raw):
            raise Damaged("altered", "the directory of the file is shorter than it says")
        (_, _, _, flags, method, time, date, crc, packed, size, named, extra, _, _, _, _, where) = _ENTRY.unpack_from(
            raw, at
        )
        name = raw[at + _ENTRY.size : at + _ENTRY.size + named]
        if not name or named > _MAX_NAME or not name.isascii() or (flags & 1):
            raise Damaged("altered", "a member is encrypted, or its name is no name of an export's member")
        more = raw[at + _ENTRY.size + named : at + _ENTRY.size + named + extra][4:]
        numbers = iter(struct.unpack(f"<{len(more) // 8}Q", more[: len(more) // 8 * 8]))
        size, packed, where = (next(numbers, n) if n == _LARGE else n for n in (size, packed, where))
        if not flags & _STREAMED and not size == packed < _LARGE:
            raise Damaged("altered", "the size of a member is not as it is written")
        kind: Kind = "whole" if not flags & _STREAMED else "deflated" if method == _DEFLATE else "stored"
        found.append(Entry(name, kind, crc, packed, size, where))
        stamped = date << 16 | time
        at += _ENTRY.size + named + extra
    return stamped, found


def _unpacked(raw: Iterator[bytes], entry: Entry) -> Iterator[bytes]:
    if entry.kind != "deflated":
        yield from raw
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in raw:
            rest = piece
            while rest:
                if not inflate.eof:
                    yield inflate.decompress(rest, CHUNK)
                    rest = inflate.unconsumed_tail
                if inflate.eof and (rest or inflate.unused_data):
                    raise Damaged("altered", f"{entry.name.decode()} has bytes behind its end")
        while not inflate.eof:
            more = inflate.decompress(b"", CHUNK)
            if not more:
                raise Damaged("altered", f"{entry.name.decode()} cannot be unpacked to its end")
            yield more
    except zlib.error:
        raise Damaged("altered", f"{entry.name.decode()} cannot be unpacked") from None
