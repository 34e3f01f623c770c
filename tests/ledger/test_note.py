"""Signed notes, checkpoints, proofs and the file that says whom to trust."""

from __future__ import annotations

import pytest

from consent_service.ledger import note
from consent_service.ledger.note import LOG, WITNESS, Checkpoint, NoteError, Signer, Verifier
from consent_service.ledger.proof import Proof
from consent_service.ledger.tree import Frontier, leaf_hash
from consent_service.ledger.trust import Trust

LOG_KEY = Signer("consent.example/demo", bytes(range(32)))
OTHER = Signer("consent.example/demo", bytes(32))
WITNESSES = [Signer(f"witness-{n}.example", bytes([n]) * 32, WITNESS) for n in range(1, 5)]
CHECKPOINT = Checkpoint("consent.example/demo", 12, bytes(range(32)))
TEXT = str(CHECKPOINT)
SIGNED = note.sign(TEXT, [LOG_KEY])


def test_what_was_signed_is_read_back() -> None:
    read = note.read(SIGNED, [LOG_KEY.verifier])
    assert read.text == TEXT
    assert [(signed.by, signed.at) for signed in read.signatures] == [(LOG_KEY.verifier, None)]
    assert Checkpoint.parse(read.text) == CHECKPOINT


def test_a_witness_signs_the_moment_too() -> None:
    whole = SIGNED + WITNESSES[0].line(TEXT, 1_790_000_000)
    read = note.read(whole, [LOG_KEY.verifier, WITNESSES[0].verifier])
    assert [signed.at for signed in read.signatures] == [None, 1_790_000_000]
    raw = WITNESSES[0].line(TEXT, 1_790_000_000).split()[2]
    later = WITNESSES[0].line(TEXT, 1_790_000_001).split()[2]
    assert raw != later


def test_no_witness_saw_anything_after_all_years() -> None:
    with pytest.raises(NoteError, match="is wrong"):
        note.read(SIGNED + WITNESSES[0].line(TEXT, 2**63 - 1), [LOG_KEY.verifier, WITNESSES[0].verifier])


def test_signatures_of_unknown_keys_say_nothing() -> None:
    whole = note.sign(TEXT, [OTHER, LOG_KEY])
    assert len(note.read(whole, [LOG_KEY.verifier]).signatures) == 1
    with pytest.raises(NoteError, match="no known key"):
        note.read(whole, [WITNESSES[0].verifier])


def test_a_wrong_signature_of_a_known_key_condemns_the_note() -> None:
    forged = note.sign(TEXT.replace("12", "13"), [LOG_KEY]).replace("\n13\n", "\n12\n")
    with pytest.raises(NoteError, match="is wrong"):
        note.read(forged + OTHER.line(TEXT), [LOG_KEY.verifier, OTHER.verifier])


@pytest.mark.parametrize(
    "broken",
    [
        "",
        TEXT,
        TEXT + "\n",
        SIGNED[:-1],
        SIGNED + "\n",
        SIGNED.replace("\N{EM DASH}", "-"),
        SIGNED.replace("\N{EM DASH} ", "\N{EM DASH}  "),
        SIGNED.replace("\n", "\r\n"),
        SIGNED + "\N{EM DASH} x AAAA\n",
        SIGNED + "\N{EM DASH} x AAAAAAB=\n",
        SIGNED + "\N{EM DASH} a+b AAAAAAAA\n",
        SIGNED + "".join(f"\N{EM DASH} x{n} AAAAAAAA\n" for n in range(note.MAX_SIGNATURES)),
        "x" * note.MAX_NOTE + SIGNED,
    ],
)
def test_what_is_no_note_is_refused(broken: str) -> None:
    with pytest.raises(NoteError):
        note.read(broken, [LOG_KEY.verifier])


def test_keys_are_written_and_read() -> None:
    for signer in (LOG_KEY, WITNESSES[0]):
        assert Verifier.parse(str(signer.verifier)) == signer.verifier
    vkey = str(LOG_KEY.verifier)
    name, number, material = vkey.split("+", 2)
    for broken in ("", name, f"{name}+{number}", f"x+{number}+{material}", f"{name}+00000000+{material}", vkey + "A"):
        with pytest.raises(NoteError):
            Verifier.parse(broken)


@pytest.mark.parametrize(
    "text", ["", "a\n1\n", "a\n01\n" + TEXT.split("\n")[2] + "\n", "a\n1\nAAAA\n", "a\n-1\n", TEXT + "\n", TEXT[:-1]]
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError, match="checkpoint"):
        Checkpoint.parse(text)


# -- proofs ---------------------------------------------------------------------------------------------------------

ENTRIES = [b"entry %d" % n for n in range(11)]
GROWTH = Frontier().grown([leaf_hash(entry) for entry in ENTRIES])
SEALED = note.sign(str(Checkpoint("consent.example/demo", 11, GROWTH.root)), [LOG_KEY])


def proof_of(index: int) -> Proof:
    return Proof(b"opening", index, tuple(GROWTH.proof(index)), SEALED)


