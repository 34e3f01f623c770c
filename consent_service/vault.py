"""Keys at rest: every strand has a key of its own, wrapped by one that is not in the database.

What is sealed by a strand's key can be read with it and with nothing else, so destroying the key erases all of it,
wherever copies lie. Each item is sealed under a key derived from its name, with a fresh nonce (AES-256-GCM, NIST SP
800-38D), so that no item can be put in another's place.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VALUE = b"value"
"""Within its strand, the name of the identifier's value. Payloads are named by their event; for others see below."""
_KEY = 32
_NONCE = 12
_NAME = 4


def answer_to(event: UUID) -> bytes:
    """The name of the answer that was given to an event."""
    return b"answer" + event.bytes


def contact_of(contact: bytes) -> bytes:
    """The name of a contact's value, by its keyed hash."""
    return b"contact" + contact


class Place(NamedTuple):
    """Whose key it is: a wrapped key is of no use anywhere else."""

    log_id: int
    identifier: bytes
    tenure: int


class StrandKey:
    """The key of one strand, in the clear, for as long as a call needs it."""

    __slots__ = ("_key", "_salting", "_sealing", "_tagging", "wrapped")

    def __init__(self, key: bytes, wrapped: bytes) -> None:
        self._key = key
        self._salting = self._tagging = b""  # worked out when asked for
        self._sealing = hmac.digest(key, b"ca/v1 enc", "sha256")
        self.wrapped = wrapped
        """As it is stored."""

    def seal(self, name: bytes, text: bytes) -> bytes:
        """Nonce and ciphertext of an item, which is called `name` within its strand."""
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(hmac.digest(self._sealing, name, "sha256")).encrypt(nonce, text, name)

    def open(self, name: bytes, sealed: bytes) -> bytes:
        """What `seal` was given; raises InvalidTag where it is another item, another key, or was changed."""
        cipher = AESGCM(hmac.digest(self._sealing, name, "sha256"))
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], name)

    @property
    def tags(self) -> bytes:
        """The key of the strand's tags: whoever has it can tell the strand's entries, and that none is missing."""
        self._tagging = self._tagging or hmac.digest(self._key, b"ca/v1 tag", "sha256")
        return self._tagging

    def salt(self, event: UUID) -> bytes:
        """What the commitment to an event is keyed with: whoever has it can check the event, and no other one."""
        self._salting = self._salting or hmac.digest(self._key, b"ca/v1 salt", "sha256")
        return hmac.digest(self._salting, event.bytes, "sha256")


class Vault:
    """Makes and opens strand keys with the key-encryption key."""

    def __init__(self, secret: bytes) -> None:
        kek = hmac.digest(secret, b"ca/v1 kek", "sha256")
        self._wrapping = AESGCM(kek)
        self._name = hashlib.sha256(kek).digest()[:_NAME]
        """Leads each wrapped key, so that it can be told which key-encryption key opens it."""

    def make(self, place: Place) -> StrandKey:
        """A new random key."""
        key, nonce = os.urandom(_KEY), os.urandom(_NONCE)
        return StrandKey(key, self._name + nonce + self._wrapping.encrypt(nonce, key, _aad(place)))

    def open(self, place: Place, wrapped: bytes) -> StrandKey:
        """A stored key; raises InvalidTag where it was wrapped by another key, or for another place."""
        nonce, sealed = wrapped[_NAME : _NAME + _NONCE], wrapped[_NAME + _NONCE :]
        return StrandKey(self._wrapping.decrypt(nonce, sealed, _aad(place)), wrapped)


def _aad(place: Place) -> bytes:
    return b"%d\0%d\0" % (place.log_id, place.tenure) + place.identifier
