"""Whatever is done to an export, `audit` tells, and by the right name."""

from __future__ import annotations

import csv
import io
import random
import struct
import tracemalloc
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from conftest import Tenant
from test_exports import Lively, erase, events, export, furnish, known, owner

from consent_service import db
from consent_service.ledger import Log, audit, columns, container, entry, read_head, tree
from consent_service.ledger import export as form
from consent_service.ledger.note import WITNESS, Checkpoint, Signer, base64_text, sign
from consent_service.ledger.proof import Proof
from consent_service.ledger.trust import Trust, trusting
from consent_service.ledger.verdict import as_text
from consent_service.policies import Policy

__all__ = ["owner"]

Parts = dict[str, bytes]
STREAMED = (form.ERASURES, "events.ndjson", "events.csv")


class Source(NamedTuple):
    """A genuine file, and what its maker has."""

    file: bytes
    parts: Parts
    manifest: form.Manifest
    trust: Trust
    log: Log
    roots: list[bytes]
    """Of the trees with 0, 1, 2 … entries."""

    @property
    def events(self) -> str:
        return form.events(self.manifest.events)


def codes(file: bytes, trust: Trust) -> set[str]:
    verdict = audit.verify(io.BytesIO(file), trust)
    assert verdict.genuine == (not verdict.counts)
    assert as_text(verdict)
    assert msgspec.json.encode(verdict)
    return set(verdict.counts)


def taken_apart(file: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(file)) as box:
        return {name: box.read(name) for name in box.namelist()}


def put_together(parts: list[tuple[str, bytes]], source: Source) -> tuple[bytes, list[container.Member]]:
    writer, out = container.Writer(source.manifest.created_at), b""
    for name, data in parts:
        if name in STREAMED:
            stream = writer.stream(name, form.packing(name))
            out += stream.write(data) + stream.close()
        else:
            out += writer.add(name, data)
    return out + writer.finish(), writer.members


def unsigned(source: Source, parts: Parts) -> bytes:
    """As somebody leaves it who has no key."""
    return put_together(list(parts.items()), source)[0]


def signed(source: Source, parts: Parts, signers: Any = None, **changes: Any) -> bytes:
    """As it is signed anew, with digests and counts that fit."""
    rest = [(name, data) for name, data in parts.items() if name not in (form.MANIFEST, form.SIGNATURE)]
    _, members = put_together(rest, source)
    manifest = msgspec.structs.replace(source.manifest, members=tuple(members), **changes)
    raw = form.ENCODER.encode(manifest)
    note = sign(form.signed_text(manifest.origin, raw), signers or source.log.signers)
    return put_together([*rest, (form.MANIFEST, raw), (form.SIGNATURE, note.encode())], source)[0]


async def source_of(tenant: Tenant, **wanted: Any) -> Source:
    _, file = await export(tenant, **wanted)
    parts = taken_apart(file)
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        log = await ledger.log(connection, await read_head(connection, ledger.log_id))
        rows = await connection.fetch("SELECT entry FROM ledger_entry ORDER BY idx")
    frontier, roots = tree.Frontier(), [tree.EMPTY]
    for row in rows:
        frontier = frontier.grown([tree.leaf_hash(row["entry"])]).frontier
        roots.append(frontier.root)
    manifest = msgspec.json.decode(parts[form.MANIFEST], type=form.Manifest)
    source = Source(file, parts, manifest, await known(tenant), log, roots)
    assert unsigned(source, parts) == file, "what is taken apart is put together again"
    assert signed(source, parts) == file
    assert codes(file, source.trust) == set()
    return source


async def ledger_with_erasures(tenant: Tenant, owner: db.Pool) -> Lively:
    lively = await furnish(tenant)
    rows = await events(tenant)
    await erase(tenant, owner, [rows[1]["idx"], rows[-2]["idx"]])
    await erase(tenant, owner, [rows[-4]["idx"]], "retention")
    return lively


@pytest.fixture(scope="session")
async def sources(make_tenant: Any, demo_policy: Policy, owner: db.Pool) -> dict[str, Source]:
    lively = await ledger_with_erasures(await make_tenant.make(demo_policy), owner)
    moments = sorted({row["recorded_at"] for row in await events(lively.tenant)})
    return {
        "everything": await source_of(lively.tenant),
        "table": await source_of(lively.tenant, format="csv"),
        "time": await source_of(lively.tenant, **{"from": moments[2].isoformat()}),
        "subject": await source_of(lively.tenant, subject=lively.ada),
    }


# -- the mutations: each gives a file, and the codes of which at least one must be told -------------------------------

Mutated = tuple[bytes, set[str]]
Chance = random.Random


def lines_of(source: Source, name: str) -> list[bytes]:
    return source.parts[name].splitlines(keepends=True)


