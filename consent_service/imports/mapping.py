"""What the columns of a list mean: from the cells of a row to the act that it reports.

A column named like a field is that field; a mapping file (TOML) says what the others are:

    ignore = ["LEID", "EUID"]                    # columns that are to be left out
    timezone = "Europe/Berlin"                   # of times without a zone; dates are days there
    time_format = "%d.%m.%Y %H:%M"               # as in strptime, where they are not RFC 3339 or YYYY-MM-DD

    [columns]                                    # field = column; a column may be several fields
    id = "Email Address"
    contact = "Email Address"
    "evidence.ip" = "OPTIN_IP"

    [constant]                                   # fields that no column has
    type = "email"
    purpose = "newsletter"

    [values.status]                              # what stands in the file = what it means; `skip`: pass the row over
    subscribed = "confirmed"
    unsubscribed = "withdrawn"
    cleaned = "skip"

A column that is no field and that nobody mentions is refused before the first row: nothing is left out in silence.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from consent_service import decode
from consent_service.consents import ConsentBody
from consent_service.errors import FieldError, Invalid, SetupError
from consent_service.states import CARRIED

FIELDS = (
    "type", "id", "purpose", "status", "channel", "contact", "recipient", "occurred_at", "notice", "notice_version",
    "language", "method",
)  # fmt: skip
REQUIRED = ("type", "id", "purpose", "status")
EVIDENCE = "evidence."
REFUSED = ("refused.line", "refused.because")
"""The columns that a file of refused rows has before its own; read in again they say nothing."""
SKIP = "skip"
_MAX_MAPPING = 1_048_576
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?P<time>[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_DAY = timedelta(days=1, microseconds=-1)
_FIELD = {
    "/subject/type": "type", "/subject/id": "id", "/notice": "notice", "/notice/id": "notice",
    "/notice/version": "notice_version", "/notice/language": "language",
}  # fmt: skip
"""Of a body's members the fields, where they are called otherwise."""

