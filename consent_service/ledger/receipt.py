"""Receipts: what whoever recorded something gets for it, and can show to anybody, without us.

A receipt is a tlog-proof whose extra data opens the entry: the event's payload, the salt of the commitment to it, and
the tag. Whoever checks it makes the entry anew from these, so nothing in them has to be believed.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from consent_service.ledger.entry import PERSONAL, SALT, TAG
from consent_service.ledger.note import Checkpoint, Note, NoteError, Signer, Verifier, sign
from consent_service.ledger.proof import Proof


class Opening(msgspec.Struct, frozen=True):
    """What shows what an entry about a person says."""

    payload: msgspec.Raw
    """Canonical JSON of the event."""
    salt: bytes
    tag: bytes

    @property
    def entry(self) -> bytes:
        """The entry that this opens."""
        return PERSONAL + self.tag + hmac.digest(self.salt, self.payload, "sha256")


_OPENING = msgspec.json.Encoder(order="sorted")
_READ = msgspec.json.Decoder(Opening)


class Log(NamedTuple):
    """Under which name a ledger signs, and with what."""

    origin: str
    signers: tuple[Signer, ...]

    def checkpoint(self, size: int, root: bytes) -> str:
        """The signed checkpoint of a tree."""
        return sign(str(Checkpoint(self.origin, size, root)), self.signers)


def issue(index: int, hashes: Sequence[bytes], opening: Opening, checkpoint: str) -> str:
    """The receipt for an entry under a checkpoint."""
    return str(Proof(_OPENING.encode(opening), index, tuple(hashes), checkpoint))


class Receipt(msgspec.Struct, frozen=True):
    """A receipt that was verified."""

    index: int
    payload: bytes
    checkpoint: Checkpoint
    note: Note


def verify(text: str, known: Sequence[Verifier]) -> Receipt:
    """What a receipt proves.

    Raises:
        NoteError: it proves nothing; says why.
    """
    proof = Proof.parse(text)
    try:
        opening = _READ.decode(proof.extra or b"")
    except msgspec.MsgspecError:
        raise NoteError("the extra data does not open the entry") from None
    if len(opening.salt) != SALT or len(opening.tag) != TAG:
        raise NoteError("the extra data does not open the entry")
    checkpoint, note = proof.verify(opening.entry, known)
    return Receipt(proof.index, bytes(opening.payload), checkpoint, note)
