"""The Merkle tree, compared with RFC 6962 read literally: the whole tree hashed anew, recursively."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent_service.ledger import tree
from consent_service.ledger.tree import EMPTY, Frontier, leaf_hash, node_hash

LEAVES = [leaf_hash(b"entry %d" % n) for n in range(900)]
SIZES = st.integers(0, 600)


def split(count: int) -> int:
    """The largest power of two below the count."""
    return 1 << ((count - 1).bit_length() - 1)


def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    return [*path(m, leaves[:k]), mth(leaves[k:])] if m < k else [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def nodes_of(size: int) -> tree.Nodes:
    """Nodes of the tree of that size; asking for one that is not complete fails."""

    def node(level: int, place: int) -> bytes:
        assert (place + 1) << level <= size
        return mth(LEAVES[place << level : (place + 1) << level])

    return node


def frontier(size: int) -> Frontier:
    return Frontier().grown(LEAVES[:size]).frontier if size else Frontier()


@given(SIZES, st.integers(1, 300))
def test_a_tree_grows_as_if_it_had_been_made_at_once(old: int, more: int) -> None:
    leaves = LEAVES[: old + more]
    growth = frontier(old).grown(leaves[old:])
    assert growth.root == mth(leaves)
    assert growth.frontier == frontier(len(leaves))
    assert Frontier.read(growth.frontier.size, growth.frontier.write()) == growth.frontier
    for index in {old, len(leaves) - 1, (old + len(leaves)) // 2} & set(range(old, len(leaves))):
        assert growth.proof(index) == path(index, leaves)


@given(st.integers(1, 600), st.data())
def test_a_proof_of_inclusion_is_that_of_the_rfc_and_of_no_other_place(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    leaves = LEAVES[:size]
    proof = tree.inclusion_proof(index, size, nodes_of(size))
    root = mth(leaves)
    assert proof == path(index, leaves)
    assert tree.root(size, nodes_of(size)) == root
    assert tree.includes(root, size, index, leaves[index], proof)
    other = data.draw(st.integers(0, size - 1).filter(lambda n: n != index)) if size > 1 else None
    if other is not None:
        assert not tree.includes(root, size, other, leaves[index], proof)
        assert not tree.includes(root, size, index, leaves[other], proof)
    assert not tree.includes(root, size, index, leaves[index], [*proof, EMPTY])
    assert not tree.includes(root, size, index, leaves[index], proof[:-1]) or not proof


@given(SIZES, SIZES)
def test_a_proof_of_consistency_is_that_of_the_rfc(one: int, other: int) -> None:
    old, new = sorted((one, other))
    proof = tree.consistency_proof(old, new, nodes_of(new))
    before, after = mth(LEAVES[:old]), mth(LEAVES[:new])
    if old:
        assert proof == subproof(old, LEAVES[:new], True)
    assert tree.grew(old, before, new, after, proof)
    assert not tree.grew(old, before, new, after, [*proof, EMPTY])
    if 0 < old < new:
        assert not tree.grew(old, leaf_hash(before), new, after, proof)
        assert not tree.grew(old, before, new, leaf_hash(after), proof)
        assert not tree.grew(old, before, new, after, proof[1:])


@pytest.mark.parametrize(
    ("root", "size", "index", "leaf"),
    [(EMPTY, 0, 0, LEAVES[0]), (LEAVES[0], 1, 1, LEAVES[0]), (LEAVES[0], 1, -1, LEAVES[0]), (b"", 1, 0, b"")],
)
def test_what_can_be_in_no_tree_is_in_none(root: bytes, size: int, index: int, leaf: bytes) -> None:
    assert not tree.includes(root, size, index, leaf, [])


def test_a_frontier_of_another_size_is_refused() -> None:
    raw = frontier(7).write()
    with pytest.raises(ValueError, match="one hash for each bit"):
        Frontier.read(8, raw)
    with pytest.raises(ValueError, match="one hash for each bit"):
        Frontier.read(7, raw[:-1])


def test_proofs_are_about_leaves_that_are_there() -> None:
    with pytest.raises(ValueError, match="leaf of the tree"):
        tree.inclusion_proof(5, 5, nodes_of(5))
    with pytest.raises(ValueError, match="smaller to the larger"):
        tree.consistency_proof(6, 5, nodes_of(5))
    with pytest.raises(ValueError, match="at least one leaf"):
        Frontier().grown([])
