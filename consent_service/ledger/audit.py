"""What an export proves to whoever trusts the log's key: `verify` reads it once, with bounded memory, and never raises.

A Merkle root that was signed says which entries the log has; the range proof, that these are the entries of the range;
each event's salt and payload, that it is what its entry commits to. What is personal and neither opened nor erased by
an erasure that the log has an entry about, is missing. Problems are counted all, and the first of each kind told.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import lt
from typing import Any, BinaryIO, TypeVar

import msgspec

from consent_service.ledger import export, lines, parquet, tree
from consent_service.ledger.container import Code, Damaged, Reader, stamp
from consent_service.ledger.entry import PERSONAL, ErasureMade, erased_digest, read_system, tag
from consent_service.ledger.export import ERASURES, Erased, Indexes, Line, Manifest, Said, Span, Strand
from consent_service.ledger.note import MAX_NOTE, Checkpoint, NoteError, is_name, read
from consent_service.ledger.proof import Proof
from consent_service.ledger.trust import MAX_TRUST, Trust
from consent_service.ledger.verdict import ErasedNote, Findings, Verdict

T = TypeVar("T")
_SMALL = 1_048_576
_STRANDS_JSON = 67_108_864
_UNREAD = 1_000
"""Lines that cannot be read, until the rest is given up."""
_OF_A_MEMBER = 512
"""Bytes of the manifest."""
_PERSONAL, _SEEN, _ERASED, _CLAIMED = 1, 2, 4, 8
_ENTRY_LENGTH = 3
"""The least that an entry takes in a bundle."""

_NAME = re.compile(
    r"README\.txt|checkpoint|timestamp\.tsr|trust-policy|entries/[0-9]{8}|range-proof|events\.(ndjson|csv|parquet)"
    r"|strands\.json|erasures\.ndjson|manifest\.(json|sig)"
)
_LINE = msgspec.json.Decoder(Line)
_ERASURE = msgspec.json.Decoder(Erased | Indexes)


class _Named(msgspec.Struct):
    """Of a manifest the ledger's name."""

    origin: str


_READ_MANIFEST = msgspec.json.Decoder(Manifest)
_READ_ORIGIN = msgspec.json.Decoder(_Named)
_STRANDS = msgspec.json.Decoder(list[Strand])


def verify(file: BinaryIO, trust: Trust | None) -> Verdict:
    """What is wrong with an export, if anything. `trust` None: it is checked against the key that it brings."""
    findings = Findings()
    audit = _Audit(findings, trust)
    try:
        audit.run(Reader(file))
    except Damaged as error:
        findings.tell(error.code, str(error))
    except NoteError as error:
        findings.tell("signature", str(error))
    return findings.verdict(audit.manifest, audit.keys, trusted=trust is not None)


