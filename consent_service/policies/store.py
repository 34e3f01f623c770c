"""Policies in the database: which version is in force, and its body, loaded once per process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from consent_service import db
from consent_service.errors import NotFound
from consent_service.policies.model import Issuer, Policy, canonical, decode_issuers, decode_policy


class PolicyRow(msgspec.Struct, frozen=True):
    """A row of `policy_version`."""

    version: int
    hash: str
    body: bytes
    applied_at: datetime


class IssuersRow(msgspec.Struct, frozen=True):
    """A tenant and its issuers."""

    log_id: int
    issuers: bytes


class Trust(NamedTuple):
    """One issuer that one tenant trusts."""

    log_id: int
    issuer: Issuer


class Touched(msgspec.Struct, frozen=True):
    """How many identifiers have a record for some purposes."""

    subjects: int


_READ = db.one("policies", "read_policy", PolicyRow)
_ACTIVATE = db.execute("policies", "activate_policy")
_READ_ISSUERS = db.many("policies", "read_issuers", IssuersRow)
_COUNT = db.one("policies", "count_subjects", Touched)


class Policies:
    """The policies of all ledgers as this process has loaded them. A version never changes, so nothing goes stale."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Policy] = {}

    def known(self, log_id: int, version: int) -> Policy | None:
        """A version that is already loaded."""
        return self._known.get((log_id, version))

    async def get(self, connection: db.Connection, log_id: int, version: int) -> Policy:
        """A version, read on first use; raises NotFound where the tenant has applied none."""
        policy = self._known.get((log_id, version))
        if policy is None:
            row = await _READ(connection, log_id, version)
            if row is None:
                raise NotFound("This tenant has no policy in force. Apply one with `consent policy apply`.")
            policy = self._known[log_id, version] = decode_policy(row.body)
        return policy


async def activate(connection: db.Connection, log_id: int, version: int, policy: Policy, now: datetime) -> None:
    """Put a policy into force as `version`; the caller holds the head's lock and has checked the plan."""
    notices = [notice for versions in policy.notices.values() for notice in versions.values()]
    await _ACTIVATE(
        connection, log_id, version, policy.hash, canonical(policy), now,
        [notice.id for notice in notices], [notice.version for notice in notices],
        [notice.hash for notice in notices], [canonical(notice) for notice in notices],
        canonical(policy.tenant.issuers),
    )  # fmt: skip


async def read_issuers(connection: db.Connection) -> list[Trust]:
    """The issuers of all tenants' policies in force; a small table, read whole."""
    rows = await _READ_ISSUERS(connection)
    return [Trust(row.log_id, issuer) for row in rows for issuer in _decoded(row.issuers) or ()]


@lru_cache(maxsize=10_000)
def _decoded(raw: bytes) -> tuple[Issuer, ...] | None:
    """The table is read every second and seldom changes: the same text gives the same objects.

    None where it cannot be read: what one tenant has there must not keep out the others.
    """
    try:
        return decode_issuers(raw)
    except msgspec.MsgspecError:
        return None


async def count_subjects(connection: db.Connection, log_id: int, purposes: Sequence[str]) -> int:
    """How many identifiers have a record for any of the purposes."""
    row = await _COUNT(connection, log_id, list(purposes))
    return 0 if row is None else row.subjects
