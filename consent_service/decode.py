"""Strict decoding with *every* field error, for request bodies and policy files alike.

msgspec stops at the first wrong field. That is right for the good path; on the bad path `field_errors` walks the same
types once more and reports all of them, each with its JSON pointer (RFC 6901).
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec

from consent_service.errors import FieldError, Invalid, Malformed

T = TypeVar("T")
_NO_MARKS = bytes(set(range(256)) - set(b'":'))
_LONGEST_NAME = 64
MAX_ERRORS = 100
"""So many are told of one body; a larger answer helps nobody, and collecting it holds up everybody."""
DecHook = Callable[[type, Any], Any]

_LONG = 1024 * 1024
"""Bytes; of a longer body only the first error is told."""
_PATH = re.compile(r" - at `([^`]*)`$")
_STEP = re.compile(r"\.(\w+)|\[([0-9]+)\]")


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, strict=True, float_hook=_number)


def _number(text: str) -> float:
    """A number where none of ours is expected: msgspec's own reading takes twenty times as long for the likes of 9e307.

    Raises:
        ValueError: it is larger than any number that can be kept.
    """
    found = float(text)
    if math.isinf(found):
        raise ValueError("is out of range")
    return found


def tree(raw: bytes) -> Any:
    """JSON of any shape; raises msgspec.DecodeError."""
    return _decoder(Any).decode(raw)


def body(raw: bytes, kind: type[T], *, unique: bool = False) -> T:
    """Decode a JSON request body. `unique`: refuse an object in which a name stands twice (`kind` omits defaults).

    Raises:
        Malformed: it is no JSON text (RFC 8259).
        Invalid: it is JSON of another shape; names every field error, and nothing that the caller sent.
    """
    try:
        try:
            decoded: T = _decoder(cast("Any", kind)).decode(raw)
        except msgspec.ValidationError as error:
            if len(raw) > _LONG:  # to look for all errors of it would hold up everybody
                raise Invalid("Some fields cannot be accepted.", (_first_error(str(error)),)) from None
            found = tree(raw)  # may still be no JSON further on
            errors = tuple(islice(field_errors(found, kind, echo=False), MAX_ERRORS))
            raise Invalid("Some fields cannot be accepted.", errors) from None
        # Without escapes, what was sent and what was read have as many quotes, unless a null or a double was sent.
        if unique and (b"\\" in raw or raw.count(b'"') != msgspec.json.encode(decoded).count(b'"')):
            _demand_unique(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed("This is not JSON in UTF-8 of reasonable depth.") from None
    return decoded


def _first_error(said: str) -> FieldError:
    """What msgspec says, which names the place as `$.checks[3].purpose`."""
    match = _PATH.search(said)
    steps = _STEP.findall(match[1]) if match is not None else []
    what = "has a member that is not known here" if "unknown field" in said else _PATH.sub("", said)
    return FieldError("".join(f"/{name or place}" for name, place in steps), what)


def _demand_unique(raw: bytes) -> None:
    """Each member has a colon outside of strings, and leaves one name behind, unless the name stood there before."""
    text = raw
    if b"\\" in raw:
        text = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side change nothing for what follows: few strings are left to cut out.
    marks = text.translate(None, _NO_MARKS).replace(b'""', b"")
    colons = b"".join(marks.split(b'"')[::2]).count(b":")
    if colons != _members(tree(raw)):
        raise Invalid(
            "Some fields cannot be accepted.", (FieldError("", "has an object in which a name stands twice"),)
        )


def _members(found: Any) -> int:
    if isinstance(found, dict):
        return len(found) + sum([_members(one) for one in found.values() if isinstance(one, (dict, list))])
    return sum([_members(one) for one in found if isinstance(one, (dict, list))]) if isinstance(found, list) else 0


def convert(value: Any, kind: type[T], dec_hook: DecHook | None = None) -> T:
    """Turn already parsed data (TOML, JSON) into `kind`; raises Invalid with every field error."""
    try:
        return msgspec.convert(value, kind, strict=True, dec_hook=dec_hook)
    except msgspec.ValidationError:
        errors = tuple(field_errors(value, kind, dec_hook))
        raise Invalid("Some fields cannot be accepted.", errors) from None


def field_errors(
    value: Any, kind: Any, dec_hook: DecHook | None = None, pointer: str = "", *, echo: bool = True
) -> Iterator[FieldError]:
    """Every reason why `value` is no `kind`, in the order of the document.

    `echo`: whether an unknown key is named. A caller's keys may be personal data; the operator's files are not.
    """
    limit = _longest(kind)
    if limit is not None and isinstance(value, list) and len(value) > limit:
        yield FieldError(pointer, f"has {len(value)} items; at most {limit} are allowed")
        return
    try:
        msgspec.convert(value, kind, strict=True, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        # Lazily: whoever takes the first hundred must not pay for a million.
        inner = _inner_errors(value, _without_none(kind), dec_hook, pointer, echo)
        yield next(inner, None) or FieldError(pointer, _PATH.sub("", str(error)))
        yield from inner


def _inner_errors(value: Any, kind: Any, dec_hook: DecHook | None, pointer: str, echo: bool) -> Iterator[FieldError]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        yield FieldError(pointer, f"must be one of {', '.join(f'`{choice}`' for choice in args)}")
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        yield from _struct_errors(value, kind, dec_hook, pointer, echo)
    elif origin in (list, tuple) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from field_errors(item, args[0], dec_hook, f"{pointer}/{index}", echo=echo)
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from field_errors(item, args[1], dec_hook, f"{pointer}/{_escape(key)}", echo=echo)


def _struct_errors(
    value: dict[str, Any], kind: type[msgspec.Struct], dec_hook: DecHook | None, pointer: str, echo: bool
) -> Iterator[FieldError]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    if kind.__struct_config__.forbid_unknown_fields:
        for key in value.keys() - fields.keys():
            if echo:
                yield FieldError(f"{pointer}/{_escape(key)}", unknown(list(fields), key, "is not known here"))
            else:
                yield FieldError(pointer, unknown(list(fields), key, "has a member that is not known here"))
    for name, field in fields.items():
        if name in value:
            yield from field_errors(value[name], field.type, dec_hook, f"{pointer}/{name}", echo=echo)
        elif field.required:
            yield FieldError(f"{pointer}/{name}", "is missing")


def unknown(known: list[str], name: str, what: str) -> str:
    """The remedy for a name that is not among the known ones: the nearest of them, else all."""
    near = difflib.get_close_matches(name, known, 1) if len(name) <= _LONGEST_NAME else []
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(f'`{one}`' for one in sorted(known))}"
    return f"{what}; {hint}"


def _longest(kind: Any) -> int | None:
    """How many items an annotated list may have."""
    metas = typing.get_args(kind)[1:] if typing.get_origin(kind) is typing.Annotated else ()
    return next((meta.max_length for meta in metas if isinstance(meta, msgspec.Meta)), None)


def _without_none(kind: Any) -> Any:
    """`X` of `X | None` (and of `Annotated[X, …]`), so that its inner errors can be named."""
    if typing.get_origin(kind) is typing.Annotated:
        return _without_none(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [arg for arg in typing.get_args(kind) if arg not in (type(None), msgspec.UnsetType)]
        if len(rest) == 1:
            return _without_none(rest[0])
    return kind


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