def event_lines(source: Source) -> tuple[list[bytes], list[bytes]]:
    """The head of the table, where there is one, and the lines."""
    lines = source.parts[source.events].split(b"\n")
    assert lines.pop() == b""
    cut = 1 if source.manifest.events == "csv" else 0
    return [line + b"\n" for line in lines[:cut]], [line + b"\n" for line in lines[cut:]]


def with_events(source: Source, lines: list[bytes]) -> Parts:
    head, _ = event_lines(source)
    return {**source.parts, source.events: b"".join([*head, *lines])}


def flip(source: Source, chance: Chance) -> Mutated:
    at, bit = chance.randrange(len(source.file)), 1 << chance.randrange(8)
    mutated = bytearray(source.file)
    mutated[at] ^= bit
    for name, one in container.Reader(io.BytesIO(source.file)).entries.items():
        if one.data <= at < one.data + one.packed:
            if name in (form.MANIFEST, form.SIGNATURE, form.CHECKPOINT):
                return bytes(mutated), {"altered", "signature"}
            return bytes(mutated), {"altered"}
    return bytes(mutated), {"altered", "added", "truncated", "duplicated"}


def truncate(source: Source, chance: Chance) -> Mutated:
    return source.file[: chance.randrange(len(source.file))], {"truncated"}


def truncate_a_little(source: Source, chance: Chance) -> Mutated:
    return source.file[: -chance.randrange(1, 40)], {"truncated"}


def append(source: Source, chance: Chance) -> Mutated:
    return source.file + chance.randbytes(chance.randrange(1, 40)), {"added"}


def prepend(source: Source, chance: Chance) -> Mutated:
    return chance.randbytes(chance.randrange(1, 40)) + source.file, {"altered", "truncated", "added"}


def drop_member(source: Source, chance: Chance) -> Mutated:
    name = chance.choice(list(source.parts))
    parts = {**source.parts}
    del parts[name]
    return unsigned(source, parts), {"truncated"}


def double_member(source: Source, chance: Chance) -> Mutated:
    name = chance.choice(list(source.parts))
    return put_together([*source.parts.items(), (name, source.parts[name])], source)[0], {"duplicated"}


def add_member(source: Source, chance: Chance) -> Mutated:
    name = chance.choice(["../../etc/passwd", "/etc/passwd", "entries/99999999", "events.txt", "C:\\x", "entries/"])
    return put_together([*source.parts.items(), (name, b"x")], source)[0], {"added"}


def repack(source: Source, chance: Chance) -> Mutated:
    """The same bytes within, packed in another way."""
    name = chance.choice([name for name in source.parts if name not in STREAMED])
    writer, out = container.Writer(source.manifest.created_at), b""
    for other, data in source.parts.items():
        if other in STREAMED or other == name:
            stream = writer.stream(other, "deflated" if other in STREAMED else "stored")
            out += stream.write(data) + stream.close()
        else:
            out += writer.add(other, data)
    return out + writer.finish(), {"altered"}


def swap_members(source: Source, chance: Chance) -> Mutated:
    items = list(source.parts.items())
    one, other = chance.sample(range(len(items)), 2)
    items[one], items[other] = items[other], items[one]
    return put_together(items, source)[0], {"reordered"}


def drop_line(source: Source, chance: Chance) -> Mutated:
    _, lines = event_lines(source)
    del lines[chance.randrange(len(lines))]
    return unsigned(source, with_events(source, lines)), {"missing"}


def drop_line_and_sign(source: Source, chance: Chance) -> Mutated:
    """By whoever has the key, and makes the counts fit."""
    _, lines = event_lines(source)
    del lines[chance.randrange(len(lines))]
    counts = source.manifest.counts
    counts = msgspec.structs.replace(counts, opened=counts.opened - 1, other=counts.other + 1)
    return signed(source, with_events(source, lines), counts=counts), {"suppressed"}


def double_line(source: Source, chance: Chance) -> Mutated:
    _, lines = event_lines(source)
    at = chance.randrange(len(lines))
    lines.insert(chance.randrange(at, len(lines)) + 1, lines[at])
    return chance.choice([unsigned, signed])(source, with_events(source, lines)), {"duplicated"}


def swap_lines(source: Source, chance: Chance) -> Mutated:
    _, lines = event_lines(source)
    one, other = chance.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return chance.choice([unsigned, signed])(source, with_events(source, lines)), {"reordered"}


def foreign_line(source: Source, chance: Chance) -> Mutated:
    """An event that is in no ledger, at a place that the range does not have."""
    if source.manifest.events == "csv":
        return drop_line(source, chance)
    line = form.Line(source.manifest.end + chance.randrange(9), bytes(16), bytes(32), msgspec.Raw(b"{}"))
    _, lines = event_lines(source)
    lines.append(form.ENCODER.encode(line) + b"\n")
    return chance.choice([unsigned, signed])(source, with_events(source, lines)), {"added"}


