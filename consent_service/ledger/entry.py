"""The entries of a ledger: what its leaves are the hashes of.

An entry about a person or an officer says nothing to whoever has not its salt: a tag, by which the holder of the
strand's tag key finds it, and a commitment to the event's payload (canonical JSON). Once the strand's key is destroyed,
nobody can tell any more whose entry it was, and the tree is as it was. A system entry is JSON in the clear (RFC 8785):
ids, hashes and counts, no names and no free text.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

PERSONAL = b"\1"
SYSTEM = b"\2"
TAG = 16
SALT = 32


def personal(tag: bytes, salt: bytes, payload: bytes) -> bytes:
    """The entry about an event: `0x01`, the tag of its place in the strand, the commitment to its payload; 49 bytes."""
    return PERSONAL + tag + hmac.digest(salt, payload, "sha256")


def tag(tags: bytes, sequence: int) -> bytes:
    """What the event at a place (from 1) in a strand is found by."""
    return hmac.digest(tags, sequence.to_bytes(8, "big"), "sha256")[:TAG]


class _System(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """Base of what happens to a ledger as a whole."""

    at: datetime


class PolicyApplied(_System, frozen=True, tag="policy"):
    """A policy came into force."""

    version: int
    sha256: str


class NoticePublished(_System, frozen=True, tag="notice"):
    """A version of a notice was published."""

    notice: str
    version: int
    sha256: str


KeyChange = Literal["created", "changed", "secret_added", "secret_dropped", "revoked"]


class KeyChanged(_System, frozen=True, tag="key"):
    """A credential of ours was made, got or lost a secret, or was revoked."""

    change: KeyChange
    credential: str
    """Keyed hash (hex): operators put names into ids."""


class LogKeyChanged(_System, frozen=True, tag="log_key"):
    """A key that the ledger itself signs with was added or retired."""

    change: Literal["added", "retired"]
    key: str
    """The verifier key (c2sp.org/signed-note)."""


class Ruptured(_System, frozen=True, tag="rupture"):
    """The ledger was taken up again without entries that it had signed; the first entry of a new epoch."""

    epoch: int
    kept: int
    """How many entries it went on from, and the hash of their tree."""
    kept_root: str
    lost: int
    """How many entries the last checkpoint known outside the database had, and the hash of their tree."""
    lost_root: str
    lost_origin: str


class ExportMade(_System, frozen=True, tag="export"):
    """An export of the ledger was ordered."""

    export: UUID
    by: str
    """Keyed hash (hex) of the credential."""
    filter: str
    """SHA-256 (hex) of a salt, which goes when the person asked about is erased, and of what was asked for."""
    size: int
    """Entries that it covers."""


ErasureReason = Literal["request", "retention"]


class ErasureMade(_System, frozen=True, tag="erasure"):
    """What certain entries say was made unreadable for ever. Which, says a list that is not in the ledger."""

    erasure: UUID
    reason: ErasureReason
    by: str
    """Keyed hash (hex) of the credential; empty where it was due."""
    events: int
    held: int
    """How many of them are kept under lock until a date, because a law says so."""
    sha256: str
    """See `erased_digest`."""


class KeysRewrapped(_System, frozen=True, tag="rewrap"):
    """The keys of all strands were wrapped by another key-encryption key; the one before is destroyed."""

    kek: str
    """Name (hex) of the new one."""


class ImportMade(_System, frozen=True, tag="import"):
    """A list of existing consents was read in, to its end."""

    reading: UUID
    """It is the same where a longer file goes on from where a shorter one ended."""
    recorded: int
    """Rows of the file that are entries of the ledger; each is one."""
    refused: int
    sha256: str
    """Of a salt and the file."""


SystemEvent: TypeAlias = (
    PolicyApplied
    | NoticePublished
    | KeyChanged
    | LogKeyChanged
    | Ruptured
    | ImportMade
    | ExportMade
    | ErasureMade
    | KeysRewrapped
)
_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(SystemEvent)


def system(event: SystemEvent) -> bytes:
    """The entry about something that happened to the ledger."""
    return SYSTEM + _ENCODER.encode(event)


def erased_digest(salt: bytes, indexes: Iterable[int]) -> str:
    """What the entry about an erasure says of its list (hex): SHA-256 of the salt and each index as u64, ascending."""
    digest = hashlib.sha256(salt)
    for index in indexes:
        digest.update(index.to_bytes(8, "big"))
    return digest.hexdigest()


def read_system(entry: bytes) -> SystemEvent:
    """What a system entry says.

    Raises:
        ValueError: it is none.
    """
    if entry[:1] != SYSTEM:
        raise ValueError("this is no system entry")
    event: SystemEvent = _DECODER.decode(entry[1:])
    return event
