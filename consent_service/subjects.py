"""Subjects and their identifiers: who is meant, and how the service finds them without keeping names in keys."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from consent_service.errors import FieldError

MAX_ID = 256
MAX_PROOF = 128
"""Longest proof of possession."""
LOGIN = "login"
"""Namespace of accounts: whoever logs in. Only they have identifiers linked to them, and nobody has one in turn."""
ADDRESSES = ("email", "phone")
"""Namespaces whose identifiers are addresses or numbers themselves."""


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`{"type": "<namespace>", "id": "…"}`: one identifier by which some system knows a person."""

    type: Annotated[
        str, Meta(pattern=r"^[a-z][a-z0-9_-]*$(?!\n)", max_length=32, examples=["device", "login", "email"])
    ]
    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID, examples=["d-7f3a"])]


class Hasher:
    """Keyed hashes of one ledger: the same value gives the same 16 bytes, and nothing leads back without the secret.

    BLAKE2b with a key (RFC 7693): a MAC like HMAC, and much cheaper for values as short as these.
    """

    def __init__(self, secret: bytes, log_id: int) -> None:
        key = hmac.digest(secret, b"ca/v1 identifiers %d" % log_id, "sha256")
        self._short = hashlib.blake2b(key=key, digest_size=16)
        """Copied for each value: setting up the key costs more than hashing."""
        self._long = hashlib.blake2b(key=key, digest_size=32)

    def identifier(self, subject: Subject) -> bytes:
        """What an identifier is looked up by."""
        return self._hash(b"identifier", f"{subject.type}\0{subject.id}")

    def contact(self, value: str) -> bytes:
        """What a contact is looked up by."""
        return self._hash(b"contact", normal_contact(value))

    def call(self, credential: str, device: bytes, key: str, part: bytes) -> bytes:
        """What a call is known by again, from who called and the idempotency key, which may be a name or a number.

        One hash for all of it: whom it was about is then no part of what stays when that person is erased.
        """
        return self._hash(b"call %b %b %b" % (part, credential.encode(), device.hex().encode()), key)

    def body(self, raw: bytes) -> bytes:
        """What tells whether two calls say the same; 32 bytes."""
        return self._mac(b"body", raw)

    def order(self, raw: bytes) -> bytes:
        """What shows that an order, which was kept outside, was written here; 32 bytes."""
        return self._mac(b"order", raw)

    def once(self, kind: str, value: str) -> bytes:
        """What must not be taken twice, or not any more: a challenge, a token, a session."""
        return self._hash(kind.encode(), value)

    def _hash(self, kind: bytes, value: str) -> bytes:
        keyed = self._short.copy()
        keyed.update(kind + b"\0" + value.encode())
        return keyed.digest()

    def _mac(self, kind: bytes, raw: bytes) -> bytes:
        keyed = self._long.copy()
        keyed.update(kind + b"\0" + raw)
        return keyed.digest()


def normal_contact(value: str) -> str:
    """One spelling per address: e-mail addresses without letter case, telephone numbers without punctuation.

    Of numbers with a country in front too (`00` is `+`); which country a number without one is of, nobody says.
    """
    if "@" in value:
        return value.strip().lower()
    digits = value.translate({ord(mark): None for mark in " -/().\u00a0"})
    if not (digits.isascii() and digits.lstrip("+").isdigit()):
        return value.strip()
    return f"+{digits[2:]}" if digits.startswith("00") else digits


def address(contact: str) -> Subject:
    """The identifier that a contact would be, were somebody known by it."""
    return Subject("email" if "@" in contact else "phone", normal_contact(contact))


def id_errors(value: str, pointer: str) -> Iterator[FieldError]:
    """Why a string cannot name anybody: look-alikes and invisible marks would let two ids be taken for one."""
    if value.isascii() and value.isprintable() and value.strip() == value:
        return
    if not unicodedata.is_normalized("NFC", value):
        yield FieldError(pointer, "is not in Unicode normal form C; normalise it before sending")
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in value) or "\ufffd" in value:
        yield FieldError(pointer, "has control, format or replacement characters; send the id without them")
    if value.strip() != value:
        yield FieldError(pointer, "begins or ends with white space; send the id without it")
