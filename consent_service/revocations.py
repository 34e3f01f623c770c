"""What is not taken any more, or not twice: revoked tokens, ended sessions, answered challenges; as keyed hashes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from consent_service import db
from consent_service.ledger import Ledger


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


async def read(connection: db.Connection, ledger: Ledger, what: Sequence[bytes]) -> list[Revocation]:
    """Which of these were revoked."""
    return await _READ(connection, ledger.log_id, what)


async def revoke(connection: db.Connection, ledger: Ledger, what: Sequence[bytes], expires_at: datetime) -> None:
    """Take no more of what was issued until now; the note is kept until `expires_at`."""
    await _REVOKE(connection, ledger.log_id, what, expires_at)


async def use_once(connection: db.Connection, ledger: Ledger, what: bytes, expires_at: datetime) -> bool:
    """Whether something is used for the first time; it can be used again when `expires_at` is long over."""
    return await _USE(connection, ledger.log_id, what, expires_at) is not None
