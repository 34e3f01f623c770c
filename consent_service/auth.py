"""Who calls, and what they may do: credentials, and the keys that prove them. `keys.py` makes and ends them.

A key is `<prefix>_<log_id>_<credential>_<secret>`: the tenant comes from the credential and from nowhere else. The
secret has 256 random bits; the database holds its HMAC only. A credential has one key; two, while the second
takes the first one's place.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from typing import Literal, get_args

import msgspec

from consent_service import db, log
from consent_service.errors import Unauthenticated

Scope = Literal[
    "check", "write:device", "write:attested", "links", "state", "events", "export", "requests", "requests:approve",
    "policies", "keys",
]  # fmt: skip
SCOPES: frozenset[str] = frozenset(get_args(Scope))

Role = Literal["viewer", "exporter", "policy_editor", "approver", "admin"]
ROLES: dict[Role, frozenset[Scope]] = {
    "viewer": frozenset({"state", "events"}),
    "exporter": frozenset({"state", "events", "export"}),
    "policy_editor": frozenset({"state", "events", "policies"}),
    "approver": frozenset({"state", "events", "requests", "requests:approve"}),
    "admin": frozenset({"state", "events", "export", "requests", "requests:approve", "policies", "keys"}),
}
"""What an officer may do in each role."""

Kind = Literal["service", "publishable", "officer", "person"]
"""`person`: somebody who calls with a token of their own log-in; has no key."""
PREFIX: dict[Kind, str] = {"service": "sk", "publishable": "pk", "officer": "ok"}
FRESH_S = 1.0
"""A credential read from the database is taken as still valid for this long."""
MAX_TOKEN = 8_192
"""Characters of a key or token; looked at before anything else, because everything else takes as long as the token."""
_MAX_KNOWN = 10_000
_NOTE_EVERY_S = 60.0
_CLOSE_S = 1.0
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
    login: str = ""
    """Of a person: the id of the log-in that it speaks for."""


def is_of_token(credential: str) -> bool:
    """Whether the id is that of somebody who came with a token: those have a colon, which no key's id has."""
    return ":" in credential


class CredentialRow(msgspec.Struct, frozen=True):
    """A row of `credential`, or one like it where there is none."""

    found: bool
    log_id: int
    id: str
    kind: Kind
    name: str
    secrets: list[bytes]
    scopes: list[str]
    origins: list[str]
    rate: int | None
    unnoted: bool
    """Nobody has written down for a minute that it is used."""


class Known:
    """Callers that were verified less than FRESH_S seconds ago, by what they sent."""

    def __init__(self) -> None:
        self._callers: dict[str, tuple[float, Credential]] = {}

    def get(self, token: str) -> Credential | None:
        """The caller, without asking anybody."""
        entry = self._callers.get(token)
        return entry[1] if entry is not None and time.monotonic() - entry[0] < FRESH_S else None

    def put(self, token: str, credential: Credential, verified_at: float) -> None:
        """Remember a caller; `verified_at` is on the monotonic clock, from before it was verified."""
        if len(self._callers) >= _MAX_KNOWN:
            self.clear()
        self._callers[token] = verified_at, credential

    def drop(self, token: str) -> None:
        """Forget a caller that is not valid any more."""
        self._callers.pop(token, None)

    def clear(self) -> None:
        """Forget everybody."""
        self._callers.clear()


_READ = db.one("auth", "read_credential", CredentialRow)
_NOTE = db.execute("auth", "note_use")
_log = log.get("auth")


class Keyring:
    """Verifies keys; remembers a verified one for FRESH_S seconds, and writes down which were used.

    Belongs to one event loop; to be closed before its pool is.
    """

    def __init__(self, pool: db.Pool, secret: bytes) -> None:
        self._pool = pool
        self._root = secret
        self._known = Known()
        self._asking: dict[str, asyncio.Task[Credential]] = {}
        self._noted: dict[tuple[int, str], float] = {}
        """When this process last set out to write down that a credential was used."""
        self._used: list[tuple[int, str]] = []
        """Still to be written down."""
        self._noting: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """End what is being written down, within about a second. Keys are still verified, but not noted any more."""
        self._closed = True
        if self._noting is None:
            return
        _, late = await asyncio.wait({self._noting}, timeout=_CLOSE_S)
        if late:
            self._noting.cancel()
            await asyncio.wait(late, timeout=_CLOSE_S)

    def known(self, token: str) -> Credential | None:
        """The credential of a key verified a moment ago, without asking the database."""
        return self._known.get(token)

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
        async with db.connection(self._pool, int(match["log"])) as connection:
            row = await _READ(connection, int(match["log"]), match["id"])
        assert row is not None, "the statement always gives one row"  # noqa: S101 -- an invariant of the SQL
        offered = stored(self._root, token)
        # Compare even where there is nothing to compare with: an unknown id must not answer sooner.
        matches = [hmac.compare_digest(offered, secret) for secret in row.secrets]
        if not (any(matches) and row.found) or PREFIX.get(row.kind) != match["prefix"]:
            self._known.drop(token)
            raise Unauthenticated("This key is not valid, or was revoked.")
        credential = Credential(
            row.log_id, row.id, row.kind, row.name, frozenset(row.scopes), frozenset(row.origins), row.rate
        )
        self._known.put(token, credential, read_at)
        if row.unnoted:
            self._note((row.log_id, row.id))
        return credential

    def _note(self, who: tuple[int, str]) -> None:
        """Have it written down that a credential was used. Nobody waits for that, and nobody hears if it fails."""
        now = time.monotonic()
        if self._closed or now - self._noted.get(who, -_NOTE_EVERY_S) < _NOTE_EVERY_S:
            return
        if len(self._noted) >= _MAX_KNOWN:
            self._noted.clear()
        self._noted[who] = now
        self._used.append(who)
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._write_notes())

    async def _write_notes(self) -> None:
        """One at a time, so that requests have all connections but one."""
        while self._used:
            log_id, credential = self._used.pop()
            try:
                async with db.connection(self._pool, log_id) as connection:
                    await _NOTE(connection, log_id, credential)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the request has nothing to do with it
                self._used.clear()  # they come again in a minute; one line says enough until then
                _log.warning("use of a key not noted", log_id=log_id, credential=credential, exc_info=error)


def stored(secret: bytes, key: str) -> bytes:
    """What the database keeps of a key: of all of it, so that it is good for no other credential."""
    return hmac.digest(hmac.digest(secret, b"ca/v1 credentials", "sha256"), key.encode(), "sha256")
