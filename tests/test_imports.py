"""Lists that come in: what becomes of each row, whatever the file is like and however often it is read."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import Tenant, Tenants
from demos import CONSENT, clean_environment, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from test_erasures import erase, history, link, named, reason, stored

from consent_service import imports, records
from consent_service.errors import SetupError
from consent_service.imports import Found, Job, Mapping, reading, sheet
from consent_service.ledger.entry import ImportMade, read_system
from consent_service.policies import Policy
from consent_service.subjects import Subject

EXAMPLES = Path(imports.__file__).parent / "examples"
HEADER = "type,id,purpose,status,channel,contact,occurred_at"
IN_MAY = "2026-05-02T10:00:00Z"


def text(*rows: str, header: str = HEADER) -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def mail(who: str, status: str = "given", at: str = IN_MAY, contact: str = "") -> str:
    return f"login,{who},marketing.email,{status},email,{contact},{at}"


async def read(
    tenant: Tenant, content: bytes, tell: Callable[[int], None] = lambda _: None, **job: Any
) -> Found:  # fmt: skip
    given = {"name": "list.csv", "mapping": Mapping(), "refusals": None, **job}
    ledger = tenant.services.ledgers.of(tenant.log_id)
    return await imports.run(ledger, tenant.services.writer, io.BytesIO(content), Job(**given), tell)


async def fetch(tenant: Tenant, sql: str) -> list[asyncpg.Record]:
    async with tenant.services.ledgers.of(tenant.log_id).connection() as connection:
        return await connection.fetch(sql)


async def count(tenant: Tenant) -> int:
    return int((await fetch(tenant, "SELECT count(*) FROM event"))[0][0])


async def system_entries(tenant: Tenant) -> list[ImportMade]:
    rows = await fetch(tenant, "SELECT entry FROM ledger_entry WHERE substr(entry, 1, 1) = '\\x02' ORDER BY idx")
    return [entry for row in rows if isinstance(entry := read_system(row["entry"]), ImportMade)]


async def acts(tenant: Tenant, subject: dict[str, str]) -> list[Any]:
    return [one["event"] for one in await history(tenant, subject)]


def rejected(file: Path) -> list[dict[str | None, Any]]:
    csv.field_size_limit(10 * sheet.MAX_ROW)
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8", errors="surrogateescape"), newline="")))


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


# -- what becomes of a row --------------------------------------------------------------------------------------------


async def test_each_row_is_an_act_with_its_own_time_and_the_lowest_grade(tenant: Tenant) -> None:
    header = f"{HEADER},notice,notice_version,language,method,evidence.source"
    found = await read(
        tenant,
        text(
            f"{mail('ada')},web-banner,1,de,Telefon,crm",
            "login,bob,analytics,withdrawn,,,2026-05-03,,,,,",
            "login,eve,analytics,given,web,,2026-05-03T12:00:00+02:00,,,,,",
            header=header,
        ),
    )
    assert (found.rows, found.tally.recorded, found.tally.refused) == (3, 3, {})
    assert (found.tally.effective, found.tally.without_effect) == (1, {"evidence_too_low": 2})
    (ada,) = await acts(tenant, {"type": "login", "id": "ada"})
    assert (ada["grade"], ada["method"], ada["credential"]) == ("imported", "import", reading.CREDENTIAL)
    assert ada["evidence"] == {"method": "Telefon", "source": "crm"}
    assert (ada["notice"]["id"], ada["notice"]["language"]) == ("web-banner", "de")
    (eve,) = await acts(tenant, {"type": "login", "id": "eve"})
    assert (eve["notice"], eve["records"][0]["occurred_at"]) == (None, "2026-05-03T10:00:00Z")
    (bob,) = await acts(tenant, {"type": "login", "id": "bob"})
    assert bob["records"][0]["occurred_at"] == "2026-05-03T23:59:59.999999Z", "a day means its end for a no"
    assert await reason(tenant, {"type": "login", "id": "bob"}, "analytics", channel="web") == "withdrawn"


async def test_an_imported_consent_counts_where_the_purpose_asks_for_no_more(
    make_tenant: Tenants, demo_policy: Policy
) -> None:
    def changed(**fields: Any) -> Policy:
        purposes = dict(demo_policy.purposes)
        purposes["marketing.email"] = replace(purposes["marketing.email"], evidence="imported", **fields)
        return replace(demo_policy, purposes=purposes)

    lenient, strict = (
        await make_tenant.make(changed()),
        await make_tenant.make(changed(required_notice={"web-banner": 1})),
    )
    shown = text(
        f"{mail('ada')},web-banner,1,en", f"{mail('bob')},,,", header=f"{HEADER},notice,notice_version,language"
    )
    assert (await read(lenient, shown)).tally.effective == 2
    assert await reason(lenient, {"type": "login", "id": "bob"}, "marketing.email") == "consent"
    found = await read(strict, shown)
    assert (found.tally.effective, found.tally.without_effect) == (1, {"notice_outdated": 1})
    assert await reason(strict, {"type": "login", "id": "bob"}, "marketing.email") == "notice_outdated"


async def test_an_import_never_grants_again(make_tenant: Tenants, demo_policy: Policy) -> None:
    purposes = dict(demo_policy.purposes)
    purposes["marketing.email"] = replace(purposes["marketing.email"], evidence="imported")
    tenant, ada = await make_tenant.make(replace(demo_policy, purposes=purposes)), {"type": "login", "id": "ada"}
    assert (await read(tenant, text(mail("ada")))).tally.effective == 1
    await tenant.record({"purpose": "marketing.email", "status": "withdrawn"}, subject=ada)
    found = await read(tenant, text(mail("ada", at="")), name="a later list")
    assert (found.tally.effective, found.tally.without_effect) == (0, {"withdrawn": 1})
    assert await reason(tenant, ada, "marketing.email") == "withdrawn"


async def test_a_purpose_with_double_opt_in_takes_given_for_a_request(tenant: Tenant) -> None:
    row = "email,ada@x.example,newsletter,{},email,ada@x.example," + IN_MAY
    found = await read(tenant, text(row.format("given"), row.format("confirmed").replace("ada", "bob")))
    assert found.tally.recorded == 2
    states = await fetch(tenant, "SELECT status FROM consent_state ORDER BY status")
    assert [row["status"] for row in states] == ["confirmed", "requested"]


@pytest.mark.parametrize(
    ("row", "field", "said"),
    [
        ("login,ada,marketing.mail,given,email,,", "purpose", "did you mean `marketing.email`?"),
        ("login,ada,marketing.email,yes,email,,", "status", "must be one of"),
        ("login,ada,analytics,given,email,,", "channel", "is no channel of `analytics`"),
        ("login,ada,analytics,given,,,", "channel", "is missing"),
        ("login,ada,newsletter,given,email,,", "contact", "is missing"),
        ("Login,ada,analytics,given,web,,", "type", "Expected `str` matching regex"),
        ("login,,analytics,given,web,,", "id", "is missing"),
        (f"login,{'x' * 300},analytics,given,web,,", "id", "length"),
        ("login,a\u200bb,analytics,given,web,,", "id", "control, format"),
        ("login,ada,analytics,given,web,,yesterday", "occurred_at", "is no time"),
        ("login,ada,analytics,given,web,,2026-02-30", "occurred_at", "is no time"),
        ("login,ada,analytics,given,web,,2026-05-02T10:00:00", "occurred_at", "has no time zone"),
        ("login,ada,analytics,given,web,,2126-05-02", "occurred_at", "lies in the future"),
        ("login,ada,*,given,web,,", "purpose", "`*` is for restrictive records"),
    ],
)
async def test_a_row_that_is_wrong_is_refused_with_its_reason(
    tenant: Tenant, tmp_path: Path, row: str, field: str, said: str
) -> None:
    file = tmp_path / "refused.csv"
    found = await read(tenant, text(mail("bob"), row, mail("eve")), refusals=file)
    assert (found.tally.recorded, found.tally.refused) == (2, {"invalid": 1})
    (told,) = rejected(file)
    assert told["refused.line"] == "3"
    assert told["refused.because"].startswith(f"{field}: "), told
    assert said in told["refused.because"]
    assert ",".join(told[name] or "" for name in HEADER.split(",")) == row


async def test_all_that_is_wrong_with_a_row_is_told_at_once(tenant: Tenant, tmp_path: Path) -> None:
    file = tmp_path / "refused.csv"
    await read(tenant, text("login,,nothing,perhaps,,,never"), refusals=file)
    assert [part.split(":")[0] for part in rejected(file)[0]["refused.because"].split("; ")] == [
        "occurred_at", "id", "status",
    ]  # fmt: skip


async def test_refused_rows_are_read_in_once_they_are_corrected(tenant: Tenant, tmp_path: Path) -> None:
    file = tmp_path / "refused.csv"
    formula = '=HYPERLINK("http://x")'
    header = f"{HEADER},evidence.note"
    rows = text(f"{mail('ada')},fine", "login,bob,nothing,withdrawn,,,," + '"' + formula.replace('"', '""') + '"',
                header=header)  # fmt: skip
    assert (await read(tenant, rows, refusals=file)).tally.refused == {"invalid": 1}
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    assert rejected(file)[0]["evidence.note"] == formula, "as it came"
    corrected = file.read_bytes().replace(b"nothing", b"analytics")
    again = tmp_path / "again.csv"
    found = await read(tenant, corrected, name="corrected", refusals=again)
    assert (found.tally.recorded, found.tally.refused, again.exists()) == (1, {}, False)
    (bob,) = await acts(tenant, {"type": "login", "id": "bob"})
    assert bob["evidence"] == {"note": formula}


async def test_a_file_that_is_there_is_never_overwritten(tenant: Tenant, tmp_path: Path) -> None:
    file = tmp_path / "refused.csv"
    file.write_text("mine")
    with pytest.raises(SetupError, match="exists already"):
        await read(tenant, text("login,ada,nothing,given,,,"), refusals=file)
    assert (file.read_text(), await count(tenant)) == ("mine", 0)


async def test_a_record_of_an_imported_consent_can_be_made(tenant: Tenant, demo_policy: Policy) -> None:
    await read(tenant, text(mail("ada")))
    (seen,) = await acts(tenant, {"type": "login", "id": "ada"})
    event = records.opened(json.dumps(seen).encode())
    assert records.receipt(event, demo_policy)
    assert "Newsletter" not in records.as_text(records.sheet(event, demo_policy, "en", records.Place("log", 1)))


# -- columns and mappings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "mapping", "told"),
    [
        ("type,id,purpose,status,shoe,hat", Mapping(), {"column shoe", "column hat"}),
        ("id,purpose", Mapping(), {"type", "status"}),
        (HEADER, Mapping(columns={"ID": "id", "id": "mail"}), {"[columns] ID", "[columns] id"}),
        (HEADER, Mapping(constant={"type": "login", "name": "x"}), {"[constant] type", "[constant] name"}),
        (HEADER, Mapping(values={"state": {}}, ignore=("hat",)), {"[values] state", "ignore hat"}),
        (HEADER, Mapping(ignore=("status",)), {"status"}),
        (f"{HEADER},", Mapping(), {"column (no name)"}),
        (f"{HEADER},id,type,x", Mapping(), {"id", "type"}),
    ],
)
async def test_columns_without_a_meaning_are_all_told_before_the_first_row(
    tenant: Tenant, header: str, mapping: Mapping, told: set[str]
) -> None:
    with pytest.raises(SetupError) as refused:
        await read(tenant, text(mail("ada"), header=header), mapping=mapping)
    assert {error.pointer for error in refused.value.errors} == told
    assert await count(tenant) == 0


@pytest.mark.parametrize(
    "raw",
    [b"columns = ", b"\xff", b'[columns]\nid = ""', b'[column]\nid = "x"', b"ignore = [1]", b'delimiter = ";;"'],
)
def test_a_mapping_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(SetupError):
        imports.read_mapping(raw)


async def test_the_example_of_a_mailing_list(tenant: Tenant) -> None:
    mapping = imports.read_mapping((EXAMPLES / "mailing-list.toml").read_bytes())
    rows = (
        "Email Address,First Name,Last Name,Status,MEMBER_RATING,OPTIN_TIME,CONFIRM_TIME,CONFIRM_IP,LEID,EUID",
        '"Ada@x.example","Ada","L, of Y",subscribed,3,"2026-05-01 09:00:00","2026-05-01 09:05:00",192.0.2.7,1,a1',
        "bob@x.example,Bob,,unsubscribed,2,2026-05-01 09:00:00,2026-05-01 09:05:00,,2,a2",
        "eve@x.example,,,cleaned,1,,,,3,a3",
    )
    found = await read(tenant, "\r\n".join(rows).encode("utf-8-sig"), mapping=mapping)
    assert (found.rows, found.tally.recorded, found.tally.passed_over, found.tally.refused) == (3, 2, 1, {})
    (ada,) = await acts(tenant, {"type": "email", "id": "Ada@x.example"})
    assert ada["records"] == [{
        "purpose": "newsletter", "status": "confirmed", "channel": "email", "contact": "Ada@x.example",
        "recipient": None, "occurred_at": "2026-05-01T09:05:00Z",
    }]  # fmt: skip
    assert ada["evidence"] == {"ip": "192.0.2.7", "signed_up": "2026-05-01 09:00:00"}
    assert await reason(tenant, {"type": "email", "id": "bob@x.example"}, "newsletter") == "withdrawn"


async def test_the_example_of_a_preference_centre(tenant: Tenant) -> None:
    mapping = imports.override(
        imports.read_mapping((EXAMPLES / "preference-centre.toml").read_bytes()), timezone="Europe/Berlin"
    )
    columns = "Data Subject Identifier;Organization;Country;Purpose Name;Transaction Type;Channel;Interaction Date"
    rows = (
        f"{columns};Receipt ID",
        "ada;ACME;DE;Website Analytics;CONFIRMED;Website;29.03.2026 12:00:00;r-1",
        "ada;ACME;DE;Email Marketing;OPT_OUT;Email;30.03.2026 12:00:00;r-2",
        "bob;ACME;DE;Email Marketing;NO_CHOICE;Email;30.03.2026 12:00:00;r-3",
        "bob;ACME;DE;Cookie Banner Shown;CONFIRMED;Website;30.03.2026 12:00:00;r-4",
        "bob;ACME;DE;Something Else;CONFIRMED;Website;30.03.2026 12:00:00;r-5",
    )
    found = await read(tenant, "\n".join(rows).encode(), mapping=mapping)
    assert (found.tally.recorded, found.tally.passed_over, found.tally.refused) == (2, 2, {"invalid": 1})
    first, second = await acts(tenant, {"type": "login", "id": "ada"})
    assert first["records"][0]["occurred_at"] == "2026-03-29T10:00:00Z"
    assert first["evidence"] == {"receipt": "r-1"}
    assert second["records"][0]["status"] == "withdrawn"


@pytest.mark.parametrize(
    ("status", "said", "meant"),
    [
        ("given", "2025-10-26T02:30:00", "2025-10-26T00:30:00Z"),
        ("withdrawn", "2025-10-26T02:30:00", "2025-10-26T01:30:00Z"),
        ("given", "2025-07-01", "2025-06-30T22:00:00Z"),
        ("refused", "2025-07-01", "2025-07-01T21:59:59.999999Z"),
        ("withdrawn", "2025-07-01 10:00", "2025-07-01T08:00:00Z"),
        ("given", "2025-07-01t10:00:00.5z", "2025-07-01T10:00:00.500000Z"),
    ],
)
async def test_what_may_mean_two_moments_is_read_as_the_one_that_permits_less(
    tenant: Tenant, status: str, said: str, meant: str
) -> None:
    mapping = Mapping(timezone="Europe/Berlin")
    assert (await read(tenant, text(mail("ada", status, said)), mapping=mapping)).tally.recorded == 1
    (event,) = await acts(tenant, {"type": "login", "id": "ada"})
    assert event["records"][0]["occurred_at"] == meant


# -- hostile files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n" + text(), "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (text(mail("ada")).decode().encode("utf-16"), "UTF-8"),
        (text(mail("ada")).decode().encode("utf-16-le"), "UTF-8"),
        ("type;id;stra\u00dfe\n".encode("latin-1"), "not UTF-8 in line 1"),
        (text(mail("ada")).replace(b"\n", b"\r"), "CR alone"),
        (b"type,id;purpose\n", "two ways"),
        (b'"type,id\n', "CSV"),
        (b"x" * 2_000_000, "CSV"),
    ],
)
async def test_a_file_that_is_no_list_is_refused_whole(tenant: Tenant, content: bytes, said: str) -> None:
    with pytest.raises(SetupError) as refused:
        await read(tenant, content)
    assert said in str(refused.value)


HOSTILE: list[tuple[bytes, str | None]] = [
    (b"\xef\xbb\xbf" + text(mail("ada"), mail("bob")), None),
    (text(mail("ada"), mail("bob")).replace(b"\n", b"\r\n"), None),
    (text(mail("ada"), mail("bob")).removesuffix(b"\n"), None),
    (text(mail("ada"), "", mail("bob"), ""), None),
    (text(mail("ada"), mail("bob")).replace(b",", b";"), None),
    (text(mail("ada"), mail("bob")).replace(b",", b"\t"), None),
    (text('"login","ada","marketing.email","given","email","",""', mail("bob")), None),
    (text(mail("ada"), "login,x\0y,analytics,given,web,,", mail("bob")), "NUL in line 3"),
    (text(mail("ada"), "login,x", mail("bob")), "has 2 cells, the header 7"),
    (text(mail("ada"), mail("x") + ",more", mail("bob")), "has 8 cells, the header 7"),
    (text(mail("ada"), 'login,"x"y,analytics,given,web,,', mail("bob")), "cannot be read as CSV"),
    (text(mail("ada"), 'login,"x,analytics,given,web,,', mail("bob")), "cannot be read as CSV"),
    (text(mail("ada"), "login,x\ry,analytics,given,web,,", mail("bob")), "cannot be read as CSV"),
    (text(mail("ada"), f"login,{'x' * 200_000},analytics,given,web,,", mail("bob")), "cannot be read as CSV"),
    (text(mail("ada"), "x" * 3_000_000, mail("bob")), "cannot be read as CSV"),
    (text(mail("ada"), '"' + "x\n" * 3, mail("bob")).replace(b"x\n", b""), "cannot be read as CSV"),
    (text(mail("ada"), "@@", mail("bob")).replace(b"@@", "login,j\u00f6rg,analytics,given,web,,".encode("latin-1")),
     "is not UTF-8 in line 3"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), HOSTILE, ids=range(len(HOSTILE)))
async def test_a_row_that_cannot_be_read_costs_no_other(
    tenant: Tenant, tmp_path: Path, content: bytes, said: str | None
) -> None:
    file = tmp_path / "refused.csv"
    found = await read(tenant, content, refusals=file)
    assert (found.tally.recorded, found.tally.refused) == (2, {} if said is None else {"unreadable": 1})
    if said is not None:
        (told,) = rejected(file)
        assert said in told["refused.because"]
        assert told["refused.line"] == "3"


async def test_a_quoted_line_break_belongs_to_its_cell(tenant: Tenant) -> None:
    header = f"{HEADER},evidence.note"
    found = await read(tenant, text(f'{mail("ada")},"two\nlines, ""quoted"""', f"{mail('bob')},", header=header))
    assert found.tally.recorded == 2
    (ada,) = await acts(tenant, {"type": "login", "id": "ada"})
    assert ada["evidence"] == {"note": 'two\nlines, "quoted"'}