def edit_payload(source: Source, chance: Chance) -> Mutated:
    """Another word in place of one that is there, with or without another salt."""
    _, lines = event_lines(source)
    at = chance.randrange(len(lines))
    before = lines[at]
    quote = b'""' if source.manifest.events == "csv" else b'"'
    swapped = {quote + b"service" + quote: quote + b"nobody1" + quote,
               quote + b"publishable" + quote: quote + b"somebodyels" + quote}  # fmt: skip
    for old, new in swapped.items():
        lines[at] = lines[at].replace(old, new)
    assert lines[at] != before
    return chance.choice([unsigned, signed])(source, with_events(source, lines)), {"altered"}


def edit_salt(source: Source, chance: Chance) -> Mutated:
    if source.manifest.events == "csv":
        return edit_payload(source, chance)
    _, lines = event_lines(source)
    at = chance.randrange(len(lines))
    line = msgspec.json.decode(lines[at], type=form.Line)
    changed = form.Line(line.index, line.tag, chance.randbytes(32), line.payload)
    lines[at] = form.ENCODER.encode(changed) + b"\n"
    return chance.choice([unsigned, signed])(source, with_events(source, lines)), {"altered"}


def swap_payloads(source: Source, chance: Chance) -> Mutated:
    if source.manifest.events == "csv":
        return swap_lines(source, chance)
    _, lines = event_lines(source)
    one, other = chance.sample(range(len(lines)), 2)
    mine, theirs = (msgspec.json.decode(lines[at], type=form.Line) for at in (one, other))
    for at, line, told in ((one, mine, theirs), (other, theirs, mine)):
        lines[at] = form.ENCODER.encode(form.Line(line.index, told.tag, told.salt, told.payload)) + b"\n"
    return chance.choice([unsigned, signed])(source, with_events(source, lines)), {"altered"}


def with_entries(source: Source, change: Callable[[list[bytes]], None]) -> Parts:
    raw, at, entries = source.parts[form.bundle(0)], 0, []
    while at < len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        entries.append(raw[at + 2 : end])
        at = end
    change(entries)
    return {**source.parts, form.bundle(0): form.bundled(entries)}


def drop_entry(source: Source, chance: Chance) -> Mutated:
    parts = with_entries(source, lambda entries: entries.__delitem__(chance.randrange(len(entries))))
    return chance.choice([unsigned, signed])(source, parts), {"truncated"}


def double_entry(source: Source, chance: Chance) -> Mutated:
    parts = with_entries(source, lambda entries: entries.append(chance.choice(entries)))
    return chance.choice([unsigned, signed])(source, parts), {"added"}


def swap_entries(source: Source, chance: Chance) -> Mutated:
    def swap(entries: list[bytes]) -> None:
        one, other = chance.sample(range(len(entries)), 2)
        entries[one], entries[other] = entries[other], entries[one]

    return chance.choice([unsigned, signed])(source, with_entries(source, swap)), {"altered"}


def edit_entry(source: Source, chance: Chance) -> Mutated:
    def edit(entries: list[bytes]) -> None:
        at = chance.randrange(len(entries))
        changed = bytearray(entries[at])
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        entries[at] = bytes(changed)

    return chance.choice([unsigned, signed])(source, with_entries(source, edit)), {"altered"}


def older_checkpoint(source: Source, chance: Chance) -> Mutated:
    size = chance.randrange(1, source.manifest.size)
    note = source.log.checkpoint(size, source.roots[size])
    parts = {**source.parts, form.CHECKPOINT: note.encode()}
    return chance.choice([unsigned, signed])(source, parts), {"replayed"}


def edit_range_proof(source: Source, chance: Chance) -> Mutated:
    span = form.Span.parse(source.parts[form.RANGE].decode())
    if not span.left:
        return edit_entry(source, chance)
    left = (*span.left[:-1], chance.randbytes(32))
    parts = {**source.parts, form.RANGE: str(span._replace(left=left)).encode()}
    return chance.choice([unsigned, signed])(source, parts), {"altered"}


def erasures_of(source: Source) -> list[list[bytes]]:
    """Each with its lines."""
    found: list[list[bytes]] = []
    for line in lines_of(source, form.ERASURES):
        if line.startswith(b"{"):
            found.append([])
        found[-1].append(line)
    return found


def with_erasures(source: Source, erasures: list[list[bytes]]) -> Parts:
    return {**source.parts, form.ERASURES: b"".join([line for one in erasures for line in one])}


def of_erasures(source: Source, honest: set[str]) -> set[str]:
    """Of a subject it cannot be told whether what an erasure took was the subject's: the digest tells."""
    return honest if source.manifest.filter.subject is None else honest | {"altered"}


def drop_erasure(source: Source, chance: Chance) -> Mutated:
    erasures = erasures_of(source)
    del erasures[chance.randrange(len(erasures))]
    return unsigned(source, with_erasures(source, erasures)), of_erasures(source, {"missing"})


