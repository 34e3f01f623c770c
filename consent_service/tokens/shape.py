"""From text to header and claims, before any key is asked for: what has another shape is refused here, and cheaply."""

from __future__ import annotations

import base64
import re
from typing import Any, NamedTuple

from consent_service import decode, subjects
from consent_service.auth import MAX_TOKEN
from consent_service.errors import Invalid, Malformed, Unauthenticated

MAX_DEPTH = 16
"""Objects and lists inside of each other."""
LONGEST_TEXT = 255
"""Characters of a name in a token: `sub` may have so many (OpenID Connect Core 1.0, section 2)."""

_SHAPE = re.compile(r"[\w-]{2,}\.[\w-]{2,}\.[\w-]{2,}", re.ASCII)
"""Three segments of base64url without padding: the text with a `=` added is another text for the same token."""
_NEVER_FOLLOWED = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "b64", "enc", "zip"})
"""A token that brings its own key, names where to get one, or changes how it is to be read."""


class Shape(NamedTuple):
    """A token that can be read; nothing in it is known to be true."""

    algorithm: str
    kid: str | None
    type: str | None
    """`typ` in lower case; None: absent."""
    claims: dict[str, Any]


def refusal() -> Unauthenticated:
    """The same words for whatever is wrong: an attacker learns nothing from the difference."""
    return Unauthenticated("This token is not valid here.")


def read(token: str) -> Shape:
    """Take a token apart; raises Unauthenticated."""
    if len(token) > MAX_TOKEN or _SHAPE.fullmatch(token) is None:
        raise refusal()
    header_text, claims_text, _ = token.split(".")
    header = _object(header_text)
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str) or not _NEVER_FOLLOWED.isdisjoint(header):
        raise refusal()
    return Shape(
        algorithm,
        text(kid) if "kid" in header else None,
        text(kind).lower() if "typ" in header else None,
        _object(claims_text),
    )


def text(value: Any) -> str:
    """A name of 1 to LONGEST_TEXT printable characters that can also be the id of a subject.

    Raises:
        Unauthenticated: it is none.
    """
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TEXT:
        raise refusal()
    if not value.isprintable() or any(subjects.id_errors(value, "")):
        raise refusal()
    return value


def _object(segment: str) -> dict[str, Any]:
    """The JSON object in a segment, with each name once and without depths."""
    try:
        raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        found: dict[str, Any] = decode.body(raw, dict[str, Any], unique=True)
    except (ValueError, Malformed, Invalid):
        raise refusal() from None
    if _is_too_deep(found):
        raise refusal()
    return found


def _is_too_deep(tree: Any) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        inner = [value for node in level for value in (node.values() if isinstance(node, dict) else node)]
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return False
    return True
