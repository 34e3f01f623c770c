"""Signed notes and checkpoints, in the formats c2sp.org/signed-note, tlog-checkpoint and tlog-cosignature.

A note is text with signature lines below it. A log signs its checkpoints (Ed25519, type 1); a witness, which has seen
that the tree only grew, adds the moment to what it signs (Ed25519, type 4). A signature by an unknown key says nothing;
a wrong one by a known key condemns the note.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from consent_service.ledger.tree import HASH

LOG, WITNESS = 1, 4
"""Types of signatures."""
MAX_NOTE = 65_536
"""Characters of a note that is read."""
MAX_SIGNATURES = 64
_DASH = "\N{EM DASH} "
_ID = 4
_KEY = 32
_SIGNATURE = 64
_TIME = 8
_LATEST = 253_402_300_799
"""The last second of the year 9999: no witness sees anything later."""
_NAME = r"[^\s+\x00-\x1f\x7f\ud800-\udfff]+"
_MAX_NAME = 255
_VKEY = re.compile(rf"({_NAME})\+([0-9a-f]{{8}})\+([A-Za-z0-9+/]+={{0,2}})")
_LINE = re.compile(rf"\u2014 ({_NAME}) ([A-Za-z0-9+/]+={{0,2}})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether a log may be called so; and nothing of it changes what stands around it on a terminal."""
    return len(text) <= _MAX_NAME and text.isprintable() and re.fullmatch(_NAME, text) is not None


class NoteError(ValueError):
    """A note, a key or a checkpoint that cannot be read or is not signed as it must be. The text says what is wrong."""


class Verifier(NamedTuple):
    """A key that signatures are verified with."""

    name: str
    kind: int
    raw: bytes
    """The 32 bytes of the public key."""

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Read `<name>+<key id>+<base64>`.

        Raises:
            NoteError: it is none, or of a type that is not known here.
        """
        match = _VKEY.fullmatch(vkey)
        material = None if match is None else unbase64(match[3])
        if match is None or material is None or len(material) != 1 + _KEY or material[0] not in (LOG, WITNESS):
            raise NoteError("this is no verifier key with an Ed25519 key of type 1 or 4")
        made = cls(match[1], material[0], material[1:])
        if made.id.hex() != match[2]:
            raise NoteError("the id of the verifier key is not that of its name and key")
        return made

    @property
    def id(self) -> bytes:
        """By what a signature names its key, together with the name."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.raw).digest()[:_ID]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64_text(bytes([self.kind]) + self.raw)}"

    def verifies(self, text: str, signature: bytes) -> Signed | None:
        """Who signed, and of a witness when; None where the signature is wrong."""
        signed, at = text.encode(), None
        if self.kind == WITNESS:
            at = int.from_bytes(signature[:_TIME], "big")
            if at > _LATEST:
                return None
            signed, signature = _cosigned(text, at), signature[_TIME:]
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, signed)
        except InvalidSignature:
            return None
        return Signed(self, at)


class Signed(NamedTuple):
    """A signature that was verified."""

    by: Verifier
    at: int | None
    """Of a witness: POSIX time in seconds."""


class Signer:
    """A key that signs notes."""

    def __init__(self, name: str, seed: bytes, kind: int = LOG) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.verifier = Verifier(name, kind, raw)
        self._start = f"{_DASH}{name} "
        self._id = self.verifier.id

    def line(self, text: str, at: int = 0) -> str:
        """The signature line for a text; `at` is what a witness signs beside it."""
        if self.verifier.kind == WITNESS:
            signature = at.to_bytes(_TIME, "big") + self._key.sign(_cosigned(text, at))
        else:
            signature = self._key.sign(text.encode())
        return f"{self._start}{base64_text(self._id + signature)}\n"


def _cosigned(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def sign(text: str, signers: Iterable[Signer]) -> str:
    """The note with a signature line of each."""
    return text + "\n" + "".join(signer.line(text) for signer in signers)


class Note(NamedTuple):
    """A note that at least one known key signed."""

    text: str
    signatures: tuple[Signed, ...]


def read(note: str, known: Sequence[Verifier]) -> Note:
    """Verify a note.

    Raises:
        NoteError: it is no note, no known key signed it, or the signature of a known key is wrong.
    """
    text, lines = split(note)
    keys = {(verifier.name, verifier.id): verifier for verifier in known}
    found: dict[Verifier, Signed] = {}
    for line in lines:
        name, key, signature = take_apart(line)
        verifier = keys.get((name, key))
        if verifier is None or verifier in found:
            continue
        signed = verifier.verifies(text, signature)
        if signed is None:
            raise NoteError(f"the signature by {verifier.name} is wrong")
        found[verifier] = signed
    if not found:
        raise NoteError("no known key signed the note")
    return Note(text, tuple(found.values()))


def take_apart(line: str) -> tuple[str, bytes, bytes]:
    """Name and id of the key that a signature line says it is by, and the signature, unverified.

    Raises:
        NoteError: it cannot be read.
    """
    match = _LINE.fullmatch(line)
    raw = None if match is None else unbase64(match[2])
    if match is None or raw is None or len(raw) <= _ID:
        raise NoteError("a signature line of the note cannot be read")
    return match[1], raw[:_ID], raw[_ID:]


def split(note: str) -> tuple[str, list[str]]:
    """The text of a note, with its last newline, and the signature lines, all of it unverified.

    Raises:
        NoteError: it is no note.
    """
    if len(note) > MAX_NOTE or any(char < " " and char != "\n" for char in note):
        raise NoteError("the note is too long, or has control characters")
    if any("\ud800" <= char <= "\udfff" for char in note):
        raise NoteError("the note is no UTF-8")
    text, found, signatures = note.rpartition("\n\n")
    lines = signatures.split("\n")
    if not found or not text or lines.pop() or not 0 < len(lines) <= MAX_SIGNATURES:
        raise NoteError("this is no note: its text, an empty line, and signature lines")
    return text + "\n", lines


class Checkpoint(NamedTuple):
    """How large the tree of a log is, and its hash."""

    origin: str
    size: int
    root: bytes

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the text of a note.

        Raises:
            NoteError: it is no checkpoint.
        """
        lines = text.split("\n")
        if lines.pop() or len(lines) < 3 or not all(lines) or _SIZE.fullmatch(lines[1]) is None:  # noqa: PLR2004
            raise NoteError("this is no checkpoint: origin, size and root hash, a line each")
        root = unbase64(lines[2])
        if root is None or len(root) != HASH:
            raise NoteError("the root hash of the checkpoint has not 32 bytes")
        return cls(lines[0], int(lines[1]), root)

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64_text(self.root)}\n"


def base64_text(raw: bytes) -> str:
    """Standard base64 with padding (RFC 4648, section 4)."""
    return binascii.b2a_base64(raw, newline=False).decode()


def unbase64(text: str) -> bytes | None:
    """The bytes; None where the text is not the one way to write them."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return raw if base64_text(raw) == text else None
