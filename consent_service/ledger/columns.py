"""Events as rows of a table: what opens the entry, and in columns beside it what the payload says.

The columns are a convenience: whoever checks an export makes them again from the payload, which alone is proved.

In CSV no cell may become a formula, not even where a spreadsheet parts cells at semicolons or tabs, as some do by the
language that they are set to: it sees a cell begin behind each of these, wherever they stand. So an apostrophe follows
them; and one stands in front of a cell that begins as formulas do, or with an apostrophe. Without these a cell is the
text again. The payload has none: it is JSON, which has another way to write a semicolon.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

import msgspec

from consent_service.ledger.entry import SALT, TAG
from consent_service.ledger.export import SAID, Line

HEAD = (
    "index", "recorded_at", "event", "kind", "subject_type", "subject_id", "purposes", "statuses", "channels", "method",
    "grade", "credential", "notice", "notice_version", "language", "link", "tag", "salt", "payload",
)  # fmt: skip
Value: TypeAlias = str | int | datetime | list[str] | None
_TAG, _SALT, _PAYLOAD = HEAD.index("tag"), HEAD.index("salt"), HEAD.index("payload")
_FORMULA = re.compile(r"^(?=['=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n])|(?<=[;\t\r\n])")
"""Where an apostrophe goes in."""
_SEMICOLON = "\\u003b"
_ESCAPE = re.compile(r"\\(u003b|.)")


def values(line: Line) -> list[Value]:
    """The columns of an event, in the order of `HEAD`; lists have an item for each record of a consent."""
    said = SAID.decode(line.payload)
    notice = said.notice
    return [
        line.index, said.recorded_at, said.event, said.kind, said.subject.type,
        said.subject.id, [record.purpose for record in said.records],
        said.statuses,
        [record.channel or "" for record in said.records], said.method, said.grade, said.credential,
        None if notice is None else notice.id, None if notice is None else notice.version,
        None if notice is None else notice.language, None if said.link is None else str(said.link), line.tag.hex(),
        line.salt.hex(), bytes(line.payload).decode(),
    ]  # fmt: skip


def cells(line: Line) -> list[str]:
    """The cells of a CSV row."""
    *said, payload = values(line)
    return [*(_cell(value) for value in said), str(payload).replace(";", _SEMICOLON)]


def opening_cells(row: Sequence[str]) -> Line:
    """What a CSV row opens; raises ValueError or IndexError where it is none."""
    payload = _ESCAPE.sub(lambda found: ";" if found[0] == _SEMICOLON else found[0], row[_PAYLOAD])
    return opening([*row[:_PAYLOAD], payload])


def opening(row: Sequence[str]) -> Line:
    """What a row opens; raises ValueError or IndexError where it is none."""
    tag, salt = bytes.fromhex(row[_TAG]), bytes.fromhex(row[_SALT])
    if len(tag) != TAG or len(salt) != SALT:
        raise ValueError("tag or salt has another length")
    return Line(int(row[0]), tag, salt, msgspec.Raw(row[_PAYLOAD].encode()))


def _cell(value: Value) -> str:
    if isinstance(value, list):
        value = " ".join(value)
    elif isinstance(value, datetime):
        value = value.isoformat(timespec="microseconds")
    text = "" if value is None else str(value)
    return _FORMULA.sub("'", text)


def head() -> bytes:
    """The first line of a CSV file, with the mark by which spreadsheets know UTF-8."""
    return b"\xef\xbb\xbf" + _written([list(HEAD)])


def rows(lines: Sequence[Line]) -> bytes:
    """Rows of a CSV file (RFC 4180)."""
    return _written([cells(line) for line in lines])


def _written(made: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(made)
    return text.getvalue().encode()
