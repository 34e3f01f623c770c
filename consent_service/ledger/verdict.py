"""What was found out about an export: each problem by a code, and the whole in words."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from consent_service.ledger.container import Code
from consent_service.ledger.export import Filter, Manifest

CODES: dict[Code, str] = {
    "missing": "something of the range is not there, though neither erased nor left out by the filter",
    "altered": "something is not what was signed",
    "reordered": "something stands in another place",
    "duplicated": "something stands there twice",
    "suppressed": "an event was held back: neither shown nor erased by an erasure that the ledger has an entry about",
    "truncated": "the file ends early, or a part of it is not there",
    "added": "something stands there that does not belong",
    "replayed": "the checkpoint is that of another state of the ledger",
    "signature": "it is not signed by a key that is trusted",
}
"""What each code says."""

TOLD = 20
"""Problems of each code, erasures, and choices of a filter, that are told; the others are counted."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong."""

    code: Code
    what: str
    index: int | None = None
    """Of the entry that it is about."""


class ErasedNote(msgspec.Struct, frozen=True):
    """An erasure that the ledger has an entry about."""

    erasure: str
    reason: str
    at: str
    events: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    kind: Literal["export"] = "export"
    genuine: bool
    """Nothing is wrong, and it is signed by a key that is trusted."""
    consistent: bool
    """Nothing is wrong; whoever has any key can make such a file."""
    trusted: bool
    """False: the key came with the file, and nobody said that it is the log's."""
    keys: list[str]
    """By which it is signed."""
    manifest: Manifest | None
    problems: list[Problem]
    counts: dict[str, int]
    """How many problems of each code."""
    erasures: list[ErasedNote]
    erasures_count: int


class Findings:
    """What is found on the way."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.erasures: list[ErasedNote] = []
        self.erased = 0

    def tell(self, code: Code, what: str, index: int | None = None) -> None:
        """Note a problem."""
        self.counts[code] += 1
        if self.counts[code] <= TOLD:
            self.problems.append(Problem(code, what, index))

    def note(self, erasure: ErasedNote) -> None:
        """Note an erasure."""
        self.erased += 1
        if self.erased <= TOLD:
            self.erasures.append(erasure)

    def verdict(self, manifest: Manifest | None, keys: list[str], *, trusted: bool) -> Verdict:
        """All of it."""
        consistent = not self.problems
        return Verdict(
            genuine=consistent and trusted, consistent=consistent, trusted=trusted, keys=keys, manifest=manifest,
            problems=self.problems, counts=dict(self.counts), erasures=self.erasures, erasures_count=self.erased,
        )  # fmt: skip


def as_text(verdict: Verdict) -> str:
    """For people."""
    said = ["an export"] if verdict.manifest is None else _summary(verdict.manifest)
    lines = _judged(verdict, said)
    if verdict.erasures:
        lines.append("Erased, as the ledger says:")
        lines += [f"  {one.at} {one.reason}: {one.events} events ({one.erasure})" for one in verdict.erasures]
    if verdict.erasures_count > TOLD:
        lines.append(f"  and {verdict.erasures_count - TOLD} more")
    if verdict.problems:
        lines.append("What is wrong:")
        lines += [f"  {problem.code}: {problem.what}" for problem in verdict.problems]
        lines += [f"  {code}: {count} in all, {TOLD} told" for code, count in verdict.counts.items() if count > TOLD]
        lines += [f"({code}: {CODES[code]})" for code in CODES if code in verdict.counts]
    return "\n".join(lines)


def _judged(verdict: Verdict, said: list[str]) -> list[str]:
    """Of one that nobody vouches for, this stands first and not what it says of itself."""
    if verdict.consistent and not verdict.trusted:
        return [
            "NOT CHECKED whose it is: consistent in itself, and signed by a key that came with the file,",
            *(f"  {key}" for key in verdict.keys),
            "Anybody can make such a file. Give the published key with --key to learn whether this one is genuine.",
            f"It says of itself: {said[0]}", *said[1:],
        ]  # fmt: skip
    return [f"{'Genuine' if verdict.genuine else 'NOT genuine'}: {said[0]}", *said[1:]]


def _summary(manifest: Manifest) -> list[str]:
    counts = manifest.counts
    return [
        f"export {manifest.export} of the ledger {manifest.origin}, ordered {manifest.created_at:%Y-%m-%d %H:%M} UTC,",
        f"entries {manifest.first} up to {manifest.end} of {manifest.size}:",
        f"{counts.opened} events, {counts.erased} erased, {counts.other} not asked for, {counts.system} of the ledger.",
        *_coverage(manifest.filter),
    ]


def _coverage(wanted: Filter) -> list[str]:
    """What is in it and what is not: nobody shall take a part for the whole."""
    times = (("recorded at this time or later:", wanted.from_), ("recorded before this time:", wanted.until))
    choices = (
        ("about one of the purposes:", wanted.purposes), ("on one of the channels:", wanted.channels),
        ("with one of the statuses:", wanted.statuses), ("recorded with one of the credentials:", wanted.actors),
        ("of one of the kinds:", wanted.kinds),
    )  # fmt: skip
    limits = [] if wanted.subject is None else [f"of one person, whose keyed hash is: {_plain(wanted.subject)}"]
    limits += [f"{what} {moment.isoformat()}" for what, moment in times if moment is not None]
    limits += [f"{what} {_some(values)}" for what, values in choices if values]
    if not limits:
        return ["It is the whole ledger of that moment."]
    return ["It is NOT the whole ledger. Its events are only those that are", *(f"  {limit}" for limit in limits)]


def _some(values: tuple[str, ...]) -> str:
    more = [f"and {len(values) - TOLD} more"] if len(values) > TOLD else []
    return ", ".join([*map(_plain, values[:TOLD]), *more])


def _plain(text: str) -> str:
    """As it may be shown: nothing of it changes what stands around it on a terminal."""
    return text if text.isprintable() else ascii(text)
