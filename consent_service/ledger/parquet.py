"""Events as Apache Parquet, for analytics: the columns of `columns`, in row groups. Needs the extra `parquet`."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import msgspec

from consent_service.errors import SetupError
from consent_service.ledger.columns import HEAD, opening, values
from consent_service.ledger.container import Damaged, Reader
from consent_service.ledger.export import Line

GROUP = 16_384
"""Rows that are held until they are written together."""
_READ = 1_024
_LISTS = frozenset({"purposes", "statuses", "channels"})
_NUMBERS = {"index": "int64", "notice_version": "int32"}


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("pyarrow") is not None


def _library() -> Any:
    if not is_installed():
        raise SetupError("Parquet needs the extra `parquet`: pip install 'consent-service[parquet]'.")
    importlib.import_module("pyarrow.parquet")
    return importlib.import_module("pyarrow")


def _schema(arrow: Any) -> Any:
    special = {"recorded_at": arrow.timestamp("us", tz="UTC")}
    special |= {name: arrow.list_(arrow.string()) for name in _LISTS}
    special |= {name: getattr(arrow, kind)() for name, kind in _NUMBERS.items()}
    return arrow.schema([(name, special.get(name, arrow.string())) for name in HEAD])


class Table:
    """A file on its way; each call returns the bytes that it brings."""

    def __init__(self) -> None:
        self._arrow = _library()
        self._sink = io.BytesIO()
        self._lines: list[Line] = []
        # The sink is emptied as it is written, so it must not be asked where it is.
        self._out = self._arrow.PythonFile(_Forgetful(self._sink), mode="w")
        self._writer = self._arrow.parquet.ParquetWriter(self._out, _schema(self._arrow), compression="zstd")

    def head(self) -> bytes:
        """What comes before the rows."""
        return self._taken()

    def rows(self, lines: Sequence[Line]) -> bytes:
        """More rows; they leave when a group is full."""
        self._lines += lines
        if len(self._lines) >= GROUP:
            self._flush()
        return self._taken()

    def foot(self) -> bytes:
        """The last rows, and the directory of the file."""
        self._flush()
        self._writer.close()
        return self._taken()

    def _flush(self) -> None:
        if self._lines:
            made = [values(line) for line in self._lines]
            arrays = [
                self._arrow.array(column, type=field.type)
                for column, field in zip(zip(*made, strict=True), _schema(self._arrow), strict=True)
            ]
            self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=_schema(self._arrow)))
            self._lines = []

    def _taken(self) -> bytes:
        taken = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return taken


def read(box: Reader, name: str) -> Iterator[list[Line | str]]:
    """The rows of a member whose bytes are known to be those that were signed."""
    start, end = box.seekable(name)
    arrow = _library()
    try:
        file = arrow.parquet.ParquetFile(_Part(box.file, start, end))
        if file.schema_arrow.names != list(HEAD):
            raise Damaged("altered", "the columns of the table are not as they are written")
        for batch in file.iter_batches(batch_size=_READ):
            yield [_row([row[name] for name in HEAD]) for row in batch.to_pylist()]
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged("altered", f"{name} cannot be read") from None


def _row(row: list[Any]) -> Line | str:
    try:
        line = opening(row)
        return line if values(line) == row else f"the row of entry {line.index} says something else than its payload"
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError, RecursionError):
        return "a row cannot be read"


class _Forgetful(io.RawIOBase):
    """A file of which nothing is kept but what was written last."""

    def __init__(self, sink: io.BytesIO) -> None:
        super().__init__()
        self._sink = sink
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        count = self._sink.write(data)
        self._at += count
        return count

    def tell(self) -> int:
        return self._at


class _Part(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        super().__init__()
        self._file, self._start, self._end = file, start, end
        self._at = start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._start

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (self._start, self._at, self._end)[whence]
        self._at = max(self._start, base + offset)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._at)
        data = self._file.read(max(0, min(len(buffer), self._end - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
