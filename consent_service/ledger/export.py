"""What stands in an export (README.md describes it): the members and their order, their lines, the manifest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from consent_service.ledger import tree
from consent_service.ledger.container import Kind, Member, Writer
from consent_service.ledger.entry import SALT, TAG, ErasureReason
from consent_service.ledger.note import NoteError, Signer, base64_text, sign, unbase64
from consent_service.states import Moment

FORMAT = "consent-export/1"
Format = Literal["ndjson", "csv", "parquet"]
BUNDLE = 65_536
"""Entries in one member."""
LISTED = 4_096
"""Erased indexes in one line."""

README, CHECKPOINT, TIMESTAMP, TRUST = "README.txt", "checkpoint", "timestamp.tsr", "trust-policy"
RANGE, STRANDS, ERASURES, MANIFEST, SIGNATURE = (
    "range-proof", "strands.json", "erasures.ndjson", "manifest.json", "manifest.sig",
)  # fmt: skip


class Filter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"from_": "from"}):
    """Which events are wanted; what is left out limits nothing."""

    from_: Moment | None = None
    """Recorded then or later."""
    until: Moment | None = None
    """Recorded before."""
    purposes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    subject: str | None = None
    """Keyed hash (hex) of the identifier."""
    actors: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every event of the range, or of the subject, is wanted, so that one which is not there is missing."""
        chosen = self.purposes or self.channels or self.statuses or self.actors or self.kinds
        return not chosen and (self.subject is None or (self.from_ is None and self.until is None))


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many of each there are in the range."""

    entries: int
    personal: int
    """Entries about somebody."""
    system: int
    opened: int
    """Personal entries whose event is in the export."""
    erased: int
    """Whose event is no more."""
    other: int
    """Whose event was not asked for."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is signed."""

    format: str
    export: UUID
    origin: str
    epoch: int
    created_at: Moment
    size: int
    """Of the tree that everything is proved against."""
    root: str
    first: int
    end: int
    """The range: from `first` up to but without `end`."""
    filter: Filter
    events: Format
    counts: Counts
    members: tuple[Member, ...]


Tag = Annotated[bytes, Meta(min_length=TAG, max_length=TAG)]
Salt = Annotated[bytes, Meta(min_length=SALT, max_length=SALT)]
"""Of one length, or one thing could be said in several ways: HMAC takes a shorter key for one with zeros behind it."""