async def test_another_encoding_far_into_the_file_is_told_by_its_line() -> None:
    rows = [f"u{n}" for n in range(50_000)]
    content = "\n".join(["name", *rows]).encode() + "\nj\u00f6rg\nlast".encode("latin-1")
    made = sheet.Sheet(io.BytesIO(content), b"")
    wrong = [row for row in made.rows() if row.wrong is not None]
    assert [(row.line, row.number) for row in wrong] == [(50_002, 50_001)]
    assert "is not UTF-8 in line 50002; save the file as UTF-8" in (wrong[0].wrong or "")
    assert made.mark().position == len(content)


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2,
                         max_size=2), max_size=8), st.sampled_from(",;\t"))  # fmt: skip
def test_whatever_is_written_as_csv_is_read_so_and_gone_on_with_from_any_row(
    rows: list[list[str]], delimiter: str
) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    content = written.getvalue().encode()
    made = sheet.Sheet(io.BytesIO(content), b"salt")
    seen, marks = [], [made.mark()]
    for row in made.rows():
        assert row.wrong is None
        seen.append(row.cells)
        marks.append(made.mark())
    assert seen == rows
    for done, mark in enumerate(marks):
        rest = sheet.Sheet(io.BytesIO(content), b"salt")
        assert rest.skip_to(mark)
        assert [(row.number, row.cells) for row in rest.rows()] == list(enumerate(rows, 1))[done:]
        assert rest.mark() == made.mark()


