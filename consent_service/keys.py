"""Making and ending keys."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec

from consent_service import db
from consent_service.auth import PREFIX, Credential, Kind, Scope, stored
from consent_service.errors import FieldError, Frozen, Invalid, NotFound, SetupError
from consent_service.ledger import append, lock_head
from consent_service.ledger.entry import KeyChange, KeyChanged, system
from consent_service.subjects import Hasher

PUBLIC: frozenset[Scope] = frozenset({"write:device"})
"""What a key may do that everybody can see."""

_CANNOT_WAIT: frozenset[KeyChange] = frozenset({"revoked", "secret_dropped"})
"""What is done although the ledger is frozen; it becomes an entry when it thaws."""
_MAX_SECRETS = 2
_MAX_NAME = 100
_MAX_RATE = 1_000_000
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?",
    re.ASCII,
)
_MAX_ORIGIN = 255
_LAST_PORT = 65_535
_UNSAID = {"http": "80", "https": "443"}
"""Ports that browsers leave out of an origin."""


class Issued(msgspec.Struct, frozen=True):
    """What may be told of a credential: everything but its secrets."""

    id: str
    kind: Kind
    name: str
    scopes: list[str]
    origins: list[str]
    rate: int | None
    created_at: datetime
    last_used_at: datetime | None
    """Within about a minute."""
    secrets: int
    """How many keys are valid."""
    revoked_at: datetime | None


class Valid(msgspec.Struct, frozen=True):
    """Whether a key would be accepted."""

    valid: bool


_ADD = db.execute("keys", "add_credential")
_CREATE = db.one("keys", "create_credential", Issued)
_LIST = db.many("keys", "list_credentials", Issued)
_LOCK = db.one("keys", "lock_credential", Issued)
_APPEND = db.execute("keys", "append_secret")
_DROP = db.execute("keys", "drop_oldest_secret")
_REVOKE = db.execute("keys", "revoke_credential")
_NOTE_UNLOGGED = db.execute("keys", "note_unlogged")
_IS_VALID = db.one("keys", "is_valid", Valid)


async def add_key(
    connection: db.Connection,
    secret: bytes,
    credential: Credential,
    key: str | None = None,
) -> str:
    """See that a credential is there, and return its key: `key` where the caller kept it, else a new one.

    Whatever was done to a credential that is there already stays done: a second key stays valid, a kept key that was
    rotated out stays out, and what was revoked stays revoked.
    """
    if credential.kind == "publishable" and "write:attested" in credential.scopes:
        raise SetupError("A publishable key is seen by everybody and cannot attest. Give it `write:device`.")
    offered = key if key is not None else _new_key(credential.kind, credential.log_id, credential.id)
    async with _changing(connection, secret, credential.log_id, credential.id) as made:
        before = await _LOCK(connection, credential.log_id, credential.id)
        await _ADD(
            connection, credential.log_id, credential.id, credential.kind, credential.name, [stored(secret, offered)],
            sorted(credential.scopes), sorted(credential.origins), credential.rate, key is None,
        )  # fmt: skip
        after = await _LOCK(connection, credential.log_id, credential.id)
        if before is None:
            made.append("created")
        elif after is not None and _settled(before) != _settled(after):
            made.append("changed")
        if before is not None and key is None and before.revoked_at is None:
            made.append("secret_added")
    return offered


def _settled(issued: Issued) -> Issued:
    """What an operator decides about a credential."""
    return msgspec.structs.replace(issued, last_used_at=None, secrets=0)


async def is_valid(connection: db.Connection, secret: bytes, log_id: int, credential: str, key: str) -> bool:
    """Whether a key would be accepted: it may have been rotated out or revoked."""
    row = await _IS_VALID(connection, log_id, credential, stored(secret, key))
    return row is not None


async def create_key(connection: db.Connection, secret: bytes, credential: Credential) -> tuple[str, Issued]:
    """Make a new credential; its key is nowhere else to be had.

    Raises:
        Invalid: it is no sound credential, or its id is taken, be it by one that was revoked.
    """
    demand_sound(credential)
    key = _new_key(credential.kind, credential.log_id, credential.id)
    async with _changing(connection, secret, credential.log_id, credential.id) as made:
        issued = await _CREATE(
            connection, credential.log_id, credential.id, credential.kind, credential.name, [stored(secret, key)],
            sorted(credential.scopes), sorted(credential.origins), credential.rate,
        )  # fmt: skip
        if issued is not None:
            made.append("created")
    if issued is None:
        raise Invalid(
            f"The id `{credential.id}` is taken, and records name it for ever. Choose another, or give that one a new "
            f"key: `consent key create --replace {credential.id}`."
        )
    return key, issued


async def add_second_key(connection: db.Connection, secret: bytes, log_id: int, credential: str) -> tuple[str, Issued]:
    """Give the credential another key, beside the one that it has.

    Raises:
        NotFound: there is no such credential.
        Invalid: it has two keys, or was revoked.
    """
    async with _hold(connection, secret, log_id, credential) as (issued, made):
        _demand_unrevoked(issued)
        if issued.secrets >= _MAX_SECRETS:
            raise Invalid(
                f"`{credential}` has two keys already. When nobody uses the older one any more, end it with "
                f"`consent key revoke --old {credential}`; then there is room for another."
            )
        key = _new_key(issued.kind, log_id, credential)
        await _APPEND(connection, log_id, credential, stored(secret, key))
        made.append("secret_added")
    return key, msgspec.structs.replace(issued, secrets=issued.secrets + 1)


async def drop_old_key(connection: db.Connection, secret: bytes, log_id: int, credential: str) -> Issued:
    """End the older of a credential's two keys; every process obeys within FRESH_S.

    Raises:
        NotFound: there is no such credential.
        Invalid: it has one key only, or was revoked.
    """
    async with _hold(connection, secret, log_id, credential) as (issued, made):
        _demand_unrevoked(issued)
        if issued.secrets < _MAX_SECRETS:
            raise Invalid(
                f"`{credential}` has one key only. Give it another with `consent key create --replace {credential}`, "
                "or revoke it as a whole, without --old."
            )
        await _DROP(connection, log_id, credential)
        made.append("secret_dropped")
    return msgspec.structs.replace(issued, secrets=issued.secrets - 1)


async def revoke(connection: db.Connection, secret: bytes, log_id: int, credential: str) -> tuple[Issued, bool]:
    """End a credential with all its keys, for good; every process obeys within FRESH_S. And whether it was live.

    Raises:
        NotFound: there is no such credential.
    """
    async with _hold(connection, secret, log_id, credential) as (issued, made):
        was_live = issued.revoked_at is None
        if was_live:
            await _REVOKE(connection, log_id, credential)
            made.append("revoked")
        revoked = await _LOCK(connection, log_id, credential)
    return revoked or issued, was_live


async def list_keys(connection: db.Connection, log_id: int) -> list[Issued]:
    """Every credential of a tenant, the revoked ones too, oldest first."""
    return await _LIST(connection, log_id)


@asynccontextmanager
async def _hold(
    connection: db.Connection, secret: bytes, log_id: int, credential: str
) -> AsyncIterator[tuple[Issued, list[KeyChange]]]:
    async with _changing(connection, secret, log_id, credential) as made:
        issued = await _LOCK(connection, log_id, credential) if _ID.fullmatch(credential) else None
        if issued is None:
            raise NotFound("This tenant has no key with that id. `consent key list` names those that it has.")
        yield issued, made


@asynccontextmanager
async def _changing(
    connection: db.Connection, secret: bytes, log_id: int, credential: str
) -> AsyncIterator[list[KeyChange]]:
    """A transaction that holds the head; what was done to the credential in it becomes entries of the ledger."""
    async with connection.transaction():
        tip = await lock_head(connection, log_id, although_frozen=True)
        made: list[KeyChange] = []
        yield made
        if tip.frozen is not None:
            if not set(made) <= _CANNOT_WAIT:
                raise Frozen(tip.frozen)
            await _NOTE_UNLOGGED(connection, log_id, credential, made)
        elif made:
            name = Hasher(secret, log_id).once("credential", credential).hex()
            entries = [system(KeyChanged(at=tip.now, change=change, credential=name)) for change in made]
            await append(connection, log_id, tip, entries, tip.now)


def _demand_unrevoked(issued: Issued) -> None:
    if issued.revoked_at is not None:
        raise Invalid(
            f"`{issued.id}` was revoked on {issued.revoked_at:%Y-%m-%d}, for good. Make a new key with another id."
        )


def demand_sound(credential: Credential) -> None:
    """Refuse a credential that could not be used, or by too many.

    Raises:
        Invalid: names everything that is wrong with it.
    """
    if errors := tuple(_faults(credential)):
        raise Invalid("The key cannot be made:", errors)


def _faults(credential: Credential) -> Iterator[FieldError]:
    if not _ID.fullmatch(credential.id):
        yield FieldError("/id", "must be 1 to 32 of a-z, 0-9 and -, the first no -")
    name = credential.name
    if not (name.isprintable() and name.strip() == name and 1 <= len(name) <= _MAX_NAME):
        yield FieldError("/name", f"must be 1 to {_MAX_NAME} printable characters, without space around them")
    if credential.rate is not None and not 1 <= credential.rate <= _MAX_RATE:
        yield FieldError("/rate", f"must be 1 to {_MAX_RATE} requests per second")
    if credential.kind == "publishable" and (beyond := sorted(credential.scopes - PUBLIC)):
        may = ", ".join(f"`{scope}`" for scope in sorted(PUBLIC))
        yield FieldError(
            "/scopes",
            f"must not have {', '.join(f'`{scope}`' for scope in beyond)}: everybody sees a publishable key. "
            f"It may have {may}",
        )
    if credential.kind == "service" and credential.origins:
        yield FieldError(
            "/origins", "must be empty: a service key in a web page is seen by everybody; make it publishable"
        )
    for origin in sorted(credential.origins):
        if fault := _fault_of_origin(origin):
            yield FieldError("/origins", f"{origin!a} {fault}")


def _fault_of_origin(origin: str) -> str | None:
    """Why browsers would never send this as the origin of a page; None where they would."""
    match = _ORIGIN.fullmatch(origin)
    if match is None or len(origin) > _MAX_ORIGIN:
        return (
            "must be one exact web origin in lower case, such as https://shop.example or http://localhost:3000: "
            "no path, no slash at the end, no wildcard, other alphabets as xn--…"
        )
    host, port = match["host"], match["port"]
    family = ipaddress.IPv6Address if host.startswith("[") else ipaddress.IPv4Address
    if port is not None and (int(port) > _LAST_PORT or port == _UNSAID.get(match["scheme"])):
        return "must not name a port that browsers leave out, or that there is not"
    if host.startswith("[") or host.rpartition(".")[2].isdigit():
        try:
            exact = family(host.strip("[]")).compressed == host.strip("[]")
        except ValueError:
            exact = False
        if not exact:
            return "must name an IP address as browsers write it: whole, and IPv6 in its shortest form"
    return None


def new_id(kind: Kind) -> str:
    """An id for a credential that nobody named."""
    return f"{kind}-{secrets.token_hex(4)}"


def _new_key(kind: Kind, log_id: int, credential: str) -> str:
    return f"{PREFIX[kind]}_{log_id}_{credential}_{secrets.token_urlsafe(32)}"