class _Audit:
    """One export being read."""

    def __init__(self, findings: Findings, trust: Trust | None) -> None:
        self.tell, self.note = findings.tell, findings.note
        self.findings = findings
        self.given = trust
        self.trust: Trust
        """What was given, or else what the file brings."""
        self.manifest: Manifest | None = None
        self.keys: list[str] = []

    # -- what is signed ----------------------------------------------------------------------------------------------

    def run(self, box: Reader) -> None:
        """Read everything."""
        self.box = box
        for name in box.entries:
            if _NAME.fullmatch(name) is None:
                self.tell("added", f"{name!a} does not belong to an export")
        for name in (export.TRUST, export.MANIFEST, export.SIGNATURE, export.CHECKPOINT, export.RANGE):
            if name not in box.entries:
                raise Damaged("truncated", f"{name} is not there")
        carried = self._trust()
        self.trust = self.given or carried
        manifest = self.manifest = self._read_manifest()
        self._compare_names(manifest)
        self._demand_range(manifest)
        self.checkpoint = self._checkpoint(manifest)
        self.last = "", self.checkpoint
        """The note that was verified last, as most erasures have the same; and what it says."""
        self._walk(manifest, self._span(manifest))
        self._compare_digests(manifest)
        self._account(manifest)

    def _trust(self) -> Trust:
        try:
            return Trust.parse(self._text(export.TRUST, MAX_TRUST))
        except NoteError as error:
            raise Damaged("altered", f"{export.TRUST}: {error}") from None

    def _text(self, name: str, limit: int) -> str:
        try:
            return self.box.whole(name, limit).decode()
        except UnicodeDecodeError:
            raise Damaged("altered", f"{name} is no UTF-8") from None

    def _read_manifest(self) -> Manifest:
        """The manifest, of which nothing is believed or given memory before its signature holds."""
        raw = self.box.whole(export.MANIFEST, _SMALL + _OF_A_MEMBER * len(self.box.entries))
        self._demand_signed(raw)
        try:
            manifest = _READ_MANIFEST.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Damaged("altered", "the manifest cannot be read") from None
        if export.ENCODER.encode(manifest) != raw:
            raise Damaged("altered", "the manifest is not as it is written")
        sound = 0 <= manifest.first <= manifest.end <= manifest.size
        room = sum(entry.packed for name, entry in self.box.entries.items() if name.startswith("entries/"))
        if manifest.format != export.FORMAT or not sound or not is_name(manifest.origin):
            raise Damaged("altered", "the manifest is of another format, or its numbers cannot be")
        if (manifest.end - manifest.first) * _ENTRY_LENGTH > room:
            raise Damaged("truncated", "there are fewer entries than the manifest says")
        if not _is_at(manifest, self.box.stamp):
            self.tell("altered", "the members have another time than the manifest")
        return manifest

    def _demand_signed(self, raw: bytes) -> None:
        """Go on with what the log signed alone: anybody's numbers could ask for any amount of memory."""
        try:
            origin = _READ_ORIGIN.decode(raw).origin
            note = read(self._text(export.SIGNATURE, MAX_NOTE), self.trust.keys(origin))
        except NoteError as error:
            raise NoteError(f"the manifest: {error}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Damaged("altered", "the manifest cannot be read") from None
        self.keys = [str(signed.by) for signed in note.signatures]
        if note.text != export.signed_text(origin, raw):
            raise Damaged("altered", "the manifest is not the one that was signed")

    def _compare_names(self, manifest: Manifest) -> None:
        """The members are those of the format, in their order, and those of the manifest."""
        have = list(self.box.entries)
        want = export.names(
            manifest.first, manifest.end, manifest.events,
            timestamp=export.TIMESTAMP in have, subject=manifest.filter.subject is not None,
        )  # fmt: skip
        for name in sorted(set(want) - set(have)):
            self.tell("truncated", f"{name} is not there")
        for name in sorted(set(have) - set(want)):
            if _NAME.fullmatch(name) is not None:
                self.tell("added", f"{name} does not belong to this export")
        if sorted(have) == sorted(want) and have != want:
            self.tell("reordered", "the members stand in another order")
        for name, entry in self.box.entries.items():
            if entry.kind != export.packing(name):
                self.tell("altered", f"{name!a} is packed in another way")
        listed = [member.name for member in manifest.members]
        if listed != want[:-2]:
            self.tell("altered", "the manifest lists other members than an export has")

    def _demand_range(self, manifest: Manifest) -> None:
        """Nothing but a time limits the range, and nothing that of one person, shown by all entries."""
        wanted, whole = manifest.filter, manifest.filter.subject is not None
        if manifest.first > 0 and (whole or wanted.from_ is None):
            self.tell("suppressed", "the range begins late, though the filter names no such time")
        if manifest.end < manifest.size and (whole or wanted.until is None):
            self.tell("suppressed", "the range ends early, though the filter names no such time")

    def _checkpoint(self, manifest: Manifest) -> Checkpoint:
        note = read(self._text(export.CHECKPOINT, MAX_NOTE), self.trust.known)
        checkpoint = Checkpoint.parse(note.text)
        self.trust.demand(checkpoint, note)
        if (checkpoint.size, checkpoint.root.hex()) != (manifest.size, manifest.root):
            self.tell("replayed", f"the checkpoint is that of {checkpoint.size} entries, not the manifest's")
        if checkpoint.origin != manifest.origin:
            self.tell("replayed", "the checkpoint is that of another log")
        return checkpoint

    def _span(self, manifest: Manifest) -> Span:
        try:
            span = Span.parse(self._text(export.RANGE, _SMALL))
        except NoteError as error:
            raise Damaged("altered", str(error)) from None
        if (span.first, span.end) != (manifest.first, manifest.end):
            raise Damaged("altered", "the range proof is about another range than the manifest")
        if span.size != self.checkpoint.size:
            raise Damaged("replayed", "the range proof is about another state of the ledger than the checkpoint")
        return span

    # -- entries and events ------------------------------------------------------------------------------------------

    def _walk(self, manifest: Manifest, span: Span) -> None:
        """Entries and events side by side, both in the order of the ledger."""
        self.marks = bytearray(manifest.end - manifest.first)
        self.readable = True
        self._read_erasures(manifest)
        tags = self.tags = self._expected_tags(manifest)
        self.found: dict[bytes, int] = {}
        self.links: dict[Any, dict[int, Said]] = {}
        frontier, index = tree.Frontier(span.first, span.left), span.first
        opened = self._lines(manifest)
        line = next(opened, None)
        try:
            for batch in self._entries(manifest):
                leaves = [hashlib.sha256(b"\0" + entry).digest() for entry in batch]
                frontier = frontier.grown(leaves).frontier if leaves else frontier
                for entry in batch[: manifest.end - index]:
                    if entry[0] == PERSONAL[0]:
                        self.marks[index - span.first] |= _PERSONAL
                        if tags and entry[1:17] in tags:
                            self._meet(entry[1:17], index)
                    if line is not None and line.index == index:
                        if entry != PERSONAL + line.tag + hmac.digest(line.salt, line.payload, "sha256"):
                            self.tell("altered", f"the event of entry {index} is not what the entry says", index)
                        line = next(opened, None)
                    index += 1
                if frontier.size > manifest.end:
                    break
        except Damaged as error:
            self.readable = False
            self.tell(error.code, str(error))
        self._end_walk(frontier, manifest, span)
        for _ in opened:
            pass

    def _end_walk(self, frontier: tree.Frontier, manifest: Manifest, span: Span) -> None:
        if frontier.size < manifest.end:
            self.readable = False
            self.tell("truncated", f"{manifest.end - frontier.size} entries of the range are not there")
        elif frontier.size > manifest.end:
            self.readable = False
            self.tell("added", "there are more entries than the range has")
        elif span.root(frontier) != self.checkpoint.root:
            self.readable = False
            self.tell("altered", "the entries and the range proof do not give the tree of the checkpoint")

    def _entries(self, manifest: Manifest) -> Iterator[list[bytes]]:
        for number in range(-(-(manifest.end - manifest.first) // export.BUNDLE)):
            name = export.bundle(number)
            if name in self.box.entries:
                yield from lines.entries(self.box.pieces(name))

    def _lines(self, manifest: Manifest) -> Iterator[Line]:
        """The events that stand in their place; the others are told."""
        first, end, is_chosen = manifest.first, manifest.end, manifest.filter != export.Filter()
        last, marks = first - 1, self.marks
        try:
            for batch in _at_most(end - first + 1, self._read_events(manifest)):
                for line in batch:
                    if isinstance(line, str):
                        self.tell("altered", f"{export.events(manifest.events)}: {line}")
                    elif last < line.index < end:
                        if is_chosen:
                            self._demand_wanted(line, manifest)
                        last = line.index
                        marks[last - first] |= _SEEN
                        yield line
                    else:
                        self._tell_misplaced(line, manifest)
        except Damaged as error:
            self.readable = False
            self.tell(error.code, str(error))

    def _tell_misplaced(self, line: Line, manifest: Manifest) -> None:
        if not manifest.first <= line.index < manifest.end:
            self.tell("added", f"the event of entry {line.index} is not of the range", line.index)
        elif self.marks[line.index - manifest.first] & _SEEN:
            self.tell("duplicated", f"the event of entry {line.index} stands there twice", line.index)
        else:
            self.marks[line.index - manifest.first] |= _SEEN
            self.tell("reordered", f"the event of entry {line.index} stands in another place", line.index)

    def _read_events(self, manifest: Manifest) -> Iterator[list[Line | str]]:
        name = export.events(manifest.events)
        if name not in self.box.entries:
            return
        match manifest.events:
            case "ndjson":
                yield from lines.ndjson(self.box.pieces(name), _LINE)
            case "csv":
                yield from lines.table(self.box.pieces(name))
            case "parquet":
                for _ in self.box.pieces(name):  # its digest first: the library reads only what was signed
                    pass
                if self.box.digests[name] in manifest.members and not self.findings.problems:
                    yield from parquet.read(self.box, name)
                else:
                    self.readable = False

    def _demand_wanted(self, line: Line, manifest: Manifest) -> None:
        try:
            said = export.SAID.decode(line.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.tell("altered", f"the event of entry {line.index} cannot be read", line.index)
            return
        if not export.matches(manifest.filter, said):
            self.tell("added", f"the event of entry {line.index} was not asked for", line.index)
        if manifest.filter.subject is not None:
            if line.tag not in self.tags:
                self.tell("added", f"the event of entry {line.index} is not the subject's", line.index)
            if said.link is not None and said.link_kind == "identity":
                self.links.setdefault(said.link, {})[line.index] = said

    # -- the subject -------------------------------------------------------------------------------------------------

    def _expected_tags(self, manifest: Manifest) -> dict[bytes, tuple[int, int]]:
        """For a subject: which entries are its own, by tag; and the tag after the last, which must be nowhere."""
        if manifest.filter.subject is None or export.STRANDS not in self.box.entries:
            return {}
        try:
            self.strands = _STRANDS.decode(self.box.whole(export.STRANDS, _STRANDS_JSON))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Damaged("altered", f"{export.STRANDS} cannot be read") from None
        if sum(strand.events for strand in self.strands) > manifest.end - manifest.first:
            raise Damaged("altered", "the strands have more events than the ledger")
        return {
            tag(strand.tags, place): (number, place)
            for number, strand in enumerate(self.strands)
            for place in range(1, strand.events + 2)
        }

    def _meet(self, found: bytes, index: int) -> None:
        if found in self.found:
            self.tell("duplicated", f"entry {index} has the tag of entry {self.found[found]}", index)
        self.found[found] = index

    def _account_subject(self, manifest: Manifest) -> None:
        """Each strand is there from its first event to its last, and nothing follows."""
        exact = manifest.filter.is_exact
        for mark, (number, place) in self.tags.items():
            strand, index = self.strands[number], self.found.get(mark)
            if place > strand.events:
                if index is not None:
                    self.tell(self._held_back(manifest), f"entry {index} goes on with a strand of the subject", index)
            elif index is None:
                self.tell("altered", f"event {place} of a strand of the subject is nowhere in the ledger")
            elif exact and not self.marks[index - manifest.first] & (_SEEN | _ERASED):
                self.tell(self._held_back(manifest, index), f"the event of entry {index} is not there", index)
        if exact:
            self._account_links(manifest)

    def _account_links(self, manifest: Manifest) -> None:
        """What was linked to the account is there too: the two sides of a change are neighbours in the ledger."""
        accounts = {mark for mark, (number, _) in self.tags.items() if self.strands[number].account}
        places = {self.found[mark] for mark in accounts if mark in self.found}
        for changes in self.links.values():
            if any(said.change == "annulled" for said in changes.values()):
                continue
            for index, said in changes.items():
                other = index - 1
                if said.side != "anchor" or index not in places or other in changes:
                    continue
                if other < manifest.first or not self.marks[other - manifest.first] & _ERASED:
                    self.tell(
                        self._held_back(manifest, other), f"the other side of the link in entry {index} is not there",
                        other,
                    )  # fmt: skip

    # -- erasures ----------------------------------------------------------------------------------------------------

    def _read_erasures(self, manifest: Manifest) -> None:
        if ERASURES not in self.box.entries:
            return
        header: Erased | None = None
        indexes, places = array("Q"), array("Q")
        try:
            for line in _readable(lines.ndjson(self.box.pieces(ERASURES), _ERASURE)):
                if isinstance(line, str) or (header is None and not isinstance(line, Erased)):
                    self.tell("altered", f"{ERASURES}: a line cannot be read")
                elif isinstance(line, Erased):
                    self._close_erasure(header, indexes, manifest)
                    self._demand_later(line, places)
                    header, indexes = line, array("Q")
                elif min(line) < 0 or max(line) >= 1 << 63:
                    self.tell("altered", f"{ERASURES}: an index cannot be")
                elif header is not None and len(indexes) + len(line) > header.events:
                    self.tell("altered", f"{ERASURES}: more is listed than an erasure says")
                else:
                    indexes.extend(line)
        except Damaged as error:
            self.tell(error.code, str(error))
        self._close_erasure(header, indexes, manifest)

    def _demand_later(self, header: Erased, places: array[int]) -> None:
        """Each erasure stands behind those whose entries, at these places, came before its own."""
        if not places or header.index > places[-1]:
            places.append(header.index)
        elif places[bisect_left(places, header.index)] == header.index:
            self.tell("duplicated", f"the erasure {header.erasure} stands there twice")
        else:
            self.tell("reordered", f"the erasure {header.erasure} stands in another place")

    def _close_erasure(self, header: Erased | None, indexes: array[int], manifest: Manifest) -> None:
        """Whether the ledger has an entry about an erasure of just these events."""
        if header is None:
            return
        fault, made = self._fault(header, indexes, manifest)
        if fault is not None:
            self.tell("suppressed", f"the erasure {header.erasure} is not in the ledger: {fault}")
        for index in indexes:
            if manifest.first <= index < manifest.end:
                self.marks[index - manifest.first] |= _ERASED if fault is None else _CLAIMED
        if made is not None and fault is None:
            at = made.at.isoformat(timespec="seconds")
            self.note(ErasedNote(str(header.erasure), made.reason, at, made.events))

    def _fault(self, header: Erased, indexes: array[int], manifest: Manifest) -> tuple[str | None, ErasureMade | None]:
        try:
            made = read_system(header.entry)
            proof = Proof.parse(header.proof)
            if proof.note != self.last[0]:
                self.last = proof.note, self._signed_by_log(proof.note, manifest)
        except (ValueError, RecursionError) as error:
            return (str(error) if isinstance(error, NoteError) else "its entry cannot be read"), None
        if not isinstance(made, ErasureMade):
            return "its entry is about something else", None
        checkpoint = self.last[1]
        ours, leaf = self.checkpoint, tree.leaf_hash(header.entry)
        said = (made.erasure, made.reason, made.events, made.sha256)
        tells = (header.erasure, header.reason, len(indexes), erased_digest(header.salt, indexes))
        faults = {
            "its entry says something else": said == tells,
            "it is not about these events": (header.events, header.index) == (len(indexes), proof.index),
            "it names what came after it, or in another order": all(map(lt, indexes, [*indexes[1:], header.index])),
            "its entry is in another log": checkpoint.origin == manifest.origin,
            "its entry is not proved": tree.includes(checkpoint.root, checkpoint.size, proof.index, leaf, proof.hashes),
            "its tree did not grow from that of the checkpoint": tree.grew(
                ours.size, ours.root, checkpoint.size, checkpoint.root, header.consistency or []
            ),
        }
        return next((fault for fault, holds in faults.items() if not holds), None), made

    def _signed_by_log(self, text: str, manifest: Manifest) -> Checkpoint:
        """A checkpoint that grew from that of the export. Witnesses need not have seen this one too."""
        return Checkpoint.parse(read(text, self.trust.keys(manifest.origin)).text)

    # -- accounts ----------------------------------------------------------------------------------------------------

    def _compare_digests(self, manifest: Manifest) -> None:
        listed = {member.name: member for member in manifest.members}
        self.sound: set[str] = set()
        for name in self.box.entries:
            if name in (export.MANIFEST, export.SIGNATURE) or name not in listed:
                continue
            try:
                if name not in self.box.digests:
                    for _ in self.box.pieces(name):
                        pass
            except Damaged as error:
                self.tell(error.code, str(error))
            else:
                if self.box.digests[name] == listed[name]:
                    self.sound.add(name)
                else:
                    self.tell("altered", f"{name} is not as the manifest says")

    def _held_back(self, manifest: Manifest, index: int | None = None) -> Code:
        """Whether what is not there was left out by whoever signed, or was taken away later."""
        if index is not None and self.marks[index - manifest.first] & _CLAIMED:
            return "suppressed"
        return "suppressed" if {export.events(manifest.events), ERASURES} <= self.sound else "missing"

    def _account(self, manifest: Manifest) -> None:
        """Every personal entry was opened, or erased, or not asked for."""
        if not self.readable:
            return
        if manifest.filter.subject is not None:
            self._account_subject(manifest)
        elif manifest.filter.is_exact:
            for place, mark in enumerate(self.marks):
                if mark & (_PERSONAL | _SEEN | _ERASED) == _PERSONAL:
                    index = manifest.first + place
                    self.tell(self._held_back(manifest, index), f"the event of entry {index} is not there", index)
        found = self._found(manifest)
        if found != manifest.counts:
            code: Code = "missing" if found.opened < manifest.counts.opened else "altered"
            self.tell(code, f"the manifest counts otherwise: {_counted(found, manifest.counts)}")

    def _found(self, manifest: Manifest) -> export.Counts:
        kinds = Counter(self.marks)
        personal = sum(count for mark, count in kinds.items() if mark & _PERSONAL)
        opened = sum(count for mark, count in kinds.items() if mark & _SEEN)
        erased = sum(
            count for mark, count in kinds.items() if mark & (_PERSONAL | _SEEN | _ERASED) == _PERSONAL | _ERASED
        )
        entries = manifest.end - manifest.first
        return export.Counts(entries, personal, entries - personal, opened, erased, personal - opened - erased)


def _counted(found: export.Counts, said: export.Counts) -> str:
    pairs = zip(found.__struct_fields__, msgspec.structs.astuple(found), msgspec.structs.astuple(said), strict=True)
    return ", ".join(f"{name} {there} instead of {wanted}" for name, there, wanted in pairs if there != wanted)


def _is_at(manifest: Manifest, stamped: int) -> bool:
    try:
        return stamp(manifest.created_at) == stamped
    except OverflowError:  # a time beyond all years
        return False


def _at_most(count: int, batches: Iterable[list[T]]) -> Iterator[list[T]]:
    """Batches of so many lines, all in all: there cannot be more events than entries."""
    for batch in batches:
        count -= len(batch)
        if count < 0:
            raise Damaged("altered", "there are more lines than entries")
        yield batch


def _readable(batches: Iterable[list[T | str]]) -> Iterator[T | str]:
    """The lines, until too many could not be read."""
    unread = 0
    for batch in batches:
        unread += sum(isinstance(line, str) for line in batch)
        if unread > _UNREAD:
            raise Damaged("altered", f"more than {_UNREAD} lines cannot be read")
        yield from batch