# -- again, and after a crash -----------------------------------------------------------------------------------------


async def test_the_same_list_again_records_nothing_and_a_longer_one_the_rest(tenant: Tenant) -> None:
    rows = [mail(f"p{n}") for n in range(5)]
    first = await read(tenant, text(*rows))
    size = (await fetch(tenant, "SELECT size FROM ledger_head"))[0]["size"]
    again = await read(tenant, text(*rows))
    assert (again.continued, again.tally, await count(tenant)) == (5, first.tally, 5)
    assert (await fetch(tenant, "SELECT size FROM ledger_head"))[0]["size"] == size, "not even an entry"
    longer = await read(tenant, text(*rows, mail("new")))
    assert (longer.continued, longer.tally.recorded, longer.reading, await count(tenant)) == (5, 6, first.reading, 6)


async def test_after_a_crash_it_goes_on_from_where_it_was_noted_last(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "_CHUNK", 2)
    monkeypatch.setattr(reading, "_NOTE_EVERY", 4)
    rows = [mail(f"p{n}") if n % 3 else "login,x,nothing,given,,," for n in range(20)]
    file = tmp_path / "refused.csv"
    with pytest.raises(Crash):
        await read(tenant, text(*rows), crashing(6), refusals=file)
    assert await system_entries(tenant) == []
    found = await read(tenant, text(*rows), refusals=file)
    assert (found.continued, found.rows) == (12, 20)
    assert (found.tally.recorded + found.tally.repeated, found.tally.refused) == (13, {"invalid": 7})
    assert [row["refused.line"] for row in rejected(file)] == [str(n) for n in range(2, 22, 3)]
    assert len(await system_entries(tenant)) == 1
    file.unlink()
    await read(tenant, text(*rows, "login,x,nothing,given,,,"), refusals=file)
    assert len(rejected(file)) == 1, "what is new; the others were told"


