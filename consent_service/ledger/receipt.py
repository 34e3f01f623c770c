"""Receipts: what whoever recorded something gets for it, and can show to anybody, without us.

A receipt is a tlog-proof whose extra data opens the entry: the event's payload, the salt of the commitment to it, and
the tag. Whoever checks it makes the entry anew from these, so nothing in them has to be believed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from consent_service.ledger.entry import SALT, TAG, personal
from consent_service.ledger.note import Checkpoint, Note, NoteError, Signer, Verifier, sign
from consent_service.ledger.proof import Proof
from consent_service.ledger.trust import Trust


class Opening(msgspec.Struct, frozen=True):
    """What shows what an entry about a person says."""

    payload: msgspec.Raw
    """Canonical JSON of the event."""
    salt: bytes
    tag: bytes

    @property
    def entry(self) -> bytes:
        """The entry that this opens."""
        return personal(self.tag, self.salt, bytes(self.payload))


_EPOCH = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_OPENING = msgspec.json.Encoder(order="sorted")
_READ = msgspec.json.Decoder(Opening)


class Log(NamedTuple):
    """Under which name a ledger signs, and with what."""

    base: str
    """The name in the first epoch."""
    epoch: int
    signers: tuple[Signer, ...]
    """Of every generation of the key that is in use."""
    retired: tuple[Verifier, ...] = ()
    """What signatures of earlier generations are verified with."""

    @property
    def origin(self) -> str:
        """The name in this epoch: each is a log of its own, because it contradicts those before."""
        return self.base if self.epoch == 1 else f"{self.base}/{self.epoch}"

    def epoch_of(self, origin: str) -> int:
        """The epoch of this ledger in which it had that name; 0: it never has."""
        if origin == self.base:
            return 1
        number = origin.removeprefix(f"{self.base}/")
        return int(number) if number != origin and _EPOCH.fullmatch(number) else 0

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """What any signature that it ever made in this epoch is verified with."""
        return (*(signer.verifier for signer in self.signers), *self.retired)

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


def verify(text: str, trust: Trust) -> Receipt:
    """What a receipt proves to whoever trusts these logs and witnesses.

    Raises:
        NoteError: it proves nothing; says why.
    """
    proof = Proof.parse(text)
    try:
        opening = _READ.decode(proof.extra or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NoteError("the extra data does not open the entry") from None
    # Written in another way it could say one thing to us and another to the next reader.
    if len(opening.salt) != SALT or len(opening.tag) != TAG or _OPENING.encode(opening) != proof.extra:
        raise NoteError("the extra data does not open the entry")
    checkpoint, note = proof.verify(opening.entry, trust.known)
    trust.demand(checkpoint, note)
    return Receipt(proof.index, bytes(opening.payload), checkpoint, note)


def as_json(receipt: Receipt) -> dict[str, Any]:
    """For programs."""
    return {
        "genuine": True,
        "origin": receipt.checkpoint.origin,
        "index": receipt.index,
        "size": receipt.checkpoint.size,
        "root": receipt.checkpoint.root.hex(),
        "signed_by": [signed.by.name for signed in receipt.note.signatures],
        "payload": msgspec.Raw(receipt.payload),
    }


def _shown(line: str) -> str:
    """As it may be shown: nothing of it moves on a terminal, or turns the reading round."""
    return line if line.isprintable() else line.encode("unicode_escape").decode()


def as_text(receipt: Receipt) -> str:
    """For people: what was proved, by whom it is signed, and what it says."""
    checkpoint = receipt.checkpoint
    seen = [
        f"{signed.by.name} saw it on {datetime.fromtimestamp(signed.at, UTC):%Y-%m-%d %H:%M:%S} UTC"
        for signed in receipt.note.signatures
        if signed.at is not None
    ]
    return "\n".join((
        f"Genuine: entry {receipt.index} of the ledger {checkpoint.origin}, which had {checkpoint.size} entries then",
        f"and signs that their tree is {checkpoint.root.hex()}.",
        *seen,
        "What it says:",
        *map(_shown, msgspec.json.format(receipt.payload).decode().split("\n")),
    ))  # fmt: skip
