"""Who calls with what: a key of ours, or a token of an issuer that a tenant trusts. A tenant comes from either, only.

A token that was verified is asked about again every second: whether its tenant still trusts the issuer, and whether the
token, its session or everything of that person was revoked since.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from typing import Annotated
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from consent_service import clock, db, decode, revocations
from consent_service.auth import FRESH_S, MAX_TOKEN, ROLES, SCOPES, Credential, Keyring, Known, Scope
from consent_service.errors import FieldError, Invalid, Malformed, Unauthenticated, Unavailable
from consent_service.ledger import Ledgers
from consent_service.policies import store
from consent_service.subjects import MAX_ID, Hasher
from consent_service.tokens import Claims, Verifier, demand_assurance

_OWN: frozenset[Scope] = frozenset({"write:device"})
"""What a person may do: speak for the own log-in."""
_ISSUERS_S = 10.0
"""How old the list of issuers may be; a token of an unknown one has it read again, once a second at most."""
_DOTS = 2


class RevokeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token that is not to be taken any more, by its `jti`: the text of a token can be written in several ways."""

    issuer: Annotated[str, Meta(min_length=1, max_length=200)]
    jti: Annotated[str, Meta(min_length=1, max_length=256)]


class Revoked(msgspec.Struct, frozen=True):
    """By when no process takes it any more."""

    effective_by: datetime


class LogoutForm(msgspec.Struct, frozen=True):
    """What an OpenID provider posts when somebody logs out (OpenID Connect Back-Channel Logout 1.0, section 2.5)."""

    logout_token: Annotated[str, Meta(max_length=MAX_TOKEN)]


_ENCODER = msgspec.json.Encoder()


class Trusted:
    """The issuers of all tenants."""

    def __init__(self, pool: db.Pool) -> None:
        self._pool = pool
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self.all: tuple[store.Trust, ...] = ()

    async def current(self, max_age_s: float = _ISSUERS_S) -> tuple[store.Trust, ...]:
        """The list, read again where it is older than that; an old one where the database cannot be asked."""
        async with self._reading:
            now = time.monotonic()
            if now - self._read_at <= max_age_s:
                return self.all
            try:
                async with db.connection(self._pool) as connection:
                    found = await store.read_issuers(connection)
            except Unavailable:
                if not self.all:
                    raise
            else:
                self._read_at = now
                self.all = tuple(found)
        return self.all


