"""Tenants: a controller with its ledger, its policies and its keys."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from consent_service import db
from consent_service.errors import Invalid, SetupError
from consent_service.ledger import Tip, append, lock_head, read_head
from consent_service.ledger.entry import NoticePublished, PolicyApplied, system
from consent_service.policies import Change, Policy, plan, store
from consent_service.vault import Vault


class LogId(msgspec.Struct, frozen=True):
    """Which ledger a tenant owns."""

    log_id: int


class Check(msgspec.Struct, frozen=True):
    """What tells whether root secret and key-encryption keys are the right ones."""

    secret_check: bytes
    kek: bytes
    """Name of a key-encryption key that must be there."""


class Plan(NamedTuple):
    """What applying a policy would change."""

    version: int
    """Of the policy in force; 0 before the first."""
    changes: list[Change]
    subjects: list[int]
    """How many identifiers with a record each change touches."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        changes = [
            {**msgspec.structs.asdict(change), "subjects": count}
            for change, count in zip(self.changes, self.subjects, strict=True)
        ]
        return {"version": self.version, "changes": changes}

    def as_text(self) -> str:
        """For people."""
        if not self.changes:
            return f"Nothing changes; version {self.version} is in force."
        return "\n".join(
            f"{change.text} — {count} subjects have a record" if change.purposes and self.version else change.text
            for change, count in zip(self.changes, self.subjects, strict=True)
        )


_ADD = db.one("ledger", "add_tenant", LogId)
_ADD_HEAD = db.execute("ledger", "add_head")
_READ = db.one("ledger", "read_tenant", LogId)
_KEEP_CHECK = db.execute("ledger", "keep_check")
_READ_CHECK = db.one("ledger", "read_check", Check)


async def demand_secrets(connection: db.Connection, secret: bytes, vault: Vault) -> None:
    """Refuse a root secret or key-encryption keys that are not those which the database was filled under.

    Nothing would be found any more, or could be read.

    Raises:
        SetupError: they are others.
    """
    check = hmac.digest(secret, b"ca/v1 check", "sha256")
    await _KEEP_CHECK(connection, check, vault.current)
    row = await _READ_CHECK(connection)
    if row is None or not hmac.compare_digest(row.secret_check, check):
        raise SetupError(
            "The root secret is not the one that this database was filled under. Give back the file `secret` of the "
            "data folder, or CONSENT_SECRET as it was; or use another database."
        )
    if not vault.knows(row.kek):
        raise SetupError(
            "The key-encryption keys are not those that this database was filled under. Give back the file "
            "`key-encryption-keys` of the data folder, or the one that CONSENT_KEY_FILE named."
        )


async def find(connection: db.Connection, slug: str) -> int | None:
    """The ledger of a tenant, for which the connection acts from then on; None where there is no such tenant."""
    row = await _READ(connection, slug)
    if row is None:
        return None
    await db.act_for(connection, row.log_id)
    return row.log_id


async def ensure(connection: db.Connection, slug: str, host: str = "localhost") -> int:
    """The ledger of a tenant, made where it is missing; the connection acts for it from then on.

    `host`: under whose name a new ledger signs, as `<host>/<slug>`, for ever.
    """
    for _ in range(5):  # two starters may pick the same new number; one of them looks again
        found = await find(connection, slug)
        if found is not None:
            await _ADD_HEAD(connection, found, f"{host}/{slug}")
            return found
        with suppress(db.COLLISION):
            await _ADD(connection, slug)
    raise SetupError(f"The tenant `{slug}` could not be made. Start again.")


def first_plan(new: Policy) -> Plan:
    """What applying the first policy of a tenant would do."""
    changes = plan(None, new)
    return Plan(0, changes, [0] * len(changes))


async def plan_policy(connection: db.Connection, log_id: int, policies: store.Policies, new: Policy) -> Plan:
    """What applying `new` would change, and how many identifiers it touches."""
    head = await read_head(connection, log_id)
    old = await policies.get(connection, log_id, head.policy) if head.policy else None
    changes = plan(old, new)
    counts = [await store.count_subjects(connection, log_id, change.purposes) for change in changes]
    return Plan(head.policy, changes, counts)


async def apply_policy(connection: db.Connection, log_id: int, policies: store.Policies, new: Policy) -> Plan:
    """Put a policy into force; changes nothing where it is in force already.

    Raises:
        Invalid: it would change something that is published; names every such change.
    """
    result = await plan_policy(connection, log_id, policies, new)  # counts people: not while the ledger waits
    async with connection.transaction():
        tip = await lock_head(connection, log_id)
        old = await policies.get(connection, log_id, tip.policy) if tip.policy else None
        if refused := [change for change in plan(old, new) if change.refused]:
            raise Invalid("\n".join(["The policy cannot be applied:", *(f"  {change.text}" for change in refused)]))
        await _demand_own_issuers(connection, log_id, new)
        if old is None or old.hash != new.hash:
            await store.activate(connection, log_id, _next(tip), new, tip.now)
            await append(connection, log_id, tip, list(_entries(tip, old, new)), tip.now)
    return result


def _next(tip: Tip) -> int:
    """The version that a policy gets: in each epoch from another thousand, lest one that was lost be taken for it."""
    return max(tip.policy, (tip.epoch - 1) * 1_000) + 1


def _entries(tip: Tip, old: Policy | None, new: Policy) -> Iterator[bytes]:
    """Of the ledger: the notices that were not published before, and the policy that presents them."""
    known = {notice.hash for versions in old.notices.values() for notice in versions.values()} if old else set()
    for versions in new.notices.values():
        for notice in versions.values():
            if notice.hash not in known:
                yield system(NoticePublished(at=tip.now, notice=notice.id, version=notice.version, sha256=notice.hash))
    yield system(PolicyApplied(at=tip.now, version=_next(tip), sha256=new.hash))


async def _demand_own_issuers(connection: db.Connection, log_id: int, new: Policy) -> None:
    """Issuer and audience of a token lead to one tenant."""
    mine = {(issuer.issuer, issuer.audience) for issuer in new.tenant.issuers}
    others = [trust.issuer for trust in await store.read_issuers(connection) if trust.log_id != log_id]
    if taken := mine & {(issuer.issuer, issuer.audience) for issuer in others}:
        named = ", ".join(f"{issuer} for {audience}" for issuer, audience in sorted(taken))
        raise Invalid(f"Another tenant has these issuers and audiences: {named}. Give each tenant its own audience.")
