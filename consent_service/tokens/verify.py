"""Verifying tokens. All that does not need the key comes first: it costs microseconds, and makes nobody fetch keys.

PyJWT verifies the signature, the key's length and the claims that need no clock. Times are compared in `claims`: PyJWT
knows only its own clock, and takes 1e300 and `true` for moments.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import jwt

from consent_service import clock
from consent_service.auth import MAX_TOKEN
from consent_service.policies import Issuer
from consent_service.tokens import claims as read
from consent_service.tokens import shape
from consent_service.tokens.claims import Claims
from consent_service.tokens.jwk import Key
from consent_service.tokens.keys import Jwks
from consent_service.tokens.shape import Shape, refusal, text

REMEMBERED = timedelta(seconds=60)
MAX_REMEMBERED = 10_000
MAX_ID_AGE = timedelta(minutes=10)
"""An ID token is for the login that has just taken place."""
MAX_LOGOUT_LIFE = timedelta(minutes=10)
LOGOUT = "http://schemas.openid.net/event/backchannel-logout"


class _Kind(NamedTuple):
    """What all tokens of a kind have."""

    types: frozenset[str | None]
    """`typ`, so that no token passes for one of another kind (RFC 8725, section 3.11)."""
    required: tuple[str, ...]


_ACCESS = _Kind(
    frozenset({"at+jwt", "application/at+jwt"}), ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")
)  # RFC 9068, section 2
_ID = _Kind(frozenset({None, "jwt"}), ("iss", "exp", "aud", "sub", "iat", "nonce"))
# Back-Channel Logout 1.0 recommends the type (section 2.4); without it, only the lack of a nonce would tell it apart.
_LOGOUT = _Kind(frozenset({"logout+jwt", "application/logout+jwt"}), ("iss", "aud", "iat", "exp", "jti", "events"))


class _Known(NamedTuple):
    claims: Claims
    key: Key
    until: datetime


class Verifier:
    """Verifies tokens, and remembers access tokens for a minute. Belongs to one event loop."""

    def __init__(self, jwks: Jwks, now: Callable[[], datetime] = clock.now) -> None:
        self._jwks = jwks
        self._now = now
        self._known: dict[bytes, _Known] = {}
        """By SHA-256 of the token, oldest first: who reads our memory finds no tokens to use."""

    def known(self, token: str) -> Claims | None:
        """The claims of an access token that was verified within the last minute and is still good.

        Its issuer was configured then: whoever changes what is configured looks whether `claims.issuer` is in it.
        """
        if len(token) > MAX_TOKEN or not token.isascii():
            return None
        name = _name(token)
        entry = self._known.get(name)
        if entry is None:
            return None
        claims, key, until = entry
        if self._now() >= until or not self._jwks.holds(claims.issuer.jwks_uri, key):
            del self._known[name]
            return None
        return claims

    async def access_token(self, token: str, issuers: Sequence[Issuer]) -> Claims:
        """The claims of an access token (RFC 9068) of one of `issuers` for one of their audiences.

        Raises:
            Unauthenticated: it is none, or not valid now; always in the same words.
            Unavailable: the issuer's keys are not known and cannot be fetched.
        """
        known = self.known(token)
        if known is not None and _for_audience(issuers, known.issuer.issuer, known.audience) == [known.issuer]:
            return known
        found = _of_kind(token, _ACCESS)
        audience = read.audience(found.claims.get("aud"))
        issuer = _only(_for_audience(issuers, found.claims.get("iss"), audience))
        if "cnf" in found.claims:  # good only with proof of a key (RFC 7800), for which we cannot ask
            raise refusal()
        claims = self._claims(found, issuer, audience, found.claims.get("client_id"))
        if not _may_call(issuer, claims.client):
            raise refusal()
        key = await self._demand_signature(token, found, issuer, audience, _ACCESS)
        self._remember(token, claims, key)
        return claims

    async def id_token(self, token: str, issuers: Sequence[Issuer], *, nonce: str | Callable[[str], bool]) -> Claims:
        """The claims of an ID token (OpenID Connect Core 1.0, section 3.1.3.7) of a login with this nonce just now.

        Args:
            token: as it was sent.
            issuers: those of the tenant; only the ones for logins are looked at.
            nonce: the one that was given out for the login, or what tells whether one was given out. It is asked only
                about tokens that are good in every other respect.

        Raises:
            Unauthenticated: it is none, or not valid now; always in the same words.
            Unavailable: the issuer's keys are not known and cannot be fetched.
        """
        found = _of_kind(token, _ID)
        audience = read.audience(found.claims.get("aud"))
        logins = [issuer for issuer in issuers if issuer.kind == "login"]
        issuer = _only(_for_client(logins, found.claims.get("iss"), audience))
        claims = self._claims(found, issuer, audience, found.claims.get("azp", audience))
        if claims.client != audience or self._now() - claims.issued_at > MAX_ID_AGE:
            raise refusal()
        await self._demand_signature(token, found, issuer, audience, _ID)
        if not _is_answered(claims.nonce or "", nonce):
            raise refusal()
        return claims

    async def logout_token(self, token: str, issuers: Sequence[Issuer]) -> Claims:
        """The claims of a logout token (OpenID Connect Back-Channel Logout 1.0, section 2.6).

        The caller sees to it that no `jti` is taken twice.

        Raises:
            Unauthenticated: it is none, or not valid now; always in the same words.
            Unavailable: the issuer's keys are not known and cannot be fetched.
        """
        found = _of_kind(token, _LOGOUT)
        audience = read.audience(found.claims.get("aud"))
        issuer = _only(_for_client(issuers, found.claims.get("iss"), audience))
        events = found.claims["events"]
        is_logout = isinstance(events, dict) and list(events) == [LOGOUT] and isinstance(events[LOGOUT], dict)
        if not is_logout or "nonce" in found.claims or not {"sub", "sid"} & found.claims.keys():
            raise refusal()
        claims = self._claims(found, issuer, audience, audience)
        if claims.expires_at - claims.issued_at > MAX_LOGOUT_LIFE:
            raise refusal()
        await self._demand_signature(token, found, issuer, audience, _LOGOUT)
        return claims

    def _claims(self, found: Shape, issuer: Issuer, audience: str, client: Any) -> Claims:
        """All that is read from the token, each in its form. Still unverified."""
        claims = found.claims
        issued_at, expires_at = read.times(claims, issuer, self._now())
        return Claims(
            issuer=issuer,
            sub=text(claims["sub"]) if "sub" in claims else "",
            audience=audience,
            client=text(client),
            jti=text(claims["jti"]) if "jti" in claims else None,
            issued_at=issued_at,
            expires_at=expires_at,
            nonce=text(claims["nonce"]) if "nonce" in claims else None,
            sid=text(claims["sid"]) if "sid" in claims else None,
            acr=read.context(claims.get("acr")),
            amr=read.methods(claims.get("amr")),
            scopes=read.scopes(claims.get("scope")),
            roles=read.roles(claims, issuer),
        )

    async def _demand_signature(self, token: str, found: Shape, issuer: Issuer, audience: str, kind: _Kind) -> Key:
        if found.algorithm not in issuer.algorithms:
            raise refusal()
        key = await self._jwks.key(issuer.jwks_uri, found.kid, found.algorithm)
        if key is None:
            raise refusal()
        options: jwt.types.Options = {
            "require": list(kind.required),
            "strict_aud": isinstance(found.claims["aud"], str),  # which knows no lists; ours has one member
            "enforce_minimum_key_length": True,
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
        }
        try:
            jwt.decode(
                token, key.public, algorithms=issuer.algorithms, options=options,
                audience=audience, issuer=issuer.issuer,
            )  # fmt: skip
        except jwt.PyJWTError:
            raise refusal() from None
        return key

    def _remember(self, token: str, claims: Claims, key: Key) -> None:
        now = self._now()
        name = _name(token)
        self._known.pop(name, None)  # what was verified again is the youngest
        while len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[name] = _Known(claims, key, min(claims.expires_at, now + REMEMBERED))


def addressed(token: str) -> tuple[str, str]:
    """Which issuer and audience a logout token names; nothing of it is known to be true. Raises Unauthenticated."""
    found = _of_kind(token, _LOGOUT)
    return text(found.claims.get("iss")), read.audience(found.claims.get("aud"))


def _name(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()


def _of_kind(token: str, kind: _Kind) -> Shape:
    found = shape.read(token)
    if found.type not in kind.types or not set(kind.required) <= found.claims.keys():
        raise refusal()
    return found


def _is_answered(found: str, nonce: str | Callable[[str], bool]) -> bool:
    return hmac.compare_digest(found.encode(), nonce.encode()) if isinstance(nonce, str) else nonce(found)


def _for_audience(issuers: Sequence[Issuer], name: Any, audience: str) -> list[Issuer]:
    return [issuer for issuer in issuers if issuer.issuer == name and issuer.audience == audience]


def _for_client(issuers: Sequence[Issuer], name: Any, client: str) -> list[Issuer]:
    return [issuer for issuer in issuers if issuer.issuer == name and client in issuer.clients]


def _may_call(issuer: Issuer, client: str) -> bool:
    """Whether the issuer's tokens are taken from that client: a person's must not pass for a machine's."""
    named = client in issuer.clients
    return named if issuer.kind == "service" else named or issuer.kind == "login" or not issuer.clients


def _only(issuers: Sequence[Issuer]) -> Issuer:
    """Where two could be meant, none is."""
    if len(issuers) != 1:
        raise refusal()
    return issuers[0]
