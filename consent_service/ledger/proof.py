"""Proofs that an entry is in a log, in the format c2sp.org/tlog-proof@v1: one text that is checked without the log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from consent_service.ledger import tree
from consent_service.ledger.note import Checkpoint, Note, NoteError, Verifier, base64_text, read, unbase64

MAX_PROOF = 262_144
"""Characters of a proof that is read."""
_FIRST = "c2sp.org/tlog-proof@v1"
_line = lru_cache(4_096)(base64_text)
"""Of a hash: the proofs of a batch have most of theirs in common."""
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})", re.ASCII)


class Proof(msgspec.Struct, frozen=True):
    """What a proof says; `verify` tells whether it is true."""

    extra: bytes | None
    """Whatever else travels with it. No signature covers this: it must be checked against the entry."""
    index: int
    hashes: tuple[bytes, ...]
    """From the leaf's sibling up."""
    note: str
    """The signed checkpoint."""

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Read a proof.

        Raises:
            NoteError: it is none.
        """
        head, found, note = text.partition("\n\n")
        lines = head.split("\n")
        if len(text) > MAX_PROOF or not found or lines.pop(0) != _FIRST:
            raise NoteError(f"this is no proof: its first line is not {_FIRST}, or it is too long")
        extra: bytes | None = None
        if lines and lines[0].startswith("extra "):
            extra = unbase64(lines.pop(0).removeprefix("extra "))
            if extra is None:
                raise NoteError("the extra data of the proof is no base64")
        match = _INDEX.fullmatch(lines.pop(0)) if lines else None
        hashes = tuple(raw for line in lines if (raw := unbase64(line)) is not None and len(raw) == tree.HASH)
        if match is None or len(hashes) != len(lines):
            raise NoteError("the proof has no index, or a hash that is none")
        return cls(extra, int(match[1]), hashes, note)

    def __str__(self) -> str:
        extra = [] if self.extra is None else [f"extra {base64_text(self.extra)}"]
        hashes = [_line(one) for one in self.hashes]
        return "\n".join([_FIRST, *extra, f"index {self.index}", *hashes, "", self.note])

    def verify(self, entry: bytes, known: Sequence[Verifier]) -> tuple[Checkpoint, Note]:
        """The checkpoint that the entry is proved to be under, and who signed it.

        Raises:
            NoteError: it is not proved.
        """
        note = read(self.note, known)
        checkpoint = Checkpoint.parse(note.text)
        if checkpoint.origin not in {signed.by.name for signed in note.signatures}:
            raise NoteError("the log itself did not sign the checkpoint")
        if not tree.includes(checkpoint.root, checkpoint.size, self.index, tree.leaf_hash(entry), self.hashes):
            raise NoteError("the entry is not in the tree of the checkpoint at that index")
        return checkpoint, note
