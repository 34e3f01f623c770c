"""The lines of an export, read with bounded memory: entries of a bundle, events in each format, erasures.

Each reader takes the pieces of a member and gives lists of lines; in place of one that cannot be read it gives a text
that says why.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from consent_service.ledger.columns import HEAD, cells, opening_cells
from consent_service.ledger.container import Damaged
from consent_service.ledger.export import ENCODER, Line

T = TypeVar("T")
MAX_LINE = 1_048_576
"""Bytes."""


def entries(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The entries of a bundle.

    Raises:
        Damaged: it ends within one, or one is empty.
    """
    rest = b""
    for piece in pieces:
        block, at, found = rest + piece, 0, []
        last = len(block) - 1
        while at < last:
            end = at + 2 + (block[at] << 8 | block[at + 1])
            if end > last + 1:
                break
            found.append(block[at + 2 : end])
            at = end
        rest = block[at:]
        if not all(found):
            raise Damaged("altered", "an entry is empty")
        yield found
    if rest:
        raise Damaged("truncated", "the entries end within one")


def ndjson(pieces: Iterable[bytes], decoder: msgspec.json.Decoder[T]) -> Iterator[list[T | str]]:
    """The lines of a text in which each is a JSON value, written in the one way that two readers read alike."""
    for block in _blocks(pieces):
        try:
            found = list(decoder.decode_lines(block))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found = []
        if ENCODER.encode_lines(found) == block:
            yield [*found]
        else:
            each = [_decoded(line, decoder) for line in block.split(b"\n")[:-1]]
            yield ["a line cannot be read" if line is None else line for line in each]


def _decoded(line: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    try:
        found: T = decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if ENCODER.encode(found) == line else None


def table(pieces: Iterable[bytes]) -> Iterator[list[Line | str]]:
    """The rows of a CSV file (RFC 4180), each of which is exactly what its payload says."""
    csv.field_size_limit(MAX_LINE)
    rows = csv.reader(_text(pieces), strict=True)
    try:
        if next(rows, None) != ["\ufeff" + HEAD[0], *HEAD[1:]]:
            yield ["the head of the table is not as it is written"]
        for row in rows:
            yield [_row(row)]
    except csv.Error:
        yield ["a row cannot be read"]


def _row(row: list[str]) -> Line | str:
    try:
        line = opening_cells(row)
        return line if cells(line) == row else f"the row of entry {line.index} says something else than its payload"
    except (ValueError, IndexError, msgspec.MsgspecError, RecursionError):
        return "a row cannot be read"


def _text(pieces: Iterable[bytes]) -> Iterator[str]:
    for block in _blocks(pieces):
        try:
            text = block.decode()
        except UnicodeDecodeError:
            raise Damaged("altered", "the table is no UTF-8") from None
        yield from [line + "\n" for line in text.split("\n")[:-1]]  # no other mark ends a line: payloads have them


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of whole lines."""
    rest = b""
    for piece in pieces:
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield rest + piece[:cut]
            rest = piece[cut:]
        else:
            rest += piece
        if len(rest) > MAX_LINE:
            raise Damaged("altered", f"a line has more than {MAX_LINE} bytes")
    if rest:
        raise Damaged("truncated", "the last line is incomplete")
