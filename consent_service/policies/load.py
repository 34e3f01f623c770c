"""From a folder of TOML and Markdown to one Policy, or to every reason why not.

A pointer is `<file>#<JSON pointer>` (RFC 6901), for example `purposes/analytics.toml#/retention/period`.
While a file cannot be read, the rules that miss something do not run: they would complain about what is merely not
read yet. Names that begin with a dot are left alone.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from consent_service import decode
from consent_service.errors import FieldError, Invalid, PolicyError
from consent_service.policies.lint import lint, lint_purposes
from consent_service.policies.model import Jurisdiction, Notice, Policy, Purpose, Tenant, dec_hook

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T", bound=msgspec.Struct)

_PACKAGE = Path(__file__).resolve().parent.parent
SHELVES = (_PACKAGE / "_data" / "policies", _PACKAGE.parent / "policies")
"""Where example policies lie: in an installed wheel, in a checkout."""

_TOP = ("tenant.toml", "purposes", "notices", "jurisdictions")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_KINDS = re.compile(r"Expected `(\w+)[^`]*`, got `(\w+)`")
_QUOTED = re.compile(r"`([^`]+)`")
_EXAMPLES = {
    "bool": "`true` or `false`",
    "str": 'a text in quotes, "…"',
    "int": "a whole number",
    "array": "a list, […]",
    "object": "a table, { key = … }",
    "datetime": "a time with its zone, such as 2026-01-31T00:00:00Z",
    "date": "a day, such as 2026-01-31",
}
"""What to write, by the kind that the decoder expected."""

_SHAPES = {
    "[A-Z]{2}": "two capital letters, such as DE",
    "[a-z]{2}": "languages as two small letters, such as de",
    "[a-z0-9]+": "small letters and digits, joined by `.`, `_` or `-`, such as marketing.email",
    "(pd|dpv):": "a term of DPV, such as pd:EmailAddress",
    "^dpv:": "a term of DPV, such as dpv:DirectMarketing",
    "timezone": _EXAMPLES["datetime"],
    "RFC3339": "a day or a time, such as 2026-01-31 or 2026-01-31T00:00:00Z",
    "Invalid enum value": 'a number of years or "digital_consent"',
    "of length >= 1": "at least one value or character",
    "of length <= 64": "at most 64 characters",
    "`int` >=": "a larger number",
    "`int` <=": "a smaller number",
}
"""What to write, by a sign of the rule that the decoder found broken."""


def find(name: str) -> Path:
    """The folder of a policy: one that ships with the service, by its name, or any folder, by its path.

    Raises:
        PolicyError: there is no such folder; names those that there are.
    """
    candidates = (*(shelf / name for shelf in SHELVES), Path(name))
    for folder in candidates:
        if folder.is_dir():
            return folder
    known = sorted({entry.name for shelf in SHELVES if shelf.is_dir() for entry in shelf.iterdir() if entry.is_dir()})
    raise PolicyError(f"There is no policy `{name}` and no such folder; {_suggest(name, known)}")


def load(folder: Path) -> Policy:
    """Read, decode and cross-check a policy folder.

    Raises:
        PolicyError: with every error of every file.
    """
    if not folder.is_dir():
        raise PolicyError(f"The policy folder {folder} does not exist; `consent policy lint demo` reads the example.")
    files = _Files(folder)
    tenant = files.struct("tenant.toml", Tenant)
    purposes = _purposes(files)
    notices = _notices(files)
    jurisdictions = _jurisdictions(files)
    files.refuse_strays()
    if tenant is None:
        errors = (*files.errors, *lint_purposes(purposes))
    else:
        policy = Policy(tenant=tenant, purposes=purposes, notices=notices, jurisdictions=jurisdictions)
        errors = (*files.errors, *lint(policy, whole=not files.errors))
        if not errors:
            return policy
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    raise PolicyError(f"The policy in {folder} has {count}.", errors)


class _Files:
    """One policy folder being read, with the errors found so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.errors: list[FieldError] = []

    def refuse(self, file: str, detail: str, key: str = "") -> None:
        """Note one error."""
        self.errors.append(FieldError(f"{file}#{key}", detail))

    def names(self, folder: str) -> list[str]:
        """What lies in a sub-folder, sorted; a missing one is an error."""
        path = self.folder / folder
        if not path.is_dir():
            self.refuse(folder, "is no folder; remove it" if path.exists() else "is missing; make this folder")
            return []
        return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))

    def refuse_strays(self) -> None:
        """At the top of a policy folder everything has its name."""
        for name in self.names(""):
            if name not in _TOP:
                self.refuse(name, f"does not belong here, rename or remove it; {_suggest(name, _TOP)}")

    def text(self, file: str) -> str | None:
        """A file's text; line ends become line feeds, so that a checkout on another system keeps the hash."""
        try:
            text = (self.folder / file).read_bytes().decode().replace("\r\n", "\n")
        except FileNotFoundError:
            self.refuse(file, "is missing; write this file")
        except UnicodeDecodeError as error:
            self.refuse(file, f"is not UTF-8 (byte {error.start}); save it as UTF-8")
        except OSError as error:
            self.refuse(file, f"cannot be read ({error.strerror}); make it a readable file")
        else:
            control = _CONTROL.search(text)
            if control is None:
                return text
            self.refuse(file, f"holds the control character U+{ord(control[0]):04X}; remove it")
        return None

    def table(self, file: str) -> dict[str, Any] | None:
        """A TOML file as parsed."""
        text = self.text(file)
        if text is None:
            return None
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.refuse(file, f"is not TOML: {error}; correct that place")
            return None

    def struct(self, file: str, kind: type[T], named: dict[str, object] | None = None) -> T | None:
        """A TOML file as `kind`; `named` are the keys whose values its path already tells."""
        table = self.table(file)
        if table is None:
            return None
        self._compare(file, table, named or {})
        try:
            return decode.convert(table, kind, dec_hook=dec_hook)
        except Invalid as invalid:
            for error in invalid.errors:
                self.refuse(file, _remedy(error, table), error.pointer)
            return None

    def _compare(self, file: str, table: dict[str, Any], named: dict[str, object]) -> None:
        """A file says what its path says, in characters that can be stored and shown."""
        for pointer in _control_characters(table):
            self.refuse(file, "holds a control character; remove its escape sequence", pointer)
        for key, value in named.items():
            if key in table and table[key] != value:
                wanted = msgspec.json.encode(value).decode()
                detail = f"is `{table[key]}`, but the path says {value}; write `{key} = {wanted}` or rename the path"
                self.refuse(file, detail, f"/{key}")


