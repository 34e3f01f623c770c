"""What is not taken any more, or not twice: revoked tokens, ended sessions, answered challenges; as keyed hashes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from consent_service import db
from consent_service.errors import Unauthenticated
from consent_service.ledger import Ledger
from consent_service.subjects import Hasher
from consent_service.tokens import Claims


class Revocation(msgspec.Struct, frozen=True):
    """Something that is not taken any more."""

    what: bytes
    at: datetime
    """Whatever was issued until then."""


class Used(msgspec.Struct, frozen=True):
    """Something that was marked as used."""

    what: bytes


_READ = db.many("revocations", "read_revocations", Revocation)
_REVOKE = db.execute("revocations", "revoke")
_USE = db.one("revocations", "use_once", Used)


class Marks(NamedTuple):
    """What a token can be revoked by, as keyed hashes."""

    token: bytes | None
    """Itself."""
    session: bytes
    """The session that it names; or that it names none, of its person."""
    person: bytes | None
    """Everything of its person."""

    @classmethod
    def of(cls, hasher: Hasher, claims: Claims) -> Marks:
        """Those of a token that was verified."""
        issuer, sid = claims.issuer.issuer, claims.sid
        return cls(
            None if claims.jti is None else hasher.once("jti", f"{issuer}|{claims.jti}"),
            _sessionless(hasher, claims) if sid is None else hasher.once("sid", f"{issuer}|{sid}"),
            hasher.once("sub", claims.identity) if claims.sub else None,
        )


def ended_by(hasher: Hasher, claims: Claims) -> list[bytes]:
    """The marks of what a logout token ends: a session and what cannot be told from it, or everything of a person."""
    marks = Marks.of(hasher, claims)
    if claims.sid is None:
        return [mark for mark in (marks.person,) if mark is not None]
    return [marks.session, *([_sessionless(hasher, claims)] if claims.sub else [])]


def _sessionless(hasher: Hasher, claims: Claims) -> bytes:
    """The mark of whatever of a person names no session."""
    return hasher.once("no sid", claims.identity)


async def demand_live(connection: db.Connection, ledger: Ledger, claims: Claims) -> None:
    """Refuse a token that was revoked, be it by itself, with its session, or with everything of its person.

    Raises:
        Unauthenticated: it was.
    """
    marks = Marks.of(ledger.hasher, claims)
    for row in await _READ(connection, ledger.log_id, [mark for mark in marks if mark is not None]):
        # A session and a token end for good; what a person got after that end is another matter.
        for_good = row.what == marks.token or (row.what == marks.session and claims.sid is not None)
        if for_good or claims.issued_at <= row.at:
            raise Unauthenticated("This token was revoked, or its session has ended. Log in again.")


async def revoke(
    connection: db.Connection, ledger: Ledger, what: Sequence[bytes], at: datetime, expires_at: datetime
) -> None:
    """Take no more of what was issued until `at`; the note is kept until `expires_at` at least."""
    await _REVOKE(connection, ledger.log_id, what, at, expires_at)


async def use_once(connection: db.Connection, ledger: Ledger, what: bytes, expires_at: datetime) -> bool:
    """Whether something is used for the first time; it can be used again when `expires_at` is long over."""
    return await _USE(connection, ledger.log_id, what, expires_at) is not None
