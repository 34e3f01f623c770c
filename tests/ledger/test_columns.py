"""The columns of an export in CSV: no spreadsheet takes a cell for a formula, and each is its text still."""

from __future__ import annotations

import csv
import io
import re
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consent_service import jcs
from consent_service.ledger import columns, lines
from consent_service.ledger.export import Line

FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20\t\r\n")
SUBJECT = columns.HEAD.index("subject_id")
TEXT = st.text(st.one_of(st.sampled_from([*FORMULA, *";,'\" \\u003b1"]), st.characters(codec="utf-8")), max_size=12)


def line(subject: str, evidence: str = "") -> Line:
    said = {
        "event": str(uuid.UUID(int=1)), "recorded_at": "2026-01-01T00:00:00.000000Z", "credential": "service",
        "subject": {"type": "login", "id": subject}, "records": [], "evidence": {"note": evidence},
    }  # fmt: skip
    return Line(7, bytes(16), bytes(32), jcs.canonical(said, ""))


def table(*made: Line) -> str:
    return (columns.head() + columns.rows(made)).decode()


def text_of(cell: str) -> str:
    """As the format describes it."""
    return re.sub(r"^'|(?<=[;\t\r\n])'", "", cell)


@given(TEXT, TEXT)
@example("a;=1+1", ';"=1+1";+1')
@example(";''=1", "\\\\u003b")
def test_a_row_is_read_back_exactly(subject: str, evidence: str) -> None:
    one = line(subject, evidence)
    (found,) = [row for batch in lines.table([table(one).encode()]) for row in batch]
    assert found == one
    (_, cells) = csv.reader(io.StringIO(table(one), newline=""), strict=True)
    assert text_of(cells[SUBJECT]) == subject


@pytest.mark.parametrize("parting", [",", ";", "\t"])
@given(subject=TEXT, evidence=TEXT)
@example(subject="a;=1+1", evidence="")
@example(subject='a;"=1+1"', evidence="")
@example(subject="ada", evidence='x;=HYPERLINK("http://evil.example";"you");')
@example(subject="a\n=1", evidence="b\t=1")
@example(subject='"@', evidence=' =1+1 "=1')
def test_no_cell_is_a_formula_wherever_cells_are_parted(parting: str, subject: str, evidence: str) -> None:
    text = table(line(subject, evidence))
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=parting):
        for cell in row:
            assert not cell.startswith(FORMULA), row
    if parting != ",":  # whatever its reader makes of quotes
        for cell in re.split(rf"[\r\n{parting}]", text.rstrip("\r\n")):
            assert not cell.removeprefix('"').startswith(FORMULA), cell


def test_a_cell_that_is_written_in_another_way_is_told() -> None:
    row = table(line("a;b", "c;d"))
    for before, after in (("a;'b", "a;b"), ("c\\u003bd", "c;d")):
        assert row.count(before) >= 1
        changed = row.replace(before, after)
        (found,) = [row for batch in lines.table([changed.encode()]) for row in batch]
        assert isinstance(found, str), "or two files would say the same"
