"""Problem documents (RFC 9457): the one place where a domain error becomes an HTTP answer."""

from __future__ import annotations

import inspect
import secrets
from typing import Any, NamedTuple

import msgspec

from consent_service import errors, log
from consent_service.errors import ConsentError
from consent_service.guard.metrics import UNMATCHED

_log = log.get("guard")

Headers = list[tuple[bytes, bytes]]


class _Kind(NamedTuple):
    status: int
    slug: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


_SOON = ((b"retry-after", b"1"),)
_BEARER = ((b"www-authenticate", b'Bearer realm="consent"'),)

KINDS: dict[type[ConsentError], _Kind] = {
    errors.Malformed: _Kind(400, "malformed"),
    errors.KeyMissing: _Kind(400, "key-missing"),
    errors.Unauthenticated: _Kind(401, "unauthenticated", _BEARER),
    errors.Forbidden: _Kind(403, "forbidden"),
    errors.NotFound: _Kind(404, "not-found"),
    errors.NotAllowed: _Kind(405, "not-allowed"),
    errors.TooSlow: _Kind(408, "too-slow"),
    errors.RevisionAhead: _Kind(409, "revision-ahead"),
    errors.Taken: _Kind(409, "taken"),
    errors.Erased: _Kind(410, "erased"),
    errors.TooLarge: _Kind(413, "too-large"),
    errors.WrongMediaType: _Kind(415, "wrong-media-type"),
    errors.Invalid: _Kind(422, "invalid"),
    errors.KeyReused: _Kind(422, "key-reused"),
    errors.TooMany: _Kind(429, "too-many"),
    errors.Failed: _Kind(500, "failed"),
    errors.Frozen: _Kind(503, "frozen"),
    errors.Unavailable: _Kind(503, "unavailable", _SOON),
    errors.Overdue: _Kind(503, "overdue", _SOON),
}
"""What each domain error is over HTTP. A subclass is what its nearest listed ancestor is."""


class Problem(msgspec.Struct, frozen=True):
    """One documented type of problem."""

    slug: str
    status: int
    title: str
    remedy: str


def problems() -> list[Problem]:
    """Every type of problem this service answers with, for the documentation."""
    return [Problem(kind.slug, kind.status, error.title(), _remedy(error)) for error, kind in KINDS.items()]


def problem(error: BaseException) -> tuple[int, Headers, bytes]:
    """The answer to a request that ended in `error`: status, headers, body.

    An error of no listed class is logged, and told as a failure of ours without a word of its own text. An attribute
    `extra` (a dict) adds members to the document.
    """
    kind = kind_of(error)
    if kind is None or not isinstance(error, ConsentError):
        return problem(failure(error))
    document: dict[str, Any] = {
        **(getattr(error, "extra", None) or {}),
        "type": f"/problems/{kind.slug}",
        "title": error.title(),
        "status": kind.status,
        "detail": error.detail or _remedy(type(error)),
    }
    if error.errors:
        document["errors"] = error.errors
    body = msgspec.json.encode(document)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        *kind.headers,
    ]
    if isinstance(error, errors.TooMany):
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if isinstance(error, errors.NotAllowed):
        headers.append((b"allow", error.allow.encode()))
    return kind.status, headers, body


def failure(error: BaseException, operation: str = UNMATCHED) -> errors.Failed:
    """Log an error that nobody expected; what is told of it is the id under which the log has it."""
    error_id = secrets.token_hex(8)
    _log.error("request failed", operation=operation, error_id=error_id, exc_info=error)
    return errors.Failed(error_id)


def kind_of(error: BaseException) -> _Kind | None:
    """The row of the nearest listed class, or None for what must be told as a failure of ours."""
    return next((KINDS[one] for one in type(error).__mro__ if one in KINDS), None)


def _remedy(error: type[ConsentError]) -> str:
    """What the docstring says after its first sentence."""
    text = " ".join(inspect.cleandoc(error.__doc__ or "").split())
    return text[len(error.title()) :].lstrip(". ")
