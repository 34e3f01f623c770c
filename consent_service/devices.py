"""Devices: random identifiers that the service mints, and the secret that proves who has one.

Both are made from the root secret and nothing is stored, so that a device costs nothing before it says something, and
whether it ever did cannot be told from how long an answer takes.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import NamedTuple

from consent_service import ids
from consent_service.auth import Credential, Scope
from consent_service.errors import Forbidden
from consent_service.subjects import Subject

NAMESPACE = "device"
_NONE = "-" * 43
COOKIE = "consent_device"
COOKIE_AGE_S = 34_190_000
"""Thirteen months, the longest life that supervisory authorities recommend for such cookies."""
_TOKEN = re.compile(r"dt_(?P<name>[1-9][0-9]{0,8}_[\w-]{22})_(?P<proof>[\w-]{43})", re.ASCII)


class Device(NamedTuple):
    """A minted device."""

    subject: Subject
    token: str
    """Identifier and secret in one: whoever has it is the device."""


class Devices:
    """Mints devices and recognises them."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"ca/v1 devices", "sha256")

    def mint(self, log_id: int, seed: bytes | None = None) -> Device:
        """A new device of a tenant; the same one for the same 16 bytes of `seed`."""
        random = _text(ids.random() if seed is None else hmac.digest(self._key, b"mint" + seed, "sha256")[:16])
        name = f"{log_id}_{random}"
        return Device(Subject(NAMESPACE, f"dv_{name}"), f"dt_{name}_{self._proof(name)}")

    def proves(self, log_id: int, subject: Subject, token: str | None) -> bool:
        """Whether a token belongs to a subject, a device of this tenant."""
        match = _TOKEN.fullmatch(token or "")
        name = match["name"] if match is not None else f"{log_id}_"
        genuine = hmac.compare_digest(self._proof(name), match["proof"] if match is not None else _NONE)
        return genuine and subject == Subject(NAMESPACE, f"dv_{name}") and name.startswith(f"{log_id}_")

    def demand_own(self, credential: Credential, subject: Subject, proof: str | None, wider: Scope) -> None:
        """Let a caller speak about others only with the scope `wider`; about itself with `write:device`.

        Raises:
            Forbidden: it is neither.
        """
        if wider in credential.scopes:
            return
        if credential.kind == "person":
            if subject != Subject("login", credential.login):
                raise Forbidden("A person's own token speaks for that log-in only.")
        elif not self.proves(credential.log_id, subject, proof):
            raise Forbidden(
                "This key speaks for a device that proves itself: mint one by POST /v1/devices and send its token "
                f"as `proof`. Other identifiers need the scope `{wider}`."
            )

    def _proof(self, name: str) -> str:
        return _text(hmac.digest(self._key, b"proof" + name.encode(), "sha256"))


def cookie(token: str, domain: str) -> str:
    """A `Set-Cookie` value (RFC 6265bis) by which the tenant's own site keeps a device's token on its own domain."""
    return f"{COOKIE}={token}; Domain={domain}; Path=/; Max-Age={COOKIE_AGE_S}; Secure; SameSite=Lax"


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