class Line(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A line of events.ndjson: what opens an entry."""

    index: int
    tag: Tag
    salt: Salt
    payload: msgspec.Raw
    """The exact bytes that the entry commits to."""


class Strand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One identifier of a subject during one tenure."""

    tags: bytes
    """The key of its tags."""
    events: Annotated[int, Meta(ge=0)]
    """How many it had in the tree."""
    tenure: int
    account: bool
    """Whether it is the account that others are linked to."""


class Erased(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a line of erasures.ndjson says of an erasure; lines with the indexes follow it."""

    erasure: UUID
    reason: ErasureReason
    index: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    """Of its entry."""
    events: int
    salt: Salt
    entry: bytes
    proof: str
    """That the entry is in the log (c2sp.org/tlog-proof@v1)."""
    consistency: list[bytes] | UnsetType = UNSET
    """Where the proof's tree is larger than that of the export: that it is the same log, grown (RFC 6962, 2.1.2)."""


Indexes = Annotated[list[int], Meta(min_length=1, max_length=LISTED)]
ENCODER = msgspec.json.Encoder(order="sorted")


def bundle(number: int) -> str:
    """The name of the member with the entries of one bundle."""
    return f"entries/{number:08d}"


def events(kind: Format) -> str:
    """The name of the member with the events."""
    return f"events.{kind}"


def packing(name: str) -> Kind:
    """How a member is packed. Parquet is compressed by itself, and must be readable from anywhere."""
    if name == events("parquet"):
        return "stored"
    return "deflated" if name in (events("ndjson"), events("csv"), ERASURES) else "whole"


def names(first: int, end: int, kind: Format, *, timestamp: bool, subject: bool) -> list[str]:
    """Every member, in its order."""
    bundles = [bundle(number) for number in range(-(-(end - first) // BUNDLE))]
    return [
        README, CHECKPOINT, *([TIMESTAMP] if timestamp else []), TRUST, *bundles, RANGE, events(kind),
        *([STRANDS] if subject else []), ERASURES, MANIFEST, SIGNATURE,
    ]  # fmt: skip


def bundled(entries: Iterable[bytes]) -> bytes:
    """Entries as tlog-tiles bundles them: the length as u16, then the entry."""
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def matches(wanted: Filter, said: Said) -> bool:
    """Whether an event is asked for, apart from whose it is.

    Of purposes, channels and statuses a single record must fulfil all. One that names no channel, or all purposes, is
    about each.
    """
    if wanted.actors and said.credential not in wanted.actors:
        return False
    if wanted.kinds and said.kind not in wanted.kinds:
        return False
    if (wanted.from_ and said.recorded_at < wanted.from_) or (wanted.until and said.recorded_at >= wanted.until):
        return False
    if not (wanted.purposes or wanted.channels or wanted.statuses):
        return True
    return any(
        (not wanted.purposes or record.purpose in wanted.purposes or record.purpose == "*")
        and (not wanted.channels or record.channel in wanted.channels or record.channel is None)
        and (not wanted.statuses or record.status in wanted.statuses)
        for record in said.records
    )


# -- payloads --------------------------------------------------------------------------------------------------------


class SaidRecord(msgspec.Struct, frozen=True, gc=False):
    """One record of a consent."""

    purpose: str
    status: str
    channel: str | None = None


class SaidNotice(msgspec.Struct, frozen=True, gc=False):
    """What was shown."""

    id: str
    version: int
    language: str


class Named(msgspec.Struct, frozen=True, gc=False):
    """An identifier."""

    type: str
    id: str


class Said(msgspec.Struct, frozen=True):
    """What a payload says, as far as an export shows or checks it."""

    event: str
    recorded_at: Moment
    subject: Named
    credential: str
    grade: str = ""
    records: tuple[SaidRecord, ...] = ()
    notice: SaidNotice | None = None
    method: str | None = None
    change: str | None = None
    """Of a link."""
    read: str | None = None
    """What an officer looked at."""
    link: UUID | None = None
    side: str | None = None
    link_kind: str | None = msgspec.field(default=None, name="kind")

    @property
    def kind(self) -> str:
        """`consent`, `link` or `read`."""
        if self.read is not None:
            return "read"
        return "consent" if self.change is None else "link"

    @property
    def statuses(self) -> list[str]:
        """What was said, or what happened."""
        one = self.change or self.read
        return [record.status for record in self.records] if one is None else [one]


SAID = msgspec.json.Decoder(Said)


# -- the range -------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """What stands left and right of a range of leaves: with it the range gives the root, and nothing else does."""

    first: int
    end: int
    size: int
    left: tuple[bytes, ...]
    """Over the leaves before `first`, as `tree.covering` has them."""
    right: tuple[bytes, ...]
    """Over those from `end` up to `size`."""

    @property
    def places(self) -> list[tuple[int, int]]:
        """Level and place of each node."""
        return [*tree.covering(0, self.first), *tree.covering(self.end, self.size)]

    def __str__(self) -> str:
        nodes = [f"{level} {base64_text(node)}" for (level, _), node in
                 zip(self.places, (*self.left, *self.right), strict=True)]  # fmt: skip
        return "\n".join([FORMAT, f"range {self.first} {self.end} {self.size}", *nodes, ""])

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read what `str` gave.

        Raises:
            NoteError: it is none.
        """
        match = _SPAN.fullmatch(text)
        if match is None:
            raise NoteError("the range proof cannot be read")
        first, end, size = (int(match[n]) for n in (1, 2, 3))
        if not 0 <= first <= end <= size:
            raise NoteError("the range of the range proof is none")
        span = cls(first, end, size, (), ())
        lines = [line.split(" ") for line in match[4].split("\n")[:-1]]
        nodes = [unbase64(node) or b"" for _, node in lines]
        levels = [int(level) for level, _ in lines]
        if levels != [level for level, _ in span.places] or any(len(node) != tree.HASH for node in nodes):
            raise NoteError("the range proof has other nodes than its range needs")
        cut = first.bit_count()
        return span._replace(left=tuple(nodes[:cut]), right=tuple(nodes[cut:]))

    def root(self, frontier: tree.Frontier) -> bytes:
        """The root of the whole tree, from what the range made of the left side."""
        for (level, _), node in zip(tree.covering(self.end, self.size), self.right, strict=True):
            frontier = frontier.joined(level, node)
        return frontier.root


_NUMBER = r"(0|[1-9][0-9]{0,17})"
_SPAN = re.compile(
    re.escape(FORMAT) + rf"\nrange {_NUMBER} {_NUMBER} {_NUMBER}\n((?:[0-9]{{1,2}} [A-Za-z0-9+/]{{43}}=\n)*)", re.ASCII
)


# -- the manifest ----------------------------------------------------------------------------------------------------


def signed_text(origin: str, manifest: bytes) -> str:
    """What is signed: which manifest of which log. No checkpoint reads like this."""
    return f"{FORMAT}\n{origin}\n{hashlib.sha256(manifest).hexdigest()}\n"


def sealed(writer: Writer, manifest: Manifest, signers: Sequence[Signer]) -> bytes:
    """The end of an export: the manifest, with the members written so far, its signature, the directory."""
    raw = ENCODER.encode(msgspec.structs.replace(manifest, members=tuple(writer.members)))
    note = sign(signed_text(manifest.origin, raw), signers)
    return writer.add(MANIFEST, raw) + writer.add(SIGNATURE, note.encode()) + writer.finish()


def readme(origin: str, created_at: datetime, kind: Format) -> bytes:
    """The text for whoever opens the archive."""
    return _README.format(
        origin=origin, at=created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"), events=events(kind)
    ).encode()


_README = """\
EXPORT of the consent ledger {origin}, ordered on {at}

{events} holds the events, each with what opens its entry in the ledger; entries/ all entries of the range; checkpoint
the signed state of the ledger; range-proof what shows that the entries are exactly those of that state;
erasures.ndjson what was erased, and that the ledger says so; manifest.json the digests of all of it, signed in
manifest.sig.

To check it, without us and without a network:

    consent verify THIS-FILE --key KEY

KEY must come from the controller's publication, not from this file. The key in trust-policy is only as good as whoever
gave you the file: compare the two. How to check without our program stands in the format description
(consent_service/ledger/README.md).

The file holds personal data. Keep it as safe as what it was made from.


EXPORT des Einwilligungsregisters {origin}, angefordert am {at}

{events} enthält die Ereignisse, jedes mit dem, was seinen Eintrag im Register öffnet; entries/ alle Einträge des
Bereichs; checkpoint den signierten Stand des Registers; range-proof zeigt, dass es genau die Einträge dieses Standes
sind; erasures.ndjson, was gelöscht wurde und dass das Register das festhält; manifest.json die Prüfsummen von allem,
signiert in manifest.sig.

So wird geprüft, ohne uns und ohne Netz:

    consent verify DIESE-DATEI --key SCHLÜSSEL

Der SCHLÜSSEL muss aus der Veröffentlichung des Verantwortlichen stammen, nicht aus dieser Datei. Der Schlüssel in
trust-policy taugt so viel wie der, von dem Sie die Datei haben: vergleichen Sie beide. Wie man ohne unser Programm
prüft, steht in der Beschreibung des Formats (consent_service/ledger/README.md).

Die Datei enthält personenbezogene Daten. Bewahren Sie sie so sicher auf wie das, woraus sie entstand.
"""
