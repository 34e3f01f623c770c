"""Who calls with what: a key of ours, or a token of an issuer that a tenant trusts. A tenant comes from either, only.

A token that was verified is asked about again every second: whether its tenant still trusts the issuer, and whether the
token, its session or everything of that person was revoked since.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta

from consent_service import clock, db, decode, revocations
from consent_service.auth import FRESH_S, MAX_TOKEN, ROLES, SCOPES, Credential, Keyring, Known, Scope
from consent_service.errors import ConsentError, FieldError, Invalid, Malformed, Unauthenticated, Unavailable
from consent_service.ledger import Ledgers
from consent_service.policies import Issuer, store
from consent_service.revocations import Marks
from consent_service.subjects import MAX_ID, Hasher
from consent_service.tokens import LEEWAY, Claims, Verifier, addressed, demand_assurance

_OWN: frozenset[Scope] = frozenset({"write:device"})
"""What a person may do: speak for the own log-in."""
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
        self.logins: dict[tuple[str, str], list[store.Trust]] = {}
        """Those for the tenants' customers, by issuer and client."""

    async def current(self) -> tuple[store.Trust, ...]:
        """The list, at most FRESH_S old; an old one where the database cannot be asked."""
        async with self._reading:
            now = time.monotonic()
            if now - self._read_at <= FRESH_S:
                return self.all
            try:
                async with db.connection(self._pool) as connection:
                    found = tuple(await store.read_issuers(connection))
            except Unavailable:
                if not self.all:
                    raise
                return self.all
            self._read_at = now
            if found != self.all:
                self.all, self.logins = found, _by_client(found)
        return self.all


def _by_client(trusts: Iterable[store.Trust]) -> dict[tuple[str, str], list[store.Trust]]:
    found: dict[tuple[str, str], list[store.Trust]] = {}
    for trust in trusts:
        for client in trust.issuer.clients if trust.issuer.kind == "login" else ():
            found.setdefault((trust.issuer.issuer, client), []).append(trust)
    return found


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
        trusted = await self._trusted.current()
        claims = await self._verifier.access_token(token, [trust.issuer for trust in trusted])
        trust = next((t for t in trusted if t.issuer == claims.issuer), None)
        if trust is None or len(claims.identity) > MAX_ID:
            raise Unauthenticated("This token is not valid here.")
        ledger = self._ledgers.of(trust.log_id)
        credential = _credential(trust.log_id, claims, ledger.hasher)
        async with ledger.connection() as connection:
            await revocations.demand_live(connection, ledger, claims)
        expires_in = (claims.expires_at - clock.now()).total_seconds()
        self._known.put(token, credential, asked_at - max(0.0, FRESH_S - expires_in))
        return credential

    async def revoke(self, raw: bytes, credential: Credential) -> bytes:
        """Take one token no more (`RevokeBody` to `Revoked`)."""
        body = decode.body(raw, RevokeBody)
        ledger, now = self._ledgers.of(credential.log_id), clock.now()
        mine = [t.issuer for t in await self._trusted.current() if t.log_id == credential.log_id]
        until = [_longest(issuer, now) for issuer in mine if issuer.issuer == body.issuer]
        if not until:
            raise Invalid(
                "Some fields cannot be accepted.", (FieldError("/issuer", "is none of this tenant's issuers"),)
            )
        token = ledger.hasher.once("jti", f"{body.issuer}|{body.jti}")
        async with ledger.connection() as connection:
            await revocations.revoke(connection, ledger, [token], now, max(until))
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
            await self._trusted.current()
            trusts = self._trusted.logins.get(addressed(token), [])
            ended = await self._end_everywhere(token, trusts)
        except Unauthenticated as error:
            raise Malformed(error.detail) from None
        if not ended:
            raise Malformed("This logout token was taken before.")
        return b""

    async def _end_everywhere(self, token: str, trusts: Sequence[store.Trust]) -> bool:
        """End the session in each tenant by whose own configuration the token is good; whether any did not know yet.

        Sister companies may share a log-in and its client, and then all of them obey. None of them decides for the
        others by what keys the log-in is known.
        """
        alike: dict[tuple[Any, ...], list[store.Trust]] = {}
        for trust in trusts:
            how = trust.issuer
            alike.setdefault((how.jwks_uri, how.algorithms, how.max_lifetime), []).append(trust)
        wrong: ConsentError = Unauthenticated("This token is not valid here.")
        taken: list[bool] = []
        for same in alike.values():
            try:
                claims = await self._verifier.logout_token(token, [same[0].issuer])
            except (Unauthenticated, Unavailable) as error:
                wrong = error
                continue
            taken += [await self._end(log_id, claims) for log_id in dict.fromkeys(trust.log_id for trust in same)]
        if not taken or isinstance(wrong, Unavailable):  # what is done stays done; the provider tries again
            raise wrong
        return any(taken)

    async def _end(self, log_id: int, claims: Claims) -> bool:
        """Whether a tenant had not taken the token before."""
        ledger, now = self._ledgers.of(log_id), clock.now()
        token, ended = Marks.of(ledger.hasher, claims).token, revocations.ended_by(ledger.hasher, claims)
        async with ledger.connection() as connection, connection.transaction():
            assert token is not None, "a logout token has a `jti`"  # noqa: S101 -- the verifier demands it
            if not await revocations.use_once(connection, ledger, token, claims.expires_at + 2 * LEEWAY):
                return False
            until = _longest(claims.issuer, max(now, claims.issued_at))
            await revocations.revoke(connection, ledger, ended, claims.issued_at, until)
        return True


def _longest(issuer: Issuer, since: datetime) -> datetime:
    """Until when a token that was issued by then may be good, by clocks that differ."""
    return issuer.max_lifetime.after(since) + 2 * LEEWAY


def _credential(log_id: int, claims: Claims, hasher: Hasher) -> Credential:
    """What a token lets its bearer do."""
    issuer = claims.issuer
    who = hasher.once("caller", claims.identity).hex()
    origins = frozenset(issuer.origins)
    match issuer.kind:
        case "login":
            return Credential(log_id, f"person:{who}", "person", "person", _OWN, origins, issuer.rate, claims.identity)
        case "service":
            scopes = frozenset(scope for scope in issuer.scopes if scope in claims.scopes and scope in SCOPES)
            return Credential(log_id, f"client:{who}", "service", "client", scopes, origins, issuer.rate)
        case "officer":
            scopes = frozenset(scope for role in demand_assurance(claims) for scope in ROLES[role])
            return Credential(log_id, f"officer:{who}", "officer", "officer", scopes, origins, issuer.rate)
