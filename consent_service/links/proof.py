"""What a link rests on: the device's secret, and a log-in that answers our challenge or a service that vouches."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from consent_service import clock, ids
from consent_service.auth import Credential
from consent_service.devices import NAMESPACE, Devices
from consent_service.errors import FieldError, Forbidden, Invalid
from consent_service.links.model import LinkBody, LinkKind
from consent_service.policies import GRADES, Policy
from consent_service.subjects import MAX_ID, Subject, id_errors
from consent_service.tokens import Claims, Verifier

CHALLENGE_S = 600
"""How long a challenge can be answered, in seconds: long enough to log in."""
_LONGEST_CHILDHOOD = timedelta(days=366 * 18 + 31)
_FOR_LIFE = timedelta(days=36_525)
_MAC = 16
TOO_LONG = f"names a log-in whose issuer and sub have more than {MAX_ID} characters together"


class Claim(NamedTuple):
    """A link that has been proved, and may be made."""

    kind: LinkKind
    identifier: Subject
    anchor: Subject
    grade: int
    until: datetime | None
    login: Claims | None
    """Of the ID token, whose nonce is the challenge that was answered: good for one link."""


class Challenges:
    """Nonces that name the identifier for which they were given out; nothing is stored until one is used."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"ca/v1 challenges", "sha256")

    def give(self, log_id: int, identifier: Subject) -> tuple[str, datetime]:
        """A nonce, and until when it can be used."""
        expires_at = clock.now() + timedelta(seconds=CHALLENGE_S)
        body = int(expires_at.timestamp()).to_bytes(5, "big") + ids.random()
        return _text(body + self._mac(log_id, identifier, body)), expires_at

    def answers(self, log_id: int, identifier: Subject, nonce: str | None) -> bool:
        """Whether a nonce was given out for the identifier, not too long ago."""
        try:
            raw = base64.urlsafe_b64decode((nonce or "").encode() + b"=" * (-len(nonce or "") % 4))
        except (ValueError, UnicodeEncodeError):
            return False
        body, mac = raw[:-_MAC], raw[-_MAC:]
        genuine = hmac.compare_digest(self._mac(log_id, identifier, body), mac)
        return genuine and int.from_bytes(body[:5], "big") >= clock.now().timestamp() and nonce == _text(raw)

    def _mac(self, log_id: int, identifier: Subject, body: bytes) -> bytes:
        said = b"%d\0%s\0%s\0" % (log_id, identifier.type.encode(), identifier.id.encode()) + body
        return hmac.digest(self._key, said, "sha256")[:_MAC]


class Prover:
    """Decides whether a caller may make a link."""

    def __init__(self, devices: Devices, challenges: Challenges, verifier: Verifier) -> None:
        self._devices = devices
        self._challenges = challenges
        self._verifier = verifier

    async def prove(self, policy: Policy, credential: Credential, body: LinkBody) -> Claim:
        """The link that a body proves.

        Raises:
            Invalid: it cannot be a link at all; names every field error.
            Forbidden, Unauthenticated: the proof is missing or wrong.
        """
        errors = tuple(_errors(policy, body))
        if errors:
            raise Invalid("Some fields cannot be accepted.", errors)
        if body.identifier.type == NAMESPACE:
            self.demand_possession(credential, body.identifier, body.proof)
        if body.id_token is not None:
            return await self._by_login(policy, credential, body, body.id_token)
        if not _vouches(credential):
            raise Forbidden("Vouching for a log-in takes a key with `links` and `write:attested`; send an `id_token`.")
        grade = GRADES.index("service_attested")
        if body.group is not None:
            return Claim("group", body.identifier, body.group, grade, body.until, None)
        if body.guardian is not None:
            return Claim("guardian", body.identifier, body.guardian, grade, _midnight(body.age_out), None)
        login = body.login if isinstance(body.login, Subject) else Subject("login", body.login or "")
        return Claim("identity", body.identifier, login, grade, body.until, None)

    def has(self, credential: Credential, identifier: Subject, proof: str | None) -> bool:
        """Whether a proof is the token of that device."""
        return identifier.type == NAMESPACE and self._devices.proves(credential.log_id, identifier, proof)

    def demand_possession(self, credential: Credential, identifier: Subject, proof: str | None) -> None:
        """Whoever speaks about a device has it in hand; whoever speaks about anything else vouches for it."""
        if identifier.type == NAMESPACE:
            if not self.has(credential, identifier, proof):
                raise Forbidden("This is not the device's token. Send the one that it was minted with, as `proof`.")
        elif not _vouches(credential):
            raise Forbidden("Only a device can prove itself. Others take a key with `links` and `write:attested`.")

    async def _by_login(self, policy: Policy, credential: Credential, body: LinkBody, token: str) -> Claim:
        if body.identifier.type != NAMESPACE and not _vouches(credential):
            raise Forbidden("Only a device can be linked without a service that vouches for it.")
        log_id, identifier = credential.log_id, body.identifier
        claims = await self._verifier.id_token(
            token, policy.tenant.issuers, nonce=lambda nonce: self._challenges.answers(log_id, identifier, nonce)
        )
        anchor = Subject("login", claims.identity)
        if len(anchor.id) > MAX_ID:
            raise Invalid("Some fields cannot be accepted.", (FieldError("/id_token", TOO_LONG),))
        return Claim("identity", body.identifier, anchor, GRADES.index("login"), body.until, claims)


