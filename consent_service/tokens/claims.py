"""What a token says about whom, as far as we go by it, and what its login is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from consent_service.auth import Role
from consent_service.policies import Issuer
from consent_service.tokens.shape import refusal, text

LEEWAY = timedelta(seconds=30)
"""How far the issuer's clock may be from ours."""
_LATEST = datetime.max.replace(tzinfo=UTC).timestamp() - 86_400


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """Of a token that was verified."""

    issuer: Issuer
    """The configuration that it was verified by: the tenant that holds it is the tenant that is called."""
    sub: str
    """Empty in a logout token that names a session alone."""
    audience: str
    client: str
    """The application that it was issued to."""
    jti: str | None
    issued_at: datetime
    expires_at: datetime
    nonce: str | None = None
    sid: str | None = None
    acr: str | None = None
    amr: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset()
    """All that stand in `scope`; what a tenant lets a machine have at most is `issuer.scopes`."""
    roles: frozenset[Role] = frozenset()
    """What the token gives; `demand_assurance` says which of them its login is good enough for."""

    @property
    def identity(self) -> str:
        """The key of a person: unique because no issuer has a `|`. Never an e-mail address, which changes hands.

        Raises:
            ValueError: the token names nobody.
        """
        if not self.sub:
            raise ValueError("a token that names a session alone identifies nobody")
        return f"{self.issuer.issuer}|{self.sub}"


class Times(NamedTuple):
    """From when to when a token is good."""

    issued_at: datetime
    expires_at: datetime


def demand_assurance(claims: Claims) -> frozenset[Role]:
    """The roles whose demands on the login (`issuer.assurance`) the token fulfils; the others are dropped."""
    return frozenset(role for role in claims.roles if _is_assured(claims, role))


def _is_assured(claims: Claims, role: Role) -> bool:
    demanded = claims.issuer.assurance.get(role)
    if demanded is None:
        return True
    return (not demanded.acr or claims.acr in demanded.acr) and set(demanded.amr) <= set(claims.amr)


def times(found: Mapping[str, Any], issuer: Issuer, now: datetime) -> Times:
    """When the token was issued and when it ends; raises Unauthenticated unless it is good now and not for too long."""
    issued_at, expires_at = _moment(found.get("iat")), _moment(found.get("exp"))
    not_before = _moment(found["nbf"]) if "nbf" in found else issued_at
    if max(issued_at, not_before) > now + LEEWAY or expires_at <= now - LEEWAY:
        raise refusal()
    if not issued_at < expires_at <= issuer.max_lifetime.after(issued_at):
        raise refusal()
    return Times(issued_at, expires_at)


def _moment(value: Any) -> datetime:
    """A NumericDate (RFC 7519, section 2): a number, which a bool is not, of the years that there are."""
    if type(value) not in (int, float) or not 0 <= value <= _LATEST:  # NaN is in no range
        raise refusal()
    return datetime.fromtimestamp(value, UTC)


def audience(value: Any) -> str:
    """The one audience, as a text or as a list of one: a token for two parties can be used by one against the other."""
    return text(value[0] if isinstance(value, list) and len(value) == 1 else value)


def scopes(value: Any) -> frozenset[str]:
    """A list separated by spaces (RFC 6749, section 3.3); raises Unauthenticated where it is something else."""
    if value is None:
        return frozenset()
    if not isinstance(value, str):
        raise refusal()
    return frozenset(value.split(" ")) - {""}


def context(value: Any) -> str | None:
    """`acr`; whatever is no text stands for nothing."""
    return value if isinstance(value, str) else None


def methods(value: Any) -> tuple[str, ...]:
    """`amr`; whatever is no text in a list stands for nothing."""
    return tuple(_texts(value))


def roles(found: Mapping[str, Any], issuer: Issuer) -> frozenset[Role]:
    """The roles that the issuer's texts stand for. Texts that stand for none are the issuer's own business."""
    return frozenset(issuer.roles[name] for name in _texts(_claim(found, issuer.roles_claim)) if name in issuer.roles)


def _claim(found: Mapping[str, Any], path: str) -> Any:
    """The claim of that name, which may have dots (`https://shop.example/roles`); else what the dots lead to."""
    if path in found:
        return found[path]
    value: Any = found
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _texts(value: Any) -> Sequence[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
