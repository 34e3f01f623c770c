"""Canonical JSON (RFC 8785) of what callers send in any shape they like, as it goes into what the ledger commits to.

Everything else in a payload has ASCII names and whole numbers: for that, sorting the names is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import msgspec
import rfc8785

from consent_service.decode import MAX_ERRORS
from consent_service.errors import FieldError, Invalid

LARGEST: Final = 2**53 - 1
"""Beyond it readers of JSON disagree about whole numbers (RFC 7493, section 2.2)."""


def canonical(value: Any, pointer: str) -> msgspec.Raw:
    """The canonical JSON of any JSON value, to be embedded as it is.

    Raises:
        Invalid: two readers would not read the same; names every place, below `pointer`.
    """
    try:
        wrong = tuple(islice(_too_large(value, pointer), MAX_ERRORS))
        if not wrong:
            return msgspec.Raw(rfc8785.dumps(value))
    except RecursionError:
        wrong = (FieldError(pointer, "is nested too deeply; send it flatter"),)
    raise Invalid("Some fields cannot be accepted.", wrong)


def _too_large(value: Any, pointer: str) -> Iterator[FieldError]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _too_large(item, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _too_large(item, f"{pointer}/{place}")
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield FieldError(pointer, f"is a whole number beyond ±{LARGEST}, which many would misread; send it as text")