Name = Annotated[str, Meta(min_length=1)]


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping file."""

    columns: dict[Name, Name] = {}
    constant: dict[Name, Name] = {}
    values: dict[Name, dict[str, str]] = {}
    ignore: tuple[str, ...] = ()
    timezone: Name | None = None
    time_format: Name | None = None
    delimiter: Annotated[str, Meta(min_length=1, max_length=1)] | None = None


def read_mapping(raw: bytes) -> Mapping:
    """A mapping file.

    Raises:
        SetupError: it is none; names everything that is wrong.
    """
    try:
        found = tomllib.loads(raw.decode() if len(raw) <= _MAX_MAPPING else "too = long = for a mapping")
        return decode.convert(found, Mapping)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"The mapping cannot be read as TOML: {error}.") from None
    except Invalid as invalid:
        raise SetupError("The mapping cannot be accepted.", invalid.errors) from None


def override(
    mapping: Mapping, *, ignore: Sequence[str] = (), delimiter: str | None = None, timezone: str | None = None
) -> Mapping:
    """A mapping with what was said on the command line.

    Raises:
        SetupError: the delimiter cannot divide columns, or there is no such time zone.
    """
    chosen = msgspec.structs.replace(
        mapping,
        ignore=(*mapping.ignore, *ignore),
        delimiter="\t" if delimiter in ("TAB", "\\t") else delimiter or mapping.delimiter,
        timezone=timezone or mapping.timezone,
    )
    if chosen.delimiter is not None and (len(chosen.delimiter) != 1 or chosen.delimiter in '"\r\n\0'):
        raise SetupError("--delimiter is one character: a comma, a semicolon, TAB …")
    if chosen.timezone is not None:
        _zone(chosen.timezone)
    return chosen


class Meaning:
    """What each column of a header is, by a mapping.

    Raises:
        SetupError: names every column without a meaning, and everything else that does not fit.
    """

    def __init__(self, mapping: Mapping, header: Sequence[str]) -> None:
        self._zone = None if mapping.timezone is None else _zone(mapping.timezone)
        self._format = mapping.time_format
        self._values = mapping.values
        self._constant = mapping.constant
        columns = {name: name for name in header if _is_field(name)} | mapping.columns
        columns = {field: column for field, column in columns.items() if column not in mapping.ignore}
        if wrong := tuple(_misfits(mapping, header, columns)):
            raise SetupError("The columns of the file and the mapping do not fit together.", wrong)
        self._places = [(field, header.index(column)) for field, column in columns.items()]

    def act(self, cells: Sequence[str]) -> ConsentBody | None:
        """The act that a row reports, without its key; None where it is to be passed over.

        Raises:
            Invalid: names every field that is wrong.
        """
        row = self._read(cells)
        if row is None:
            return None
        errors: list[FieldError] = []
        body = self._body(row, errors)
        try:
            act = decode.convert(body, ConsentBody)
        except Invalid as invalid:
            errors += told(invalid.errors)
        if errors:
            raise Invalid("The row cannot be accepted.", tuple(errors))
        return act

    def _read(self, cells: Sequence[str]) -> dict[str, str] | None:
        """The fields that are not empty; None where the mapping says that such a row is passed over."""
        row = dict(self._constant)
        for field, place in self._places:
            cell = cells[place].strip() if field in FIELDS else cells[place]
            values = self._values.get(field)
            row[field] = cell
            if values is not None and cell in values:
                row[field] = values[cell]
                if values[cell] == SKIP:
                    return None
        return {field: value for field, value in row.items() if value}

    def _body(self, row: dict[str, str], errors: list[FieldError]) -> dict[str, Any]:
        record: dict[str, Any] = {
            name: row[name] for name in ("purpose", "status", "channel", "contact", "recipient") if name in row
        }
        if (moment := self._moment(row, errors)) is not None:
            record["occurred_at"] = moment
        notice = _notice(row, errors)
        evidence = {name.removeprefix(EVIDENCE): value for name, value in row.items() if name.startswith(EVIDENCE)}
        if "method" in row:
            evidence["method"] = row["method"]
        return {
            "subject": {name: row[name] for name in ("type", "id") if name in row},
            "records": [record],
            "method": "import",
            **({} if notice is None else {"notice": notice}),
            **({"evidence": evidence} if evidence else {}),
        }

    def _moment(self, row: dict[str, str], errors: list[FieldError]) -> datetime | None:
        """When it was. What may mean several moments is read as the one that permits less: a yes early, a no late."""
        text = row.get("occurred_at")
        if text is None:
            return None
        late = row.get("status") in CARRIED
        try:
            moment, is_day = self._parsed(text)
            if is_day:
                return _sooner_or_later(moment + _DAY * late, self._zone or UTC, late=late)
            if moment.tzinfo is not None:
                return moment
            if self._zone is not None:
                return _sooner_or_later(moment, self._zone, late=late)
        except (ValueError, OverflowError):
            wanted = f"in the form {self._format}" if self._format else "in the form 2024-05-31T12:00:00Z or 2024-05-31"
            errors.append(FieldError("occurred_at", f"is no time {wanted}"))
        else:
            errors.append(FieldError("occurred_at", "has no time zone; name that of the file (--timezone)"))
        return None

    def _parsed(self, text: str) -> tuple[datetime, bool]:
        """A time, and whether it is a day only.

        Raises:
            ValueError: it is none.
        """
        if self._format is not None:
            return datetime.strptime(text, self._format), not any(  # noqa: DTZ007 -- the zone comes with it, or later
                code in self._format for code in ("%H", "%I", "%X", "%c")
            )
        match = _TIME.fullmatch(text.upper())
        if match is None:
            raise ValueError(text)
        return datetime.fromisoformat(match[0]), match["time"] is None


def told(errors: Sequence[FieldError]) -> Iterator[FieldError]:
    """What is wrong with a body, by the fields of a row."""
    for error in errors:
        name = error.pointer.removeprefix("/records/0/")
        yield FieldError(_FIELD.get(name, name.lstrip("/").replace("/", ".")), error.detail)


def _is_field(name: str) -> bool:
    return name in FIELDS or (name.startswith(EVIDENCE) and len(name) > len(EVIDENCE))


def _misfits(mapping: Mapping, header: Sequence[str], columns: dict[str, str]) -> Iterator[FieldError]:
    """What does not fit between a mapping and a header."""
    yield from _strangers(mapping, header)
    for name in sorted(mapping.constant.keys() & columns.keys()):
        yield FieldError(f"[constant] {name}", f"is also the column `{columns[name]}`; leave one of them out")
    for name in REQUIRED:
        if name not in columns and name not in mapping.constant:
            yield FieldError(name, "is missing: name its column under [columns], or give a [constant]")
    used = {*columns.values(), *mapping.ignore, *REFUSED}
    for name in header:
        if name not in used:
            detail = "means nothing here: name its field under [columns], or leave it out with --ignore"
            yield FieldError(f"column {name or '(no name)'}", detail)


def _strangers(mapping: Mapping, header: Sequence[str]) -> Iterator[FieldError]:
    """Names in a mapping that are no fields, or no columns."""
    for table, names in (("columns", mapping.columns), ("constant", mapping.constant), ("values", mapping.values)):
        for name in names:
            if not _is_field(name):
                yield FieldError(f"[{table}] {name}", decode.unknown([*FIELDS, f"{EVIDENCE}…"], name, "is no field"))
    for field, column in mapping.columns.items():
        if column not in header:
            yield FieldError(f"[columns] {field}", decode.unknown(list(header), column, f"`{column}` is no column"))
    for name in mapping.ignore:
        if name not in header:
            yield FieldError(f"ignore {name}", decode.unknown(list(header), name, "is no column"))


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SetupError(f"`{name}` is no time zone; write for example Europe/Berlin or UTC.") from None


def _sooner_or_later(moment: datetime, zone: tzinfo, *, late: bool) -> datetime:
    """A time by the clocks of a zone; where they show it twice the one or the other."""
    both = [moment.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    return max(both) if late else min(both)


def _notice(row: dict[str, str], errors: list[FieldError]) -> dict[str, Any] | None:
    """What was shown: all that says which it was, or nothing."""
    named = [name for name in ("notice", "notice_version", "language") if name in row]
    if not named:
        return None
    missing = sorted({"notice", "notice_version", "language"} - set(named))
    errors += [FieldError(name, "is missing; a notice has id, version and language") for name in missing]
    version = row.get("notice_version", "")
    if version and not (version.isascii() and version.isdigit() and len(version) <= 9):  # noqa: PLR2004 -- as in 2^31
        errors.append(FieldError("notice_version", "is no version; it is a number from 1"))
    if errors:
        return None
    return {"id": row["notice"], "version": int(version), "language": row["language"]}