async def test_a_row_that_was_changed_is_another_act_and_the_others_are_not(tenant: Tenant) -> None:
    await read(tenant, text(mail("ada"), mail("bob"), mail("eve")))
    found = await read(tenant, text(mail("ada"), mail("bob", "withdrawn"), mail("eve")))
    assert (found.continued, found.tally.recorded, found.tally.repeated) == (0, 1, 2)
    assert await count(tenant) == 4
    assert await reason(tenant, {"type": "login", "id": "bob"}, "marketing.email") == "withdrawn"


async def test_a_last_line_that_grew_is_not_taken_for_a_new_row(tenant: Tenant) -> None:
    header = "type,id,purpose,status,channel"
    await read(tenant, text("login,ada,analytics,given,web", header=header).removesuffix(b"eb\n"))
    found = await read(tenant, text("login,ada,analytics,given,web", header=header))
    assert (found.continued, found.rows, found.tally.recorded) == (0, 1, 1)


async def test_another_list_is_another_statement(tenant: Tenant) -> None:
    """The control of the above: without the same keys everything is recorded again."""
    rows = text(mail("ada"), mail("bob"))
    await read(tenant, rows)
    await read(tenant, rows, name="another")
    assert await count(tenant) == 4


async def test_a_dry_run_tells_the_same_and_leaves_no_trace(
    tenant: Tenant, tmp_path: Path, owner: asyncpg.Connection[Any]
) -> None:
    tables = ("ledger_head", "ledger_entry", "event", "strand", "consent_state", "idempotency", "import", "contact")
    before = [await stored(tenant, owner, table) for table in tables]
    rows, file = text(mail("ada"), mail("bob", "withdrawn"), "login,x,nothing,given,,,"), tmp_path / "refused.csv"
    told = await read(tenant, rows, dry_run=True, refusals=file)
    assert [await stored(tenant, owner, table) for table in tables] == before
    done = await read(tenant, rows)
    assert (told.tally, told.reading) == (done.tally, None)
    assert len(rejected(file)) == 1
    assert (await read(tenant, rows, dry_run=True)).tally.repeated == 2


