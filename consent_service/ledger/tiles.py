"""The nodes of a stored tree, by tiles of 256 hashes (c2sp.org/tlog-tiles): full ones are kept, others are worked out.

A tile at level L holds the hashes of nodes at level 8 · L of the tree; the seven levels between are hashed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from consent_service import db
from consent_service.ledger import tree

WIDTH = 256
LEVELS = 8
"""Of tiles that a tree can have whose size is a bigint."""
_HEIGHT = 8
T = TypeVar("T")


class EntryRow(msgspec.Struct, frozen=True):
    """An entry and its place."""

    idx: int
    entry: bytes


class TileRow(msgspec.Struct, frozen=True):
    """A full tile."""

    level: int
    n: int
    hashes: bytes


class RootRow(msgspec.Struct, frozen=True):
    """What stands for a full tile in the level above."""

    n: int
    root: bytes


class Count(msgspec.Struct, frozen=True):
    """How many tiles are stored."""

    tiles: int


class Place(NamedTuple):
    """Which tile."""

    level: int
    n: int


_READ_ENTRIES = db.many("ledger", "read_entries", EntryRow)
_READ_TILES = db.many("ledger", "read_tiles", TileRow)
_READ_ROOTS = db.many("ledger", "read_roots", RootRow)
_ADD_TILE = db.execute("ledger", "add_tile")
_COUNT_TILES = db.one("ledger", "count_tiles", Count)


def width(place: Place, size: int) -> int:
    """How many hashes the tile has in a tree of that size; 0: it has none."""
    return max(0, min(WIDTH, (size >> (_HEIGHT * place.level)) - place.n * WIDTH))


async def entries(connection: db.Connection, log_id: int, first: int, end: int) -> list[bytes]:
    """The entries from `first` up to but without `end`.

    Raises:
        LookupError: the database does not have them all, though it should.
    """
    rows = await _READ_ENTRIES(connection, log_id, first, end)
    if len(rows) < end - first:
        raise LookupError(f"entries are missing between {first} and {end}")
    return [row.entry for row in rows]


async def read(connection: db.Connection, log_id: int, place: Place, wide: int) -> list[bytes]:
    """The first `wide` hashes of a tile.

    Raises:
        LookupError: the database does not have them all, though it should.
    """
    rows = await _READ_TILES(connection, log_id, [place.level], [place.n])
    if rows:
        return _apart(rows[0].hashes)[:wide]
    first = place.n * WIDTH
    if place.level == 0:
        return [tree.leaf_hash(entry) for entry in await entries(connection, log_id, first, first + wide)]
    below = place.level - 1
    known = {row.n: row.root for row in await _READ_ROOTS(connection, log_id, below, first, first + wide)}
    return [
        known.get(n) or tile_root(await read(connection, log_id, Place(below, n), WIDTH))
        for n in range(first, first + wide)
    ]


async def store(connection: db.Connection, log_id: int, size: int) -> None:
    """Keep the tiles that a tree of that size has full and that are not kept yet, the lower ones first."""
    level, full = 0, size // WIDTH
    while full:
        row = await _COUNT_TILES(connection, log_id, level)
        for n in range(0 if row is None else row.tiles, full):
            hashes = await read(connection, log_id, Place(level, n), WIDTH)
            await _ADD_TILE(connection, log_id, level, n, tile_root(hashes), b"".join(hashes))
        level, full = level + 1, full // WIDTH


async def proved(connection: db.Connection, log_id: int, size: int, proof: Callable[[tree.Nodes], T]) -> T:
    """What `proof` makes of the nodes of the tree with the first `size` leaves.

    It is asked twice: first which nodes it wants, which does not depend on what they are.
    """
    wanted: dict[Place, None] = {}

    def note(level: int, place: int) -> bytes:
        wanted[_place(level, place)] = None
        return tree.EMPTY

    proof(note)
    found = {place: await read(connection, log_id, place, width(place, size)) for place in wanted}
    return proof(lambda level, place: _node(found[_place(level, place)], level, place))


async def prove(connection: db.Connection, log_id: int, index: int, size: int) -> tuple[bytes, list[bytes]]:
    """The root of a tree, and the proof that the leaf at `index` is in it."""

    def both(node: tree.Nodes) -> tuple[bytes, list[bytes]]:
        return tree.root(size, node), tree.inclusion_proof(index, size, node)

    return await proved(connection, log_id, size, both)


def _place(level: int, place: int) -> Place:
    """The tile that a node is hashed from."""
    within = _HEIGHT - level % _HEIGHT  # so many levels of the tile lie above the node
    return Place(level // _HEIGHT, place >> within)


def _node(hashes: list[bytes], level: int, place: int) -> bytes:
    count = 1 << (level % _HEIGHT)
    first = (place * count) % WIDTH
    return tile_root(hashes[first : first + count])


def tile_root(hashes: list[bytes]) -> bytes:
    """The node above hashes whose number is a power of two."""
    while len(hashes) > 1:
        hashes = [tree.node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def _apart(raw: bytes) -> list[bytes]:
    return [raw[at : at + tree.HASH] for at in range(0, len(raw), tree.HASH)]