def _purposes(files: _Files) -> dict[str, Purpose]:
    return {
        stem: purpose
        for stem in _stems(files, "purposes")
        if (purpose := files.struct(f"purposes/{stem}.toml", Purpose, {"id": stem})) is not None
    }


def _jurisdictions(files: _Files) -> dict[str, Jurisdiction]:
    return {
        stem: jurisdiction
        for stem in _stems(files, "jurisdictions")
        if (jurisdiction := files.struct(f"jurisdictions/{stem}.toml", Jurisdiction, {"country": stem})) is not None
    }


def _stems(files: _Files, folder: str) -> list[str]:
    """The names of a folder's TOML files without their ending; anything else there is an error."""
    names = files.names(folder)
    for name in names:
        if not name.endswith(".toml"):
            files.refuse(f"{folder}/{name}", f"does not belong here; name it `{Path(name).stem}.toml` or remove it")
    return [name.removesuffix(".toml") for name in names if name.endswith(".toml")]


def _notices(files: _Files) -> dict[str, dict[int, Notice]]:
    return {notice: versions for notice in files.names("notices") if (versions := _versions(files, notice))}


def _versions(files: _Files, notice: str) -> dict[int, Notice]:
    """The versions of a notice; none where one cannot be read, for then nobody knows which is the newest."""
    names = files.names(f"notices/{notice}")
    for name in names:
        if not _VERSION.fullmatch(name):
            files.refuse(f"notices/{notice}/{name}", "is no version; name the folders 1, 2, 3 …")
    numbers = sorted(int(name) for name in names if _VERSION.fullmatch(name))
    if not names and (files.folder / "notices" / notice).is_dir():
        files.refuse(f"notices/{notice}", f"has no version; write notices/{notice}/1/notice.toml")
    read = {number: _version(files, notice, number) for number in numbers}
    versions = {number: version for number, version in read.items() if version is not None}
    return versions if len(versions) == len(read) else {}


def _version(files: _Files, notice: str, version: int) -> Notice | None:
    folder = f"notices/{notice}/{version}"
    read = files.struct(f"{folder}/notice.toml", Notice, {"id": notice, "version": version})
    prose = _prose(files, folder)
    if read is not None and read.text:
        files.refuse(f"{folder}/notice.toml", "does not belong here; prose lies beside it in en.md, de.md …", "/text")
    return msgspec.structs.replace(read, text=prose) if read is not None else None


def _prose(files: _Files, folder: str) -> dict[str, str]:
    """The Markdown files of a notice version, by language."""
    texts: dict[str, str] = {}
    for name in files.names(folder):
        language, _dot, ending = name.partition(".")
        if ending == "md" and re.fullmatch(r"[a-z]{2}", language):
            text = files.text(f"{folder}/{name}")
            if text is not None and not text.strip():
                files.refuse(f"{folder}/{name}", "is empty; write the text that people are shown")
            texts[language] = text or ""
        elif name != "notice.toml":
            files.refuse(f"{folder}/{name}", "does not belong here; prose files are named en.md, de.md …")
    return texts


def _control_characters(value: Any, pointer: str = "") -> list[str]:
    """Pointers to texts that a database or a reader could not take (TOML escapes can write them)."""
    if isinstance(value, str):
        return [pointer] if _CONTROL.search(value) else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in _control_characters(item, f"{pointer}/{key}")]


def _remedy(error: FieldError, table: dict[str, Any]) -> str:
    """The error's text, completed by what to write instead where the decoder only says what is wrong."""
    if error.detail == "is missing":
        return f"is missing; add `{error.pointer.rpartition('/')[2]} = …`"
    if error.detail.startswith("must be one of"):
        near = difflib.get_close_matches(str(_at(table, error.pointer)), _QUOTED.findall(error.detail), 1)
        return f"{error.detail}; did you mean `{near[0]}`?" if near else error.detail
    if match := _KINDS.match(error.detail):
        return f"is a value of kind {match[2]}; write {_EXAMPLES.get(match[1], match[1])}"
    for sign, example in _SHAPES.items():
        if sign in error.detail:
            return f"cannot be taken; write {example}"
    return error.detail


def _at(value: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        value = value[int(part)] if isinstance(value, list) else value[part.replace("~1", "/").replace("~0", "~")]
    return value


def _suggest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean `{near[0]}`?" if near else f"known are {', '.join(f'`{one}`' for one in known)}"