def drop_erasure_and_sign(source: Source, chance: Chance) -> Mutated:
    erasures = erasures_of(source)
    gone = erasures.pop(chance.randrange(len(erasures)))
    count, counts = len(msgspec.json.decode(gone[1])), source.manifest.counts
    counts = msgspec.structs.replace(counts, erased=counts.erased - count, other=counts.other + count)
    if source.manifest.filter.subject is not None or source.manifest.first:
        return drop_erasure(source, chance)
    return signed(source, with_erasures(source, erasures), counts=counts), {"suppressed"}


def swap_erasures(source: Source, chance: Chance) -> Mutated:
    parts = with_erasures(source, erasures_of(source)[::-1])
    return chance.choice([unsigned, signed])(source, parts), {"reordered"}


def double_erasure(source: Source, chance: Chance) -> Mutated:
    erasures = erasures_of(source)
    erasures.append(chance.choice(erasures))
    return chance.choice([unsigned, signed])(source, with_erasures(source, erasures)), {"duplicated"}


def claim_erasure(source: Source, chance: Chance) -> Mutated:
    """An event is taken out, and an erasure claimed that the ledger does not have."""
    head, lines = event_lines(source)
    del head
    at = chance.randrange(len(lines))
    number = lines[at].split(b",")[0] if source.manifest.events == "csv" else None
    index = int(number) if number is not None else msgspec.json.decode(lines[at], type=form.Line).index
    del lines[at]
    salt, erasure = chance.randbytes(32), uuid.UUID(int=chance.getrandbits(128))
    made = entry.ErasureMade(
        at=source.manifest.created_at, erasure=erasure, reason="request", by="", held=0, events=1,
        sha256=entry.erased_digest(salt, [index]),
    )  # fmt: skip
    erasures = erasures_of(source)
    pattern = msgspec.json.decode(erasures[-1][0], type=form.Erased)
    claimed = form.Erased(
        erasure=erasure, reason="request", index=pattern.index + 1, events=1, salt=salt, entry=entry.system(made),
        proof=pattern.proof,
    )  # fmt: skip
    erasures.append([form.ENCODER.encode(claimed) + b"\n", b"[%d]\n" % index])
    parts = {**with_events(source, lines), form.ERASURES: b"".join([line for one in erasures for line in one])}
    return chance.choice([unsigned, signed])(source, parts), {"suppressed"}


def claim_more(source: Source, chance: Chance) -> Mutated:
    """A true erasure, with one index more."""
    erasures = erasures_of(source)
    one = erasures[chance.randrange(len(erasures))]
    indexes = msgspec.json.decode(one[1])
    one[1] = msgspec.json.encode(sorted([*indexes, max(indexes) + 1])) + b"\n"
    return chance.choice([unsigned, signed])(source, with_erasures(source, erasures)), {"suppressed"}


def sign_with_another_key(source: Source, chance: Chance) -> Mutated:
    """Everything anew, by somebody with a key of the same name."""
    stranger = Signer(source.log.origin, chance.randbytes(32))
    note = sign(
        str(Checkpoint(source.log.origin, source.manifest.size, source.roots[source.manifest.size])), [stranger]
    )
    parts = {**source.parts, form.TRUST: trusting([str(stranger.verifier)]).encode(), form.CHECKPOINT: note.encode()}
    return signed(source, parts, [stranger]), {"signature"}


def sign_with_another_key_only(source: Source, chance: Chance) -> Mutated:
    return signed(source, source.parts, [Signer(source.log.origin, chance.randbytes(32))]), {"signature"}


def other_counts(source: Source, chance: Chance) -> Mutated:
    counts = source.manifest.counts
    name = chance.choice(counts.__struct_fields__)
    changed = msgspec.structs.replace(counts, **{name: getattr(counts, name) + chance.choice([-1, 1])})
    return signed(source, source.parts, counts=changed), {"altered", "missing"}


def edit_manifest(source: Source, _chance: Chance) -> Mutated:
    raw = source.parts[form.MANIFEST].replace(b'"epoch":1', b'"epoch":2')
    return unsigned(source, {**source.parts, form.MANIFEST: raw}), {"altered"}


MUTATIONS: list[Callable[[Source, Chance], Mutated]] = [
    flip, flip, flip, truncate, truncate_a_little, append, prepend, drop_member, double_member, add_member, repack,
    swap_members, drop_line, drop_line_and_sign, double_line, swap_lines, foreign_line, edit_payload, edit_salt,
    swap_payloads, drop_entry,
    double_entry, swap_entries, edit_entry, older_checkpoint, edit_range_proof, drop_erasure, drop_erasure_and_sign,
    swap_erasures, double_erasure, claim_erasure, claim_more, sign_with_another_key, sign_with_another_key_only,
    other_counts, edit_manifest,
]  # fmt: skip


