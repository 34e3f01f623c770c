"""The file of refused rows: line, reason, and the row as it came, to be corrected and read in again.

Cells stay as they are, formulas included: whatever is put before them would come back into the next import. So the file
is for an editor, not for a spreadsheet that computes. It may be read by its owner alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from consent_service.errors import SetupError
from consent_service.imports.mapping import REFUSED
from consent_service.imports.sheet import Row

_PIECE = 1_048_576


class Refusals:
    """Writes refused rows; the file is made with the first of them. Without a path they are counted only."""

    def __init__(self, path: Path | None, header: Sequence[str], delimiter: str, salt: bytes) -> None:
        self._path = path
        self._delimiter = delimiter
        self._width = len(header)
        self._kept = [place for place, name in enumerate(header) if name not in REFUSED]
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256(salt)
        self._head = self._line([*REFUSED, *(header[place] for place in self._kept)])
        self.size = 0

    def start(self, *, replace: bool) -> None:
        """Begin a new file. `replace`: where an import that did not come to its end has left one.

        Raises:
            SetupError: something else is there.
        """
        if self._path is None or not self._path.exists():
            return
        if not replace or not self._is_ours():
            raise self._taken()
        self._path.unlink()

    def go_on(self, size: int, digest: bytes, *, finished: bool) -> bool:
        """Go on behind what an earlier run wrote; False where rows that nobody has seen are lost with the file.

        `finished`: whether that run came to its end, and so told of its file.

        Raises:
            SetupError: the file was changed.
        """
        if self._path is None:
            return True
        if not size:
            self.start(replace=not finished)
            return True
        if not self._path.exists():
            return finished
        try:
            self._file = self._path.open("r+b")
            while self.size < size and (piece := self._file.read(min(_PIECE, size - self.size))):
                self._count(piece)
            more = bool(self._file.read(1))
        except OSError as error:
            raise self._unwritable(error) from None
        if self._hash.digest() != digest or (finished and more):
            self.close()
            raise self._taken()
        self._file.seek(size)
        self._file.truncate()  # what came after it was not noted any more, and comes again
        return True

    def add(self, refused: Iterable[tuple[Row, str]]) -> None:
        """Write rows with their reasons, on to the disk."""
        lines = [self._line([str(row.line), reason, *self._cells(row.cells)]) for row, reason in refused]
        if self._path is None or not lines:
            return
        try:
            if self._file is None:
                self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
                lines.insert(0, self._head)
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        for line in lines:
            self._count(line)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the salt and what was written."""
        return self._hash.digest()

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _taken(self) -> SetupError:
        return SetupError(f"{self._path} exists already: move it away, or name another file (--rejects).")

    def _unwritable(self, error: OSError) -> SetupError:
        return SetupError(f"Refused rows cannot be written to {self._path} ({error.strerror}).")

    def _is_ours(self) -> bool:
        """Whether a file has the head that ours has, or nothing at all."""
        assert self._path is not None, "asked only where there is a path"  # noqa: S101 -- an invariant of this class
        try:
            with self._path.open("rb") as file:
                return file.read(len(self._head)) in (b"", self._head)
        except OSError:
            return False

    def _cells(self, cells: Sequence[str]) -> Sequence[str]:
        return [cells[place] for place in self._kept] if len(cells) == self._width else cells

    def _line(self, cells: Sequence[str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self._delimiter, lineterminator="\r\n").writerow(cells)
        return text.getvalue().encode("utf-8", "surrogateescape")

    def _count(self, written: bytes) -> None:
        self._hash.update(written)
        self.size += len(written)