@pytest.fixture
def fresh(make_tenant: Tenants, demo_policy: Policy) -> Callable[[], Awaitable[Tenant]]:
    async def make() -> Tenant:
        return await make_tenant.make(demo_policy)

    return make


class Crash(Exception):
    pass


def crashing(after: int) -> Callable[[int], None]:
    heard = iter(range(after, -1, -1))

    def tell(_position: int) -> None:
        if next(heard) == 0:
            raise Crash

    return tell


def made(who: str, what: str, day: int) -> str:
    return f"login,{who},{what},,2026-05-{day:02d}T10:00:00Z"


ROWS = st.builds(
    made,
    st.sampled_from(["ada", "bob", "eve"]),
    st.sampled_from([
        "marketing.email,given,email", "marketing.email,withdrawn,", "analytics,given,web", "analytics,given,app",
        "analytics,refused,", "*,withdrawn,", "repair.call,applies,", "nothing,given,web", "analytics,given,",
    ]),
    st.integers(1, 9),
)  # fmt: skip


async def standing(tenant: Tenant) -> list[tuple[Any, ...]]:
    hasher = tenant.services.ledgers.of(tenant.log_id).hasher
    who = {hasher.identifier(Subject("login", name)): name for name in ("ada", "bob", "eve")}
    rows = await fetch(
        tenant, "SELECT identifier, purpose, channel, slot, grade, status, occurred_at, expires_at FROM consent_state"
    )
    return sorted((who[row[0]], *map(str, tuple(row)[1:])) for row in rows)


@settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.lists(ROWS, min_size=1, max_size=14), st.lists(st.tuples(st.integers(0, 14), st.integers(0, 6)), max_size=4))
async def test_however_a_list_is_cut_and_whatever_dies_the_same_stands_in_the_end(
    fresh, monkeypatch, tmp_path, rows: Sequence[str], runs: Sequence[tuple[int, int]]
):
    monkeypatch.setattr(reading, "_CHUNK", 2)
    monkeypatch.setattr(reading, "_NOTE_EVERY", 3)
    control, tenant = await fresh(), await fresh()
    once = await read(control, text(*rows))
    file = tmp_path / f"{uuid.uuid4().hex}.csv"
    for upto, dies in sorted(runs):
        with suppress(Crash):
            await read(tenant, text(*rows[:upto]), crashing(dies), refusals=file)
    found = await read(tenant, text(*rows), refusals=file)
    assert await standing(tenant) == await standing(control)
    assert await count(tenant) == await count(control) == once.tally.recorded
    assert found.tally.recorded + found.tally.repeated == once.tally.recorded
    assert found.tally.refused == once.tally.refused
    told = [row["refused.line"] for row in rejected(file)] if file.exists() else []
    assert told == [str(n) for n, row in enumerate(rows, 2) if "nothing" in row or "given,," in row]


