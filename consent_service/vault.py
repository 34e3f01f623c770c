"""Keys at rest: every strand has a key of its own, wrapped by one that is not in the database.

What is sealed by a strand's key can be read with it and with nothing else, so destroying the key erases all of it,
wherever copies lie. Each item is sealed together with its name, under a fresh nonce (AES-256-GCM, NIST SP 800-38D), so
that no item can be put in another's place. Random nonces do for 2^32 items of one strand.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent_service.errors import SetupError

VALUE = b"value"
"""Within its strand, the name of the identifier's value. Payloads are named by their event; for others see below."""
_KEY = 32
_NONCE = 12
NAME = 4
"""Bytes of the name of a key-encryption key, by which each wrapped key begins."""
LOOK_S = 1.0
"""For how many seconds a process may go by a file of key-encryption keys that has changed since."""


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

    __slots__ = ("_cipher", "_salting", "secret", "tags", "wrapped")

    def __init__(self, key: bytes, wrapped: bytes) -> None:
        self.secret = key
        made = hashlib.shake_256(b"ca/v1 strand\0" + key).digest(3 * _KEY)
        self._cipher = AESGCM(made[:_KEY])
        self._salting = made[_KEY : 2 * _KEY]
        self.tags = made[2 * _KEY :]
        """The key of the strand's tags: whoever has it can tell the strand's entries, and that none is missing."""
        self.wrapped = wrapped
        """As it is stored."""

    def seal(self, name: bytes, text: bytes) -> bytes:
        """Nonce and ciphertext of an item, which is called `name` within its strand."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, text, name)

    def open(self, name: bytes, sealed: bytes) -> bytes:
        """What `seal` was given; raises InvalidTag where it is another item, another key, or was changed."""
        return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], name)

    def salt(self, event: UUID) -> bytes:
        """What the commitment to an event is keyed with: whoever has it can check the event, and no other one."""
        return hashlib.blake2b(event.bytes, key=self._salting, digest_size=_KEY).digest()


class Vault:
    """Makes and opens strand keys with the key-encryption keys, which are nowhere in the database.

    They stand in a file, from which the operator takes those that nothing is wrapped by any more: what older copies of
    the database hold can then be read by nobody. Without a file there is one, which follows from the root secret.
    """

    def __init__(self, secret: bytes, file: Path | None = None) -> None:
        self._file = file
        self._derived = hmac.digest(secret, b"ca/v1 kek", "sha256")
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = float("-inf")
        self._current = b""
        self._wrapping: dict[bytes, AESGCM] = {}
        """By name. A name leads each wrapped key, so that it can be told what opens it."""
        self._look()

    @property
    def current(self) -> bytes:
        """The name of the key-encryption key that new keys are wrapped by."""
        self._look()
        return self._current

    def knows(self, name: bytes) -> bool:
        """Whether a key-encryption key is at hand."""
        self._look()
        return name in self._wrapping

    def make(self, place: Place) -> StrandKey:
        """A new random key."""
        fresh = os.urandom(_KEY + _NONCE)
        return self._wrapped(place, fresh[:_KEY], fresh[_KEY:])

    def open(self, place: Place, wrapped: bytes) -> StrandKey:
        """A stored key; raises InvalidTag where it was wrapped by a key that is not at hand, or for another place."""
        name, nonce, sealed = wrapped[:NAME], wrapped[NAME : NAME + _NONCE], wrapped[NAME + _NONCE :]
        if name not in self._wrapping:
            self._look(at_once=True)
        wrapping = self._wrapping.get(name)
        if wrapping is None:
            raise InvalidTag
        return StrandKey(wrapping.decrypt(nonce, sealed, _aad(place)), wrapped)

    def rewrap(self, place: Place, wrapped: bytes) -> bytes:
        """The same key, wrapped by the current key-encryption key."""
        return self._wrapped(place, self.open(place, wrapped).secret, os.urandom(_NONCE)).wrapped

    def _wrapped(self, place: Place, key: bytes, nonce: bytes) -> StrandKey:
        self._look()
        return StrandKey(key, self._current + nonce + self._wrapping[self._current].encrypt(nonce, key, _aad(place)))

    def _look(self, *, at_once: bool = False) -> None:
        """See whether the file has changed: at most LOOK_S ago, it had not."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S and not at_once:
            return
        if self._file is None:
            keys = [self._derived]
        else:
            stamp = _stamp(self._file)
            if stamp == self._stamp:
                self._looked_at = now
                return
            keys, self._stamp = [*read_keys(self._file), self._derived], stamp
        self._wrapping = {_name(key): AESGCM(key) for key in keys}
        self._current, self._looked_at = _name(keys[0]), now


def read_keys(file: Path) -> list[bytes]:
    """The key-encryption keys of a file: a line each, in hex; new keys are wrapped by the first.

    Raises:
        SetupError: it cannot be read.
    """
    try:
        keys = [bytes.fromhex(line) for line in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError) as error:
        raise SetupError(f"The key-encryption keys in {file} cannot be read: {error}.") from None
    if not keys or any(len(key) != _KEY for key in keys):
        raise SetupError(f"{file} is no file of key-encryption keys: a line of 64 hex digits each. Give it back.")
    return keys


def _stamp(file: Path) -> tuple[int, int, int]:
    """What changes when the file does."""
    try:
        found = file.stat()
    except OSError as error:
        raise SetupError(f"The key-encryption keys in {file} cannot be read: {error.strerror}.") from None
    return found.st_mtime_ns, found.st_ino, found.st_size


def write_keys(file: Path, keys: Iterable[bytes]) -> None:
    """Put other key-encryption keys into a file, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with open(draft, "w", encoding="ascii", opener=private) as new:
        new.write("".join(f"{key.hex()}\n" for key in keys))
        new.flush()
        os.fsync(new.fileno())
    draft.replace(file)
    sync(file.parent)


def private(path: str, flags: int) -> int:
    """Opens a file (for `open`) that only its owner may read, where it is made by that."""
    return os.open(path, flags, 0o600)


def sync(folder: Path) -> None:
    """Wait until the disk has the names of a folder: keys must outlive a power cut as surely as what they wrap."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keep others from changing a file of key-encryption keys for as long as it takes.

    Raises:
        SetupError: somebody else is at it.
    """
    with open(file.with_name(f".{file.name}.lock"), "w", opener=private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError("Another purge is under way. Wait until it has ended.") from None
        yield


def new_key() -> bytes:
    """A key-encryption key."""
    return os.urandom(_KEY)


def _name(kek: bytes) -> bytes:
    return hashlib.sha256(kek).digest()[:NAME]


def _aad(place: Place) -> bytes:
    return b"%d\0%d\0" % (place.log_id, place.tenure) + place.identifier