@pytest.mark.parametrize("index", range(11))
def test_a_proof_is_written_read_and_verified(index: int) -> None:
    read = Proof.parse(str(proof_of(index)))
    assert read == proof_of(index)
    checkpoint, _ = read.verify(ENTRIES[index], [LOG_KEY.verifier])
    assert (checkpoint.size, checkpoint.root) == (11, GROWTH.root)
    with pytest.raises(NoteError, match="not in the tree"):
        read.verify(ENTRIES[index - 1], [LOG_KEY.verifier])
    with pytest.raises(NoteError, match="no known key"):
        read.verify(ENTRIES[index], [OTHER.verifier])


def test_extra_data_may_be_missing_or_empty() -> None:
    for extra in (None, b""):
        proof = Proof(extra, 3, tuple(GROWTH.proof(3)), SEALED)
        assert Proof.parse(str(proof)) == proof


def test_another_logs_checkpoint_proves_nothing_here() -> None:
    other = Signer("other.example/log", bytes(32))
    proof = Proof(None, 3, tuple(GROWTH.proof(3)), note.sign(SEALED.split("\n\n")[0] + "\n", [other]))
    with pytest.raises(NoteError, match="log itself"):
        proof.verify(ENTRIES[3], [other.verifier])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@v1", "@v2"),
        ("index 3", "index 03"),
        ("index 3", "index -3"),
        ("index 3\n", ""),
        ("extra ", "extra !"),
        ("extra ", "extras "),
        ("\n\nconsent", "\nconsent"),
        ("=\n", "\n"),
    ],
)
def test_what_is_no_proof_is_refused(old: str, new: str) -> None:
    text = str(proof_of(3))
    assert old in text
    with pytest.raises(NoteError):
        Proof.parse(text.replace(old, new, 1)).verify(ENTRIES[3], [LOG_KEY.verifier])


# -- whom to trust --------------------------------------------------------------------------------------------------

FILE = "\n".join((
    "# those who saw it",
    f"log {LOG_KEY.verifier} https://consent.example/ledger/demo",
    *(f"\twitness  w{n} {witness.verifier}" for n, witness in enumerate(WITNESSES, 1)),
    "",
    "group pair 2 w1 w2",
    "group one any w3 w4",
    "group both all pair one",
    "quorum both",
    "",
))  # fmt: skip


@pytest.mark.parametrize(
    ("saw", "enough"),
    [((0, 1, 2), True), ((0, 1, 3), True), ((0, 1, 2, 3), True), ((0, 1), False), ((0, 2, 3), False), ((), False)],
)
def test_a_quorum_is_demanded(saw: tuple[int, ...], enough: bool) -> None:
    trust = Trust.parse(FILE)
    whole = SIGNED + "".join(WITNESSES[n].line(TEXT, 1) for n in saw)
    read = note.read(whole, trust.known)
    if enough:
        trust.demand(CHECKPOINT, read)
    else:
        with pytest.raises(NoteError, match="too few"):
            trust.demand(CHECKPOINT, read)


def test_without_witnesses_the_log_alone_is_demanded() -> None:
    trust = Trust.parse(f"log {LOG_KEY.verifier}\nquorum none\n")
    trust.demand(CHECKPOINT, note.read(SIGNED, trust.known))
    other = Trust.parse(f"log {OTHER.verifier}\nquorum none\n")
    with pytest.raises(NoteError, match="none of the logs"):
        other.demand(CHECKPOINT, note.read(SIGNED, [LOG_KEY.verifier]))
    assert trust.urls == {}
    assert Trust.parse(FILE).urls == {LOG_KEY.verifier: "https://consent.example/ledger/demo"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("quorum none", "is none of"),
        ("group x 3 w1 w2", "in a group"),
        ("group none any w1", "is taken"),
        ("group w1 any w2", "is taken"),
        ("group y any nobody", "not defined"),
        ("group z 2 both", "`all`, `any` or a number"),
        ("group z 0 both", "`all`, `any` or a number"),
        (f"log {LOG_KEY.verifier}", "twice"),
        (f"log {WITNESSES[0].verifier}", "other type"),
        (f"witness again {WITNESSES[0].verifier}", "twice"),
        ("log x", "no verifier key"),
        ("what is this", "is none of"),
    ],
)
def test_a_wrong_line_is_named(line: str, why: str) -> None:
    with pytest.raises(NoteError, match=rf"line 12 of the policy file: .*{why}"):
        Trust.parse(FILE + line + "\n")


def test_a_file_without_a_quorum_is_refused() -> None:
    with pytest.raises(NoteError, match="quorum"):
        Trust.parse(f"log {LOG_KEY.verifier}\n")
    with pytest.raises(NoteError, match="control"):
        Trust.parse("quorum none\r\n")


def test_types_of_keys() -> None:
    assert (LOG_KEY.verifier.kind, WITNESSES[0].verifier.kind) == (LOG, WITNESS)
