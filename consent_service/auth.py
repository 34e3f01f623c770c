"""Who calls, and what they may do.

A key is `<prefix>_<log_id>_<credential>_<secret>`: the tenant comes from the credential and from nowhere else. The
secret has 256 random bits; the database holds its HMAC only.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from typing import Literal, get_args

import msgspec

from consent_service import db
from consent_service.errors import SetupError, Unauthenticated

Scope = Literal[
    "check", "write:device", "write:attested", "links", "state", "events", "export", "requests", "requests:approve",
    "policies", "keys",
]  # fmt: skip
SCOPES: frozenset[str] = frozenset(get_args(Scope))

Kind = Literal["service", "publishable", "officer"]
PREFIX: dict[Kind, str] = {"service": "sk", "publishable": "pk", "officer": "ok"}

FRESH_S = 1.0
"""A credential read from the database is taken as still valid for this long."""
_MAX_KNOWN = 10_000
_TOKEN = re.compile(
    r"(?P<prefix>sk|pk|ok)_(?P<log>[1-9][0-9]{0,8})_(?P<id>[a-z0-9-]{1,32})_(?P<secret>[\w-]{43})", re.ASCII
)


class Credential(msgspec.Struct, frozen=True):
    """A verified caller."""

    log_id: int
    id: str
    kind: Kind
    name: str
    scopes: frozenset[str]
    origins: frozenset[str]
    """Web origins (scheme, host, port, exactly) from which a browser may use it."""
    rate: int | None
    """Requests per second; None: no limit."""


class CredentialRow(msgspec.Struct, frozen=True):
    """A row of `credential`."""

    log_id: int
    id: str
    kind: Kind
    name: str
    secrets: list[bytes]
    scopes: list[str]
    origins: list[str]
    rate: int | None


_READ = db.one("auth", "read_credential", CredentialRow)
_ADD = db.execute("auth", "add_credential")


class Keyring:
    """Verifies keys; remembers a verified one for FRESH_S seconds."""

    def __init__(self, pool: db.Pool, secret: bytes) -> None:
        self._pool = pool
        self._key = _secret_key(secret)
        self._known: dict[str, tuple[float, Credential]] = {}
        self._asking: dict[str, asyncio.Task[Credential]] = {}

    def known(self, token: str) -> Credential | None:
        """The credential of a key verified a moment ago, without asking the database."""
        entry = self._known.get(token)
        return entry[1] if entry is not None and time.monotonic() - entry[0] < FRESH_S else None

    async def authenticate(self, token: str) -> Credential:
        """The credential that a key belongs to.

        Raises:
            Unauthenticated: no such key, or revoked.
            Unavailable: the database cannot be asked, and the key was not verified a moment ago.
        """
        known = self.known(token)
        if known is not None:
            return known
        asking = self._asking.get(token)
        if asking is None:  # many calls with one key share one look
            asking = self._asking[token] = asyncio.create_task(self._verify(token))
            asking.add_done_callback(lambda _: self._asking.pop(token, None))
        return await asyncio.shield(asking)

    async def _verify(self, token: str) -> Credential:
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise Unauthenticated("This is no key of this service. Send `Authorization: Bearer <key>`.")
        read_at = time.monotonic()
        async with db.connection(self._pool) as connection:
            row = await _READ(connection, int(match["log"]), match["id"])
        offered = hmac.digest(self._key, match["secret"].encode(), "sha256")
        # Compare even where there is nothing to compare with: an unknown id must not answer sooner.
        stored = row.secrets if row is not None else [bytes(32)]
        matches = [hmac.compare_digest(offered, secret) for secret in stored]
        if row is None or not any(matches) or PREFIX[row.kind] != match["prefix"]:
            self._known.pop(token, None)
            raise Unauthenticated("This key is not valid, or was revoked.")
        credential = Credential(
            row.log_id, row.id, row.kind, row.name, frozenset(row.scopes), frozenset(row.origins), row.rate
        )
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[token] = (read_at, credential)
        return credential


async def add_key(
    connection: db.Connection,
    secret: bytes,
    credential: Credential,
    key: str | None = None,
) -> str:
    """Store a credential and return its key, a new one unless `key` is given; the key is nowhere else to be had."""
    if credential.kind == "publishable" and "write:attested" in credential.scopes:
        raise SetupError("A publishable key is seen by everybody and cannot attest. Give it `write:device`.")
    if key is None:
        key = f"{PREFIX[credential.kind]}_{credential.log_id}_{credential.id}_{secrets.token_urlsafe(32)}"
    stored = hmac.digest(_secret_key(secret), key[-43:].encode(), "sha256")
    await _ADD(
        connection, credential.log_id, credential.id, credential.kind, credential.name, [stored],
        sorted(credential.scopes), sorted(credential.origins), credential.rate,
    )  # fmt: skip
    return key


def _secret_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"ca/v1 credentials", "sha256")