# -- the ledger -------------------------------------------------------------------------------------------------------


async def test_an_entry_of_the_ledger_says_what_was_read(tenant: Tenant) -> None:
    found = await read(tenant, text(mail("ada"), "login,x,nothing,given,,,"))
    (entry,) = await system_entries(tenant)
    assert (entry.reading, entry.recorded, entry.refused, entry.sha256) == (found.reading, 1, 1, found.sha256)


async def test_it_stops_where_the_ledger_does(tenant: Tenant, owner: asyncpg.Connection[Any]) -> None:
    await owner.execute("UPDATE ledger_head SET frozen = 'for a test' WHERE log_id = $1", tenant.log_id)
    with pytest.raises(Exception, match="for a test"):
        await read(tenant, text(mail("ada")))
    assert await count(tenant) == 0


# -- whoever was erased -----------------------------------------------------------------------------------------------


async def strands(tenant: Tenant) -> int:
    return int((await fetch(tenant, "SELECT count(*) FROM strand"))[0][0])


async def test_a_list_brings_nobody_back_who_was_erased(tenant: Tenant, tmp_path: Path) -> None:
    listed = text(
        mail("ada", contact="Ada@shop.example"), mail("bob", contact="bob@shop.example"),
        mail("ada", "withdrawn", contact=""),
    )  # fmt: skip
    assert (await read(tenant, listed)).tally.recorded == 3
    await erase(tenant, {"type": "login", "id": "ada"})
    left = await strands(tenant)
    file = tmp_path / "refused.csv"
    rows = [mail("customer-77", contact="ADA@shop.example"), "email,Ada@Shop.example,marketing.email,given,email,,",
            "login,customer-78,newsletter,confirmed,email,ada@shop.example,", mail("ada", at="")]  # fmt: skip
    found = await read(tenant, text(*rows), name="another", refusals=file)
    assert (found.tally.recorded, found.tally.refused) == (0, {"suppressed": 4})
    assert all("fresh opt-in" in row["refused.because"] for row in rejected(file))
    assert await strands(tenant) == left
    assert await reason(tenant, {"type": "login", "id": "ada"}, "marketing.email") == "suppressed"


async def test_the_same_list_after_an_erasure_says_no_again_and_nothing_else(
    tenant: Tenant, owner: asyncpg.Connection[Any]
) -> None:
    listed = text(
        mail("ada"), "login,ada,analytics,given,web,,2026-05-01", "login,ada,profiling,objected,,,2026-05-01",
        mail("bob"),
    )  # fmt: skip
    await read(tenant, listed)
    await erase(tenant, {"type": "login", "id": "ada"})
    await owner.execute("DELETE FROM import WHERE log_id = $1", tenant.log_id)
    for again, recorded in ((1, 1), (2, 0)):
        found = await read(tenant, listed, name="list.csv")
        assert found.tally.refused == {"suppressed": 1, "erased": 1}, again
        assert (found.tally.recorded, found.tally.repeated) == (recorded, 2 - recorded)
        await owner.execute("DELETE FROM import WHERE log_id = $1", tenant.log_id)
    (event,) = await acts(tenant, {"type": "login", "id": "ada"})
    assert event["records"][0]["status"] == "objected"


async def test_who_is_known_by_an_address_is_found_in_any_spelling(tenant: Tenant) -> None:
    await read(tenant, text("email,Ada@Shop.example,marketing.email,given,email,,2026-05-01"))
    await erase(tenant, {"type": "email", "id": "Ada@Shop.example"})
    found = await read(tenant, text("email,ada@shop.example,marketing.email,given,email,,2026-05-01"), name="b")
    assert found.tally.refused == {"suppressed": 1}