def _vouches(credential: Credential) -> bool:
    return {"links", "write:attested"} <= credential.scopes


def _errors(policy: Policy, body: LinkBody) -> Iterator[FieldError]:
    yield from id_errors(body.identifier.id, "/identifier/id")
    anchors = {name: getattr(body, name) for name in ("id_token", "login", "group", "guardian")}
    given = [name for name, value in anchors.items() if value is not None]
    if len(given) != 1:
        yield FieldError("", "must have exactly one of `id_token`, `login`, `group` and `guardian`")
        return
    (name,) = given
    anchor = anchors[name]
    if name == "login" and isinstance(anchor, str):
        anchor = Subject("login", anchor)
    if isinstance(anchor, Subject):
        yield from id_errors(anchor.id, f"/{name}/id")
        if anchor == body.identifier:
            yield FieldError(f"/{name}", "is the identifier itself")
        if name == "guardian" and body.identifier.type in policy.tenant.shared:
            yield FieldError("/identifier/type", "is a namespace of things that change hands, and no child's")
        if anchor.type in policy.tenant.shared:
            yield FieldError(f"/{name}/type", "is a namespace of things that change hands")
        if name == "login" and anchor.type != "login":
            yield FieldError("/login/type", "is no account: its namespace is `login`")
        if name == "group" and anchor.type in ("login", NAMESPACE):
            yield FieldError("/group/type", "is a person's namespace; groups have their own, e.g. `household`")
    if body.until is not None and (wrong := _no_end(body.until)) is not None:
        yield FieldError("/until", wrong)
    yield from _childhood_errors(name, body)


def _no_end(until: datetime) -> str | None:
    """Why a moment is no end for a link that begins now."""
    try:
        rest = until.astimezone(UTC) - clock.now()
    except OverflowError:
        return "lies before or beyond all years that there are"
    if rest <= timedelta(0):
        return "lies in the past"
    return "lies more than a hundred years ahead; leave it out where no end is planned" if rest > _FOR_LIFE else None


def _childhood_errors(name: str, body: LinkBody) -> Iterator[FieldError]:
    if name != "guardian":
        if body.age_out is not None:
            yield FieldError("/age_out", "goes with `guardian` only")
        return
    if body.until is not None:
        yield FieldError("/until", "a guardian's link ends with `age_out`")
    if body.age_out is None:
        yield FieldError("/age_out", "is missing; from which day does the child decide alone?")
    elif body.age_out.day != 1:
        yield FieldError("/age_out", "is no first of a month; a birthday is more than needs to be known")
    elif not timedelta(0) < _midnight(body.age_out) - clock.now() <= _LONGEST_CHILDHOOD:
        yield FieldError("/age_out", "lies in the past, or further ahead than a childhood lasts")
    if not body.evidence:
        yield FieldError("/evidence", "is missing; how was it verified that this is the guardian?")


def _midnight(day: date | None) -> datetime:
    day = day or date.min
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