def mutate(sources: dict[str, Source], seeds: range) -> None:
    names = sorted(sources)
    for seed in seeds:
        chance = random.Random(seed)
        source = sources[names[seed % len(names)]]
        mutation = MUTATIONS[seed // len(names) % len(MUTATIONS)]
        file, right = mutation(source, chance)
        assert file != source.file
        found = codes(file, source.trust)
        told = f"seed {seed}: {mutation.__name__} of {names[seed % len(names)]}"
        assert found, f"{told} was not noticed"
        assert found & right, f"{told} was called {found} instead of {right}"


def test_whatever_is_done_to_an_export_is_told_by_its_name(sources: dict[str, Source]) -> None:
    mutate(sources, range(len(sources) * len(MUTATIONS) * 4))


@pytest.mark.slow
def test_ten_thousand_mutations(sources: dict[str, Source]) -> None:
    mutate(sources, range(1_000_000, 1_010_000))


def test_every_byte_of_a_file_matters(sources: dict[str, Source]) -> None:
    """A file of a few entries, each byte of it in turn."""
    source = sources["subject"]
    for at in range(0, len(source.file), 7):
        mutated = bytearray(source.file)
        mutated[at] ^= 1 << at % 8
        assert codes(bytes(mutated), source.trust), f"byte {at}"


# -- files that are meant to hurt --------------------------------------------------------------------------------------


def rewritten(source: Source, write: Callable[[zipfile.ZipFile, str, bytes], None]) -> bytes:
    """The members as another program packs them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as box:
        for name, data in source.parts.items():
            write(box, name, data)
    return file.getvalue()


def test_what_another_program_packed_is_not_the_file_that_was_signed(sources: dict[str, Source]) -> None:
    file = rewritten(sources["time"], lambda box, name, data: box.writestr(name, data))
    assert codes(file, sources["time"].trust) == {"altered"}


@pytest.mark.parametrize("size", [3, 200])
def test_a_bomb_is_not_unpacked(sources: dict[str, Source], size: int) -> None:
    """A member that swells a thousandfold, whether or not the directory says so; signed, as a maker might."""
    source = sources["everything"]
    parts = {**source.parts, "events.ndjson": b"\n" * (size << 20)}
    with_bomb = signed(source, parts)
    tracemalloc.start()
    assert "altered" in codes(with_bomb, source.trust) or "missing" in codes(with_bomb, source.trust)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


def test_many_erasures_are_read_in_little_memory(sources: dict[str, Source]) -> None:
    """Each with a checkpoint of its own, as long as a note may be."""
    source = sources["everything"]
    (head, lists), *_ = erasures_of(source)
    one = msgspec.json.decode(head, type=form.Erased)
    proof = Proof.parse(one.proof)
    lines, signatures = [], [base64_text(random.Random(n).randbytes(680)) for n in range(60)]
    for number in range(200):
        others = "".join(f"\u2014 other{number} {signature}\n" for signature in signatures)
        noted = msgspec.structs.replace(proof, note=proof.note + others)
        lines += [form.ENCODER.encode(msgspec.structs.replace(one, proof=str(noted))) + b"\n", lists]
    file = signed(source, {**source.parts, form.ERASURES: b"".join(lines)})
    tracemalloc.start()
    found = audit.verify(io.BytesIO(file), source.trust)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.counts["duplicated"], found.erasures_count, len(found.erasures)) == (199, 200, 20)
    assert peak < 12 << 20


@pytest.mark.parametrize("line", [
    b"[" * 100_000 + b"]" * 100_000, b'{"index":' + b"9" * 5_000 + b"}", b"\xff\xfe", b"null", b"", b'{"index":1e999}',
    b"x" * 3_000_000, b'{"index":0,"tag":"","salt":"","payload":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
])  # fmt: skip
@pytest.mark.parametrize("name", ["events.ndjson", form.ERASURES, form.MANIFEST, form.STRANDS, form.TRUST, form.RANGE])
def test_no_text_makes_it_stumble(sources: dict[str, Source], name: str, line: bytes) -> None:
    source = sources["subject"]
    data = line if name == form.MANIFEST else source.parts[name] + line + b"\n"
    if name in (form.MANIFEST, form.STRANDS):
        data = line
    make = unsigned if name == form.MANIFEST else signed
    found = codes(make(source, {**source.parts, name: data}), source.trust)
    assert found or not line, "what is wrong is told"


@pytest.mark.parametrize("file", [
    b"", b"PK\3\4", b"PK\5\6" + bytes(18), b"x" * 100, b"PK\5\6" + b"\xff" * 18, bytes(1 << 16),
    b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1 << 62, 1 << 62, 1 << 62, 0)
    + b"PK\6\7" + struct.pack("<IQI", 0, 0, 1) + b"PK\5\6" + b"\0\0\0\0" + b"\xff" * 12 + b"\0\0",
])  # fmt: skip
def test_what_is_no_export_is_told_to_be_none(sources: dict[str, Source], file: bytes) -> None:
    assert codes(file, sources["time"].trust) <= {"truncated", "altered", "added"}
    assert codes(file, sources["time"].trust)


def test_names_that_lead_elsewhere_or_are_encrypted_are_refused(sources: dict[str, Source]) -> None:
    source = sources["time"]
    for old, new in ((b"README.txt", b"../ADME.txt"[:10]), (b"checkpoint", b"check\0oint")):
        assert codes(source.file.replace(old, new), source.trust) & {"added", "altered"}
    at = source.file.rindex(b"PK\1\2")
    encrypted = source.file[: at + 8] + b"\1" + source.file[at + 9 :]
    assert codes(encrypted, source.trust) == {"altered"}


def test_a_range_that_nobody_asked_for_is_told(sources: dict[str, Source]) -> None:
    """Else a part of the ledger would pass for the whole."""
    source = sources["time"]
    assert source.manifest.first > 0
    assert codes(signed(source, source.parts, filter=form.Filter()), source.trust) == {"suppressed"}
    of_one = msgspec.structs.replace(source.manifest.filter, subject="00")
    assert "suppressed" in codes(signed(source, source.parts, filter=of_one), source.trust)
    larger = signed(source, source.parts, size=source.manifest.size + 1)
    assert "suppressed" in codes(larger, source.trust), "it ends early"


def test_a_witness_with_the_name_of_the_log_is_not_the_log(sources: dict[str, Source]) -> None:
    """Neither for the manifest nor for what an erasure is proved by."""
    source = sources["everything"]
    witness = Signer(source.log.origin, b"w" * 32, WITNESS)
    trust = Trust.parse(trusting(str(one.verifier) for one in source.log.signers).replace(
        "quorum", f"witness w {witness.verifier}\nquorum"
    ))  # fmt: skip
    assert codes(source.file, trust) == set()
    assert codes(signed(source, source.parts, [witness]), trust) == {"signature"}
    (head, *lists), *others = erasures_of(source)
    one = msgspec.json.decode(head, type=form.Erased)
    proof = Proof.parse(one.proof)
    note = sign(proof.note.partition("\n\n")[0] + "\n", [witness])
    forged = msgspec.structs.replace(one, proof=str(msgspec.structs.replace(proof, note=note)))
    parts = with_erasures(source, [[form.ENCODER.encode(forged) + b"\n", *lists], *others])
    assert "suppressed" in codes(signed(source, parts), trust)


@pytest.mark.parametrize("name", ["everything", "table"])
def test_a_salt_of_another_length_is_told(sources: dict[str, Source], name: str) -> None:
    """HMAC takes a shorter key for one with zeros behind it: two files would prove the same."""
    source = sources[name]
    _, lines = event_lines(source)
    if source.manifest.events == "csv":
        salt = next(csv.reader([lines[0].decode()]))[columns.HEAD.index("salt")]
        lines[0] = lines[0].replace(salt.encode(), salt.encode() + b"00")
    else:
        line = msgspec.json.decode(lines[0], type=form.Line)
        longer = msgspec.structs.replace(line, salt=line.salt + b"\0")
        lines[0] = form.ENCODER.encode(longer) + b"\n"
    assert "altered" in codes(signed(source, with_events(source, lines)), source.trust)


def test_numbers_that_cannot_be_are_told(sources: dict[str, Source]) -> None:
    source = sources["subject"]
    for changes in (
        {"end": 1 << 60, "size": 1 << 60}, {"first": -1}, {"first": 5, "end": 4}, {"end": source.manifest.end + 1},
        {"size": source.manifest.size + 1}, {"origin": "elsewhere/t"},
    ):  # fmt: skip
        assert codes(signed(source, source.parts, **changes), source.trust)
    strands = msgspec.json.decode(source.parts[form.STRANDS], type=list[form.Strand])
    for events_count in (1 << 50, strands[0].events - 1, strands[0].events + 1):
        changed = [msgspec.structs.replace(strands[0], events=events_count), *strands[1:]]
        file = signed(source, {**source.parts, form.STRANDS: form.ENCODER.encode(changed)})
        assert codes(file, source.trust) & {"altered", "suppressed"}


def test_strands_cannot_make_up_for_each_other(sources: dict[str, Source]) -> None:
    source = sources["subject"]
    strands = msgspec.json.decode(source.parts[form.STRANDS], type=list[form.Strand])
    more = [msgspec.structs.replace(strands[0], events=count) for count in (1 << 40, -(1 << 40))]
    file = signed(source, {**source.parts, form.STRANDS: form.ENCODER.encode([*strands, *more])})
    assert "altered" in codes(file, source.trust)


def test_what_nobody_signed_is_not_believed(sources: dict[str, Source]) -> None:
    """Neither its numbers, which would be asked memory for, nor what it says of itself."""
    source = sources["everything"]
    origin = "h/t\x1b[2K\r\x1b[1AGenuine: export 1\n\n"
    for changes in ({"end": 1 << 58, "size": 1 << 58}, {"origin": origin}, {"origin": "h/t\x9b2K"}):
        manifest = {**msgspec.to_builtins(source.manifest), **changes}
        file = unsigned(source, {**source.parts, form.MANIFEST: msgspec.json.encode(manifest)})
        found = audit.verify(io.BytesIO(file), source.trust)
        assert not found.genuine
        text = as_text(found)
        assert not any(line.startswith("Genuine") for line in text.split("\n"))
        assert all(char.isprintable() or char == "\n" for char in text)


def test_the_verdict_says_in_words_what_the_file_covers(sources: dict[str, Source]) -> None:
    whole = as_text(audit.verify(io.BytesIO(sources["everything"].file), sources["everything"].trust))
    assert "It is the whole ledger of that moment." in whole
    start = sources["time"].manifest.filter.from_
    assert start is not None
    for name, told in (("time", start.isoformat()), ("subject", sources["subject"].manifest.filter.subject)):
        text = as_text(audit.verify(io.BytesIO(sources[name].file), sources[name].trust))
        assert "NOT the whole ledger" in text
        assert str(told) in text
    chosen = form.Filter(
        until=start, purposes=tuple(f"p{n}" for n in range(30)), channels=("web", "\x1b[2K"), statuses=("given",),
        actors=("shop",), kinds=("consent",),
    )  # fmt: skip
    source = sources["everything"]
    text = as_text(audit.verify(io.BytesIO(signed(source, source.parts, filter=chosen)), source.trust))
    for told in (f"before this time: {start.isoformat()}", "p19, and 10 more", r"web, '\x1b[2K'", "given", "shop"):
        assert told in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_names_and_sizes_of_members_are_told_as_they_may_be_shown() -> None:
    stamped = container.stamp(datetime(2026, 1, 1, tzinfo=UTC))
    named = container.Entry(b"\x1b[2J\nGenuine", "whole", 0, 0, 0, 0)
    head = bytearray(container.local(named, stamped))
    head[4] ^= 1
    huge = container.Entry(b"README.txt", "whole", 0, 0, 1 << 40, 0)
    for body, member in ((bytes(head), named), (b"PK\3\4" + bytes(60), huge)):
        file = body + container.directory([member], stamped, len(body))
        found = audit.verify(io.BytesIO(file), None)
        assert [problem.code for problem in found.problems] == ["altered"]
        assert all(char.isprintable() or char == "\n" for char in as_text(found))


def test_a_subject_without_one_of_its_strands_is_told(sources: dict[str, Source]) -> None:
    """What was linked to the account may not be left out, not even with all its events."""
    source = sources["subject"]
    strands = msgspec.json.decode(source.parts[form.STRANDS], type=list[form.Strand])
    _, lines = event_lines(source)
    left = [one for one in strands if one.account]
    tags = {entry.tag(one.tags, place) for one in left for place in range(1, one.events + 1)}
    kept = [line for line in lines if msgspec.json.decode(line, type=form.Line).tag in tags]
    counts = source.manifest.counts
    gone = len(lines) - len(kept)
    counts = msgspec.structs.replace(counts, opened=len(kept), other=counts.other + gone)
    parts = {**with_events(source, kept), form.STRANDS: form.ENCODER.encode(left)}
    assert codes(signed(source, parts, counts=counts), source.trust) == {"suppressed"}


def test_a_container_of_more_than_four_gigabytes_has_long_numbers() -> None:
    """The directory of one that would be too large to make here."""
    entries = [
        container.Entry(b"a", "deflated", 1, 5 << 32, 6 << 32, 0),
        container.Entry(b"b", "whole", 2, 10, 10, 7 << 32),
    ]
    raw = container.directory(entries, 0, 8 << 32)
    box = zipfile.ZipFile(_Sparse(raw, 8 << 32))  # another program reads the same numbers
    assert [(one.file_size, one.compress_size, one.header_offset) for one in box.infolist()] == [
        (6 << 32, 5 << 32, 0), (10, 10, 7 << 32),
    ]  # fmt: skip


class _Sparse(io.RawIOBase):
    """A file that is zeros but for its end."""

    def __init__(self, end: bytes, at: int) -> None:
        super().__init__()
        self._end, self._at, self._place = end, at, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._at + len(self._end))[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        start = self._place - self._at
        assert start >= 0, "nothing but the end is read"
        data = self._end[start:] if size < 0 else self._end[start : start + size]
        self._place += len(data)
        return data


async def test_a_line_that_two_readers_read_as_two_things_is_told(sources: dict[str, Source]) -> None:
    source = sources["everything"]
    _, lines = event_lines(source)
    lines[0] = lines[0].replace(b'"payload":', b'"payload":{"said":"something else"},"payload":', 1)
    assert codes(signed(source, with_events(source, lines)), source.trust) >= {"altered"}


async def test_groups_of_witnesses_may_lie_in_each_other_as_deeply_as_they_like(sources: dict[str, Source]) -> None:
    source, witness = sources["everything"], Signer("w.example", b"w" * 32, WITNESS)
    text = [f"log {signer.verifier}" for signer in source.log.signers]
    text += [f"witness w {witness.verifier}", "group g0 any w"]
    text += [f"group g{place} any g{place - 1}" for place in range(1, 5_000)]
    deep = signed(source, {**source.parts, form.TRUST: "\n".join([*text, "quorum g4999", ""]).encode()})
    assert codes(deep, None) == {"signature"}


async def test_nothing_of_a_manifest_is_read_before_its_signature_holds(
    sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources["everything"]

    class Never:
        def decode(self, raw: bytes) -> None:
            raise AssertionError(raw)

    monkeypatch.setattr(audit, "_READ_MANIFEST", Never())
    other = signed(source, source.parts, [Signer(source.manifest.origin, b"x" * 32)])
    assert codes(other, source.trust) == {"signature"}
    with pytest.raises(AssertionError):
        codes(source.file, source.trust)


# -- what whoever has the log's own key may try -----------------------------------------------------------------------


def said(file: bytes, trust: Trust) -> str:
    """Everything that is wrong, in words."""
    return "\n".join(f"{problem.code}: {problem.what}" for problem in audit.verify(io.BytesIO(file), trust).problems)


def test_the_checkpoint_is_that_of_the_manifest(sources: dict[str, Source]) -> None:
    source = sources["everything"]
    other = Signer("localhost/other", b"o" * 32)
    assert "not the manifest's" in said(signed(source, source.parts, root="00" * 32), source.trust)
    both = Trust.parse(trusting([str(one.verifier) for one in (*source.log.signers, other)]))
    foreign = signed(source, source.parts, [other], origin=other.verifier.name)
    assert "that of another log" in said(foreign, both)


def test_the_range_proof_is_that_of_the_manifest(sources: dict[str, Source]) -> None:
    source = sources["time"]
    parts = {**source.parts, form.RANGE: sources["everything"].parts[form.RANGE]}
    assert "another range than the manifest" in said(signed(source, parts), source.trust)


def test_what_was_not_asked_for_is_told(sources: dict[str, Source]) -> None:
    source = sources["everything"]
    for wanted in (form.Filter(purposes=("nothing",)), form.Filter(kinds=("read",)), form.Filter(actors=("nobody",))):
        assert "was not asked for" in said(signed(source, source.parts, filter=wanted), source.trust)


def test_an_event_of_somebody_else_is_not_the_subjects(sources: dict[str, Source]) -> None:
    source, everything = sources["subject"], sources["everything"]
    _, mine = event_lines(source)
    _, all_of_them = event_lines(everything)
    stranger = next(line for line in all_of_them if line not in mine)
    lines = sorted([*mine, stranger], key=lambda line: msgspec.json.decode(line, type=form.Line).index)
    assert "is not the subject's" in said(signed(source, with_events(source, lines)), source.trust)


def test_witnesses_that_are_demanded_have_to_have_seen_the_checkpoint(sources: dict[str, Source]) -> None:
    source, witness = sources["everything"], Signer("w.example", b"w" * 32, WITNESS)
    lines = [f"log {signer.verifier}" for signer in source.log.signers]
    demanding = Trust.parse("\n".join([*lines, f"witness w {witness.verifier}", "quorum w", ""]))
    assert "too few witnesses" in said(source.file, demanding)


@pytest.mark.parametrize(("change", "words"), [
    ("by", "its entry is not proved"), ("place", "it is not about these events"),
    ("log", "its entry is in another log"), ("reason", "its entry says something else"),
])  # fmt: skip
def test_each_thing_that_an_erasure_says_is_checked(sources: dict[str, Source], change: str, words: str) -> None:
    source = sources["everything"]
    (head, lists), *rest = erasures_of(source)
    one = msgspec.json.decode(head, type=form.Erased)
    other = Signer("localhost/other", b"o" * 32)
    trust = Trust.parse(trusting([str(signer.verifier) for signer in (*source.log.signers, other)]))
    if change == "by":
        made = msgspec.structs.replace(entry.read_system(one.entry), by="somebody else")
        one = msgspec.structs.replace(one, entry=entry.system(made))
    elif change == "place":
        one = msgspec.structs.replace(one, index=one.index - 1)
    elif change == "reason":
        one = msgspec.structs.replace(one, reason="retention")
    else:
        proof = Proof.parse(one.proof)
        size, root = source.manifest.size, source.roots[source.manifest.size]
        note = sign(str(Checkpoint(other.verifier.name, size, root)), [other, *source.log.signers])
        one = msgspec.structs.replace(one, proof=str(msgspec.structs.replace(proof, note=note)))
    erasures = [[form.ENCODER.encode(one) + b"\n", lists], *rest]
    assert words in said(signed(source, with_erasures(source, erasures)), trust)
