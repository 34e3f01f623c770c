"""The Merkle tree of RFC 6962, section 2.1: how it grows, and the proofs that an entry is in it and that it only grew.

Pure. A node is named by its level (0: leaves) and its place within the level; it is *complete* when all 2^level leaves
below it are there, and from then on it never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

HASH = 32
"""Bytes of a SHA-256."""
EMPTY = hashlib.sha256().digest()
"""The root of a tree without leaves."""

Nodes: TypeAlias = Callable[[int, int], bytes]
"""Gives the hash of a complete node, by level and place."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


# -- growing --------------------------------------------------------------------------------------------------------


class Frontier(NamedTuple):
    """All that must be known of a tree for it to grow: its largest complete nodes, from left to right.

    There is one for each bit of the size, at the level of that bit.
    """

    size: int = 0
    nodes: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, size: int, raw: bytes) -> Frontier:
        """Take apart what `write` gave.

        Raises:
            ValueError: these are not the nodes of a tree of that size.
        """
        if size < 0 or len(raw) != size.bit_count() * HASH:
            raise ValueError("a frontier has one hash for each bit of the size")
        return cls(size, tuple(raw[at : at + HASH] for at in range(0, len(raw), HASH)))

    def write(self) -> bytes:
        """The nodes one after the other."""
        return b"".join(self.nodes)

    @property
    def root(self) -> bytes:
        """The hash of the tree."""
        if not self.nodes:
            return EMPTY
        *rest, root = self.nodes
        for node in reversed(rest):
            root = node_hash(node, root)
        return root

    def grown(self, leaves: Sequence[bytes]) -> Growth:
        """The tree with these leaves (hashes) added at its end.

        Raises:
            ValueError: there are none.
        """
        if not leaves:
            raise ValueError("a tree grows by at least one leaf")
        old = self._by_level()
        rows: list[Row] = []
        row = Row(self.size, list(leaves))
        for level in range((self.size + len(leaves)).bit_length()):
            if row.start % 2:  # the first of the new nodes completes a pair with an old one
                row = Row(row.start - 1, [old[level], *row.nodes])
            rows.append(row)
            pairs = zip(row.nodes[::2], row.nodes[1::2], strict=False)
            row = Row(row.start // 2, [node_hash(left, right) for left, right in pairs])
        return Growth(self, self.size + len(leaves), rows)

    def joined(self, level: int, node: bytes) -> Frontier:
        """The tree with the 2^level leaves below a complete node added at its end.

        Raises:
            ValueError: no complete node of that level begins there.
        """
        if self.size % (1 << level):
            raise ValueError("a complete node begins where its size says")
        nodes = list(self.nodes)
        place = self.size >> level
        while place & 1:
            node, place = node_hash(nodes.pop(), node), place >> 1
        return Frontier(self.size + (1 << level), (*nodes, node))

    def _by_level(self) -> dict[int, bytes]:
        levels = [level for level in range(self.size.bit_length()) if self.size >> level & 1]
        return dict(zip(reversed(levels), self.nodes, strict=True))


class Row(NamedTuple):
    """Complete nodes of one level that stand side by side."""

    start: int
    nodes: list[bytes]


class Growth:
    """A tree that has just grown. Knows the proofs of the new leaves, and needs nothing but the old frontier for it."""

    def __init__(self, before: Frontier, size: int, rows: list[Row]) -> None:
        self._rows = rows
        self.first = before.size
        """Index of the first new leaf."""
        self.frontier = Frontier(size, self._nodes(before, size))
        self.root = self.frontier.root
        self._edge = _edge(size, self._node)

    def proof(self, index: int) -> list[bytes]:
        """The inclusion proof of a new leaf, from its sibling up (RFC 6962, section 2.1.1)."""
        return _siblings(0, index, self.frontier.size, self._node, self._edge)

    def _nodes(self, before: Frontier, size: int) -> tuple[bytes, ...]:
        old = before._by_level()  # noqa: SLF001 -- a class and what it makes
        found = []
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                place = (size >> level) - 1
                row = self._rows[level]
                found.append(row.nodes[place - row.start] if place >= row.start else old[level])
        return tuple(found)

    def _node(self, level: int, place: int) -> bytes:
        row = self._rows[level]
        return row.nodes[place - row.start]


def _edge(size: int, node: Nodes) -> list[bytes]:
    """For each level the hash of the last node, complete or not, over the leaves that are there."""
    if size == 0:
        return []
    last = size - 1
    found = [node(0, last)]
    for level in range(1, last.bit_length() + 1):
        below = last >> (level - 1)
        found.append(node_hash(node(level - 1, below - 1), found[-1]) if below % 2 else found[-1])
    return found


# -- proofs from nodes that are stored -------------------------------------------------------------------------------


def root(size: int, node: Nodes) -> bytes:
    """The root of the tree with the first `size` leaves."""
    return _edge(size, node)[-1] if size else EMPTY


def inclusion_proof(index: int, size: int, node: Nodes) -> list[bytes]:
    """The proof that a leaf is in the tree with the first `size` leaves, from its sibling up (RFC 6962, 2.1.1).

    Raises:
        ValueError: that tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("a proof is about a leaf of the tree")
    return _siblings(0, index, size, node, _edge(size, node))


def consistency_proof(old: int, new: int, node: Nodes) -> list[bytes]:
    """The proof that the tree with `new` leaves begins with the one with `old` leaves (RFC 6962, section 2.1.2).

    Raises:
        ValueError: `old` is not from 0 to `new`.
    """
    if not 0 <= old <= new:
        raise ValueError("a tree grows from the smaller to the larger")
    if old in (0, new):
        return []
    level = (old & -old).bit_length() - 1  # of the last complete node of the old tree
    place = (old >> level) - 1
    head = [node(level, place)] if old & (old - 1) else []  # the old root itself is known to whoever asks
    return head + _siblings(level, place, new, node, _edge(new, node))


def _siblings(level: int, place: int, size: int, node: Nodes, incomplete: Sequence[bytes]) -> list[bytes]:
    """What a complete node is hashed with on the way to the root; `incomplete` is the tree's edge."""
    last, found = (size - 1) >> level, []
    while last:
        if place & 1:
            found.append(node(level, place - 1))
        elif place < last:
            complete = (place + 2) << level <= size
            found.append(node(level, place + 1) if complete else incomplete[level])
        level, place, last = level + 1, place >> 1, last >> 1
    return found


def covering(start: int, end: int) -> list[tuple[int, int]]:
    """The fewest complete nodes that stand over the leaves from `start` up to but without `end`, from left to right.

    With `start` 0 these are the nodes of a frontier.
    """
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        found.append((level, start >> level))
        start += 1 << level
    return found


# -- checking -------------------------------------------------------------------------------------------------------


def includes(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that a leaf (its hash) is in a tree (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size or any(len(one) != HASH for one in (root, leaf, *proof)):
        return False
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while place & 1 == 0 and place:
                place >>= 1
                last >>= 1
        else:
            found = node_hash(found, sibling)
        place >>= 1
        last >>= 1
    return last == 0 and found == root


def grew(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that one tree begins with another (RFC 9162, section 2.1.4.2)."""
    if not 0 <= old <= new or any(len(one) != HASH for one in (old_root, new_root, *proof)):
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY
    rest = list(proof) if old & (old - 1) else [old_root, *proof]
    if not rest:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place >>= 1
        last >>= 1
    before = after = rest[0]
    for sibling in rest[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while place & 1 == 0 and place:
                place >>= 1
                last >>= 1
        else:
            after = node_hash(after, sibling)
        place >>= 1
        last >>= 1
    return last == 0 and before == old_root and after == new_root
