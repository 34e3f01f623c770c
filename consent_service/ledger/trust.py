"""Whom a verifier trusts: logs, witnesses, and how many of those must have seen a checkpoint (c2sp.org/tlog-policy)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from consent_service.ledger.note import LOG, WITNESS, Checkpoint, Note, NoteError, Verifier

MAX_TRUST = 262_144
"""Characters of a file that is read."""
_NONE = "none"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


class Group(NamedTuple):
    """Witnesses and groups of them, of which so many must have seen a checkpoint."""

    needed: int
    members: tuple[str, ...]


class Trust(NamedTuple):
    """What a file says."""

    logs: tuple[Verifier, ...]
    witnesses: Mapping[str, Verifier]
    """By the name that they have in the file."""
    groups: Mapping[str, Group]
    quorum: str
    urls: Mapping[Verifier, str]

    @classmethod
    def parse(cls, text: str) -> Trust:
        """Read a file.

        Raises:
            NoteError: it cannot be read; names the line.
        """
        reading = _Reading()
        if len(text) > MAX_TRUST or any(char < " " and char not in "\t\n" for char in text):
            raise NoteError("the policy file is too long, or has control characters")
        for number, line in enumerate(text.split("\n"), 1):
            words = [word for word in re.split(r"[ \t]+", line) if word]
            if not words or words[0].startswith("#"):
                continue
            try:
                reading.take(words)
            except NoteError as error:
                raise NoteError(f"line {number} of the policy file: {error}") from None
        if reading.quorum is None:
            raise NoteError("the policy file has no `quorum` line; without witnesses write `quorum none`")
        return cls(tuple(reading.logs), reading.witnesses, reading.groups, reading.quorum, reading.urls)

    @property
    def known(self) -> tuple[Verifier, ...]:
        """Every key in it."""
        return (*self.logs, *self.witnesses.values())

    def keys(self, origin: str) -> tuple[Verifier, ...]:
        """Those that the log of that name signs with; a witness may have the same name, and is not the log."""
        return tuple(log for log in self.logs if log.name == origin)

    def demand(self, checkpoint: Checkpoint, note: Note) -> None:
        """Let a checkpoint pass that a log of the file signed for itself, and enough witnesses saw.

        Raises:
            NoteError: it is not so.
        """
        seen = {signed.by for signed in note.signatures}
        if seen.isdisjoint(self.keys(checkpoint.origin)):
            raise NoteError("none of the logs that are trusted signed the checkpoint")
        if not self.is_seen(seen):
            raise NoteError(f"too few witnesses saw the checkpoint; `{self.quorum}` is not fulfilled")

    def is_seen(self, by: set[Verifier]) -> bool:
        """Whether these are enough witnesses."""
        saw = {name: witness in by for name, witness in self.witnesses.items()}
        for name, group in self.groups.items():  # each behind its members
            saw[name] = sum(saw[member] for member in group.members) >= group.needed
        return self.quorum == _NONE or saw[self.quorum]


def trusting(keys: Iterable[str]) -> str:
    """The file that trusts these logs, and asks for no witness."""
    return "".join(f"log {key}\n" for key in keys) + f"quorum {_NONE}\n"


class _Reading:
    """A file, line by line. What is named must stand above."""

    def __init__(self) -> None:
        self.logs: list[Verifier] = []
        self.witnesses: dict[str, Verifier] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self.urls: dict[Verifier, str] = {}
        self._in_group: set[str] = set()

    def take(self, words: list[str]) -> None:
        match words:
            case ["log", vkey, *url] if len(url) <= 1:
                self.logs.append(self._key(vkey, LOG, url, self.logs))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self._demand_new(name)
                self.witnesses[name] = self._key(vkey, WITNESS, url, self.witnesses.values())
            case ["group", name, needed, *members] if members:
                self._demand_new(name)
                self.groups[name] = self._group(needed, members)
            case ["quorum", name] if self.quorum is None:
                if name != _NONE:
                    self._demand_defined(name)
                self.quorum = name
            case _:
                raise NoteError("is none of `log`, `witness`, `group` and the one `quorum`, with what belongs to it")

    def _key(self, vkey: str, kind: int, url: list[str], others: Iterable[Verifier]) -> Verifier:
        key = Verifier.parse(vkey)
        if key.kind != kind:
            raise NoteError("the key is of the other type: logs sign with type 1, witnesses with type 4")
        if any(other.raw == key.raw for other in others):
            raise NoteError("the key stands here twice")
        if url:
            self.urls[key] = url[0]
        return key

    def _group(self, needed: str, members: list[str]) -> Group:
        for member in members:
            self._demand_defined(member)
            if member in self._in_group:
                raise NoteError(f"`{member}` is in a group already")
            self._in_group.add(member)
        named = {"any": 1, "all": len(members)}
        count = named.get(needed) or (int(needed) if _NUMBER.fullmatch(needed) else 0)
        if not 1 <= count <= len(members):
            raise NoteError("a group needs `all`, `any` or a number of its members")
        return Group(count, tuple(members))

    def _demand_new(self, name: str) -> None:
        if name == _NONE or name in self.witnesses or name in self.groups:
            raise NoteError(f"the name `{name}` is taken")

    def _demand_defined(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise NoteError(f"`{name}` is not defined above")
