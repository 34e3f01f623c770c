"""Others' cases: inclusion proofs of transparency-dev, Ed25519 edge cases of C2SP, examples of the C2SP formats."""

from __future__ import annotations

import base64
import json
from typing import Any

from conftest import external

from consent_service.ledger import note, tree
from consent_service.ledger.note import LOG, Checkpoint, Verifier


def raw(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def test_inclusion_proofs() -> None:
    files = sorted(external("merkle/inclusion").rglob("*.json"))
    assert len(files) > 90
    outcomes = set()
    for file in files:
        case: dict[str, Any] = json.loads(file.read_text())
        proof = [raw(one) for one in case["proof"] or []]
        found = tree.includes(raw(case["root"]), case["treeSize"], case["leafIdx"], raw(case["leafHash"]), proof)
        assert found is not case["wantErr"], file
        outcomes.add(found)
    assert outcomes == {True, False}


def test_ed25519_edge_cases() -> None:
    """We verify without the cofactor and compare R byte for byte, as RFC 8032 allows and most libraries do."""
    cases = json.loads((external("c2sp") / "ed25519vectors.json").read_text())
    outcomes = set()
    for case in cases:
        expected = not {"low_order_residue", "non_canonical_R"} & set(case["flags"] or ())
        verifier = Verifier("log", LOG, bytes.fromhex(case["key"]))
        found = verifier.verifies(case["msg"], bytes.fromhex(case["sig"])) is not None
        assert found is expected, case["number"]
        outcomes.add(found)
    assert outcomes == {True, False}
    assert len(cases) > 900


def test_the_text_of_a_note_may_have_empty_lines() -> None:
    text, lines = note.split("one\n\ntwo\n\n\N{EM DASH} name AAAAAAAA\n")
    assert text == "one\n\ntwo\n"
    assert lines == ["\N{EM DASH} name AAAAAAAA"]


def test_a_checkpoint_may_have_further_lines() -> None:
    root = base64.b64encode(bytes(32)).decode()
    assert Checkpoint.parse(f"example.com/log\n20852163\n{root}\nmore\nand more\n").size == 20_852_163
