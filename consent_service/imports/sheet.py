"""Reading a CSV file (RFC 4180) row by row, in constant memory, knowing at each row's end how many bytes that took.

UTF-8 with or without BOM; lines end with LF or CRLF. What cannot be read is a row with its reason, and the next line is
read as if nothing had happened: one stray quote costs one line, not the rest of the file.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from consent_service.errors import FieldError, SetupError

DELIMITERS = (",", ";", "\t")
MAX_CELL = 131_072
"""Characters of one cell."""
MAX_ROW = 1_048_576
"""Bytes of one row."""
_BOM = b"\xef\xbb\xbf"
_PIECE = 1_048_576
_QUOTED = re.compile(r'"[^"]*"')
_SAVE_AS = "save the file as UTF-8 (in a spreadsheet: CSV UTF-8)"


class Row(NamedTuple):
    """A row of the file."""

    line: int
    """Where it begins, from 1."""
    number: int
    """Which row it is, from 1."""
    cells: list[str]
    """As many as the header has; of a row that cannot be read whatever there is."""
    wrong: str | None
    """Why it cannot be read."""


class Mark(NamedTuple):
    """How far a file was read."""

    position: int
    """In bytes."""
    line: int
    rows: int
    digest: bytes
    """SHA-256 of a salt and these bytes."""


class Sheet:
    """A CSV file: its header at once, then its rows.

    Raises:
        SetupError: it is no CSV file in UTF-8 that has a header.
    """

    def __init__(self, stream: BinaryIO, salt: bytes, delimiter: str | None = None) -> None:
        csv.field_size_limit(MAX_CELL)
        self._lines = _Lines(stream, hashlib.sha256(salt))
        self._rows = 0
        self.header, self.delimiter = self._read_header(delimiter)

    def mark(self) -> Mark:
        """How far the rows given so far go."""
        lines = self._lines
        return Mark(lines.position, lines.line, self._rows, lines.hash.digest())

    def skip_to(self, mark: Mark) -> bool:
        """Go on behind a mark made earlier, before the first row is read; False where other bytes stand before it."""
        if not self._lines.skip_to(mark.position) or self._lines.hash.digest() != mark.digest:
            return False
        self._lines.line, self._rows = mark.line, mark.rows
        return True

    @property
    def goes_on(self) -> bool:
        """Whether something stands behind the mark that was skipped to."""
        return self._lines.has_more

    def rows(self) -> Iterator[Row]:
        """The rows; lines that are empty are none."""
        reader = csv.reader(self._lines, delimiter=self.delimiter, strict=True)
        width = len(self.header)
        while True:
            line = self._lines.line + 1
            try:
                cells, wrong = next(reader), self._lines.fault()
            except StopIteration:
                return
            except csv.Error as error:
                cells, wrong = [self._lines.keep_first().rstrip("\r\n")], f"cannot be read as CSV: {error}"
            if cells and wrong is None and len(cells) != width:
                wrong = f"has {len(cells)} cells, the header {width}"
            self._lines.settle()
            if cells:
                self._rows += 1
                yield Row(line, self._rows, cells, wrong)

    def _read_header(self, delimiter: str | None) -> tuple[list[str], str]:
        lines = self._lines
        lines.skip_bom()
        try:
            first = next(lines, "")
        except csv.Error as error:
            raise SetupError(f"The header cannot be read as CSV: {error}.") from None
        if (fault := lines.fault()) is not None:
            raise SetupError(f"The header {fault}.")
        if not first.strip():
            raise SetupError("The file is empty: its first line names the columns.")
        if "\r" in first.rstrip("\r\n"):
            raise SetupError("The lines of the file end with CR alone; save it with LF or CRLF.")
        lines.give_back()
        chosen = delimiter or _sniffed(first)
        try:
            header = [name.strip() for name in next(csv.reader(lines, delimiter=chosen, strict=True))]
        except csv.Error as error:
            raise SetupError(f"The header cannot be read as CSV: {error}.") from None
        lines.settle()
        if twice := sorted(name for name, count in Counter(header).items() if count > 1):
            wrong = tuple(FieldError(name or "(no name)", "stands more than once in the header") for name in twice)
            raise SetupError("Each column needs a name of its own.", wrong)
        return header, chosen


def _sniffed(first: str) -> str:
    """The delimiter of a header; a comma where there is only one column."""
    bare = _QUOTED.sub("", first)
    counts = [(bare.count(one), one) for one in DELIMITERS]
    most, chosen = max(counts, key=lambda count: count[0])
    if most and sum(count == most for count, _ in counts) > 1:
        raise SetupError("The header may be read in two ways: say which character divides its columns (--delimiter).")
    return chosen


class _Lines:
    """The lines of a stream, as the CSV reader takes them; they count once their row is settled."""

    def __init__(self, stream: BinaryIO, digest: hashlib._Hash) -> None:
        self._stream = stream
        self._taken: list[bytes] = []
        """Of the row that is being read."""
        self._back: deque[bytes] = deque()
        """Taken and given back."""
        self._size = 0
        self.hash = digest
        self.position = 0
        self.line = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._back.popleft() if self._back else self._stream.readline(MAX_ROW)
        if not raw:
            raise StopIteration
        self._taken.append(raw)
        self._size += len(raw)
        if self._size >= MAX_ROW:
            raise csv.Error(f"more than {MAX_ROW} bytes, of which the first are shown, or a quote without its end")
        return raw.decode("utf-8", "surrogateescape")

    @property
    def has_more(self) -> bool:
        """Whether a line is at hand."""
        return bool(self._back)

    def fault(self) -> str | None:
        """What no row may have."""
        for after, raw in enumerate(self._taken, 1):
            line = self.line + after
            if b"\0" in raw:
                return f"has a NUL in line {line}; {_SAVE_AS}"
            if not raw.isascii():
                try:
                    raw.decode()
                except UnicodeDecodeError:
                    return f"is not UTF-8 in line {line}; {_SAVE_AS}"
        return None

    def give_back(self) -> None:
        """Let all of the row be read again."""
        self._back.extendleft(reversed(self._taken))
        self._taken, self._size = [], 0

    def keep_first(self) -> str:
        """Keep the first line of the row, whole, and give the others back; its text, at most as long as a row."""
        first, *others = self._taken
        self._back.extendleft(reversed(others))
        self._taken = [first]
        if not first.endswith(b"\n") and not self._back:
            self._pass_over()
        return first.decode("utf-8", "surrogateescape")

    def _pass_over(self) -> None:
        """The rest of a line that is longer than a row may be: it counts, and nobody keeps it."""
        self._count(self._taken.pop())
        piece = b" "
        while piece and not piece.endswith(b"\n"):
            piece = self._stream.readline(MAX_ROW)
            self._count(piece)
        self.line += 1

    def settle(self) -> None:
        """What was taken is done with."""
        for raw in self._taken:
            self._count(raw)
        self.line += len(self._taken)
        self._taken, self._size = [], 0

    def skip_bom(self) -> None:
        """A mark at the beginning that says UTF-8."""
        start = self._stream.readline(MAX_ROW)
        if start.startswith(_BOM):
            self._count(_BOM)
            start = start.removeprefix(_BOM)
        if start:
            self._back.append(start)

    def skip_to(self, position: int) -> bool:
        """Read on to a byte; False where the file ends before it, or where no line ends there any more."""
        last = b""
        while self.position < position:
            last = self._stream.read(min(_PIECE, position - self.position))
            if not last:
                return False
            self._count(last)
        following = self._stream.readline(MAX_ROW)
        if following:
            self._back.append(following)
        goes_on = bool(last) and not last.endswith(b"\n") and following[:1] not in (b"\r", b"\n", b"")
        return self.position == position and not goes_on

    def _count(self, raw: bytes) -> None:
        self.hash.update(raw)
        self.position += len(raw)