async def test_who_is_linked_to_the_erased_is_suppressed_too(tenant: Tenant) -> None:
    card, login = named("loyalty"), named("login")
    await tenant.record({"purpose": "analytics", "status": "refused"}, subject=login)
    await erase(tenant, login)
    await link(tenant, card, login)
    found = await read(tenant, text(f"loyalty,{card['id']},marketing.email,given,email,,"))
    assert found.tally.refused == {"suppressed": 1}


async def test_an_erasure_while_a_list_is_read_wins(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes after the erasure sees its tombstone, although it read before."""
    await read(tenant, text(mail("ada")))
    book = tenant.services.writer._books.of(tenant.log_id)
    gather, calls = book._gather, 0

    async def late(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        tried = await gather(*args)
        if calls == 1:
            await erase(tenant, {"type": "login", "id": "ada"})
        return tried

    monkeypatch.setattr(book, "_gather", late)
    found = await read(tenant, text(mail("ada", at="")), name="another")
    assert (found.tally.refused, calls) == ({"suppressed": 1}, 2)
    assert await acts(tenant, {"type": "login", "id": "ada"}) == []


# -- the command ------------------------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [CONSENT, "import", *arguments, "--tenant", "demo", "--data", "data"], check=False, capture_output=True,
        cwd=folder, timeout=60, env=clean_environment(), input=given,
    )  # fmt: skip


def test_the_command_says_what_became_of_the_rows_by_its_code_too(place: Path) -> None:
    (place / "l.csv").write_bytes(text(mail("ada"), "login,x,nothing,given,,,"))
    with running(place):
        dry = command(place, "l.csv", "--dry-run")
        assert (dry.returncode, b"dry run" in dry.stdout, (place / "l.csv.rejects.csv").exists()) == (1, True, False)
        done = command(place, "l.csv", "--json")
        assert done.returncode == 1, done.stderr
        assert json.loads(done.stdout)["tally"]["refused"] == {"invalid": 1}
        again = command(place, "l.csv")
        assert (again.returncode, b"2 of them by an earlier run" in again.stdout) == (1, True)
        fine = command(place, "-", given=text(mail("bob")))
        assert (fine.returncode, b"Standard input cannot be gone on with" in fine.stdout) == (0, True), fine.stderr
        for wrong, said in (("--timezone", b"no time zone"), ("--ignore", b"ignore nowhere")):
            refused = command(place, "l.csv", "--list", "x", wrong, "nowhere")
            assert (refused.returncode, refused.stdout, b"Traceback" in refused.stderr) == (2, b"", False)
            assert said in refused.stderr


async def test_killed_again_and_again_it_records_each_row_once(place: Path) -> None:
    people = 1_500
    rows = [f"login,u{n},nothing,given,web,," if n % 100 == 99 else mail(f"u{n}") for n in range(people)]
    (place / "l.csv").write_bytes(text(*rows))
    counted = "SELECT count(*) FROM event WHERE credential = 'import:list'"
    with running(place) as demo:
        connection = await asyncpg.connect(demo.database_url())
        for _ in range(2):
            await kill_once_it_writes(place, connection, counted)
        assert 0 < await connection.fetchval(counted) < people * 0.99, "the kills fell into it"
        done = command(place, "l.csv", "--json")
        accepted = people - people // 100
        assert await connection.fetchval(counted) == accepted
        once = "SELECT count(DISTINCT identifier) FROM event WHERE credential = 'import:list'"
        assert await connection.fetchval(once) == accepted
        tally = json.loads(done.stdout)["tally"]
        assert (tally["recorded"] + tally["repeated"], tally["refused"]) == (accepted, {"invalid": people // 100})
        told = [int(row["refused.line"]) for row in rejected(place / "l.csv.rejects.csv")]
        assert told == list(range(101, people + 2, 100))
        await connection.close()


async def kill_once_it_writes(place: Path, connection: asyncpg.Connection[Any], counted: str) -> None:
    before = await connection.fetchval(counted)
    arguments = ("import", "l.csv", "--tenant", "demo", "--data", "data")
    process = await asyncio.create_subprocess_exec(CONSENT, *arguments, cwd=place, env=clean_environment())
    async with asyncio.timeout(30):
        while await connection.fetchval(counted) == before:
            assert process.returncode is None
    process.kill()
    await process.wait()