class Callers:
    """Authenticates keys and tokens; what the guard asks."""

    def __init__(self, pool: db.Pool, ledgers: Ledgers, keyring: Keyring, verifier: Verifier) -> None:
        self._ledgers = ledgers
        self._keyring = keyring
        self._verifier = verifier
        self._trusted = Trusted(pool)
        self._known = Known()

    def known(self, token: str) -> Credential | None:
        """The credential of a key or token that was verified a moment ago, without asking anybody."""
        return self._keyring.known(token) or self._known.get(token)

    async def authenticate(self, token: str) -> Credential:
        """The credential of a key or a token.

        Raises:
            Unauthenticated: it is none, or not valid, or revoked.
            Unavailable: the database or the issuer cannot be asked.
        """
        if token.count(".") != _DOTS:
            return await self._keyring.authenticate(token)
        asked_at = time.monotonic()
        claims = await self._verify(token)
        trust = next((t for t in self._trusted.all if t.issuer == claims.issuer), None)
        if trust is None or len(claims.identity) > MAX_ID:
            raise Unauthenticated("This token is not valid here.")
        credential = _credential(trust.log_id, claims, self._ledgers.of(trust.log_id).hasher)
        await self._demand_not_revoked(trust.log_id, claims)
        expires_in = (claims.expires_at - clock.now()).total_seconds()
        self._known.put(token, credential, asked_at - max(0.0, FRESH_S - expires_in))
        return credential

    async def _verify(self, token: str) -> Claims:
        trusted = await self._trusted.current()
        try:
            return await self._verifier.access_token(token, [trust.issuer for trust in trusted])
        except Unauthenticated:
            if await self._trusted.current(FRESH_S) is trusted:
                raise
            return await self._verifier.access_token(token, [trust.issuer for trust in self._trusted.all])

    async def _demand_not_revoked(self, log_id: int, claims: Claims) -> None:
        ledger = self._ledgers.of(log_id)
        token, *rest = _revocable(ledger.hasher, claims)
        async with ledger.connection() as connection:
            rows = await revocations.read(connection, ledger, [token, *rest])
        for row in rows:
            if row.what == token or claims.issued_at <= row.at:
                raise Unauthenticated("This token was revoked, or its session has ended. Log in again.")

    async def revoke(self, raw: bytes, credential: Credential) -> bytes:
        """Take one token no more (`RevokeBody` to `Revoked`)."""
        body = decode.body(raw, RevokeBody)
        ledger, now = self._ledgers.of(credential.log_id), clock.now()
        mine = [t.issuer for t in await self._trusted.current(FRESH_S) if t.log_id == credential.log_id]
        until = [issuer.max_lifetime.after(now) for issuer in mine if issuer.issuer == body.issuer]
        if not until:
            raise Invalid(
                "Some fields cannot be accepted.", (FieldError("/issuer", "is none of this tenant's issuers"),)
            )
        token = ledger.hasher.once("jti", f"{body.issuer}|{body.jti}")
        async with ledger.connection() as connection:
            await revocations.revoke(connection, ledger, [token], max(until))
        return _ENCODER.encode(Revoked(clock.now() + timedelta(seconds=FRESH_S)))

    async def logout(self, raw: bytes) -> bytes:
        """Take nothing any more that belongs to a session which its provider has ended.

        Raises:
            Malformed: it is no logout token of an issuer that anybody here trusts, or was taken before.
            Unavailable: the provider has to try again.
        """
        try:
            form = parse_qs(raw.decode("ascii"), max_num_fields=4, strict_parsing=True)
            (token,) = form["logout_token"]
        except (ValueError, KeyError):
            raise Malformed("Post one field, `logout_token`, as a form.") from None
        try:
            trusts = [t for t in await self._trusted.current(FRESH_S) if t.issuer.kind == "login"]
            # Sister companies may share a log-in and its client: one of them verifies, and all of them obey.
            each = {(t.issuer.issuer, c): replace(t.issuer, clients=(c,)) for t in trusts for c in t.issuer.clients}
            claims = await self._verifier.logout_token(token, list(each.values()))
        except Unauthenticated as error:
            raise Malformed(error.detail) from None
        for trust in trusts:
            if trust.issuer.issuer == claims.issuer.issuer and claims.audience in trust.issuer.clients:
                await self._end(trust, claims)
        return b""

    async def _end(self, trust: store.Trust, claims: Claims) -> None:
        ledger = self._ledgers.of(trust.log_id)
        token, *ended = _revocable(ledger.hasher, claims)
        async with ledger.connection() as connection:
            if not await revocations.use_once(connection, ledger, token, claims.expires_at):
                raise Malformed("This logout token was taken before.")
            await revocations.revoke(connection, ledger, ended, trust.issuer.max_lifetime.after(clock.now()))


def _revocable(hasher: Hasher, claims: Claims) -> list[bytes]:
    """What a token can be revoked by: itself first, then the person and the session."""
    issuer = claims.issuer.issuer
    found = [hasher.once("jti", f"{issuer}|{claims.jti}")]
    if claims.sub:
        found.append(hasher.once("sub", claims.identity))
    if claims.sid is not None:
        found.append(hasher.once("sid", f"{issuer}|{claims.sid}"))
    return found


def _credential(log_id: int, claims: Claims, hasher: Hasher) -> Credential:
    """What a token lets its bearer do."""
    issuer = claims.issuer
    who = hasher.once("caller", claims.identity).hex()
    origins = frozenset(issuer.origins)
    match issuer.kind:
        case "login":
            return Credential(log_id, f"person-{who}", "person", "person", _OWN, origins, issuer.rate, claims.identity)
        case "service":
            scopes = frozenset(scope for scope in issuer.scopes if scope in claims.scopes and scope in SCOPES)
            return Credential(log_id, f"client-{who}", "service", "client", scopes, origins, issuer.rate)
        case "officer":
            scopes = frozenset(scope for role in demand_assurance(claims) for scope in ROLES[role])
            return Credential(log_id, f"officer-{who}", "officer", "officer", scopes, origins, issuer.rate)
