"""What is published, read as a mirror or monitor would: over HTTP, by the rules of c2sp.org/tlog-tiles alone."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Tenant
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_exports import owner

from consent_service import db, tenants
from consent_service.ledger import mirror, tree
from consent_service.ledger.anchor import FileAnchor
from consent_service.ledger.entry import PolicyApplied, system
from consent_service.ledger.head import append, lock_head, read_head
from consent_service.ledger.note import Checkpoint, Verifier, read
from consent_service.ledger.outside import Outside
from consent_service.ledger.publish import Publisher
from consent_service.ledger.tiles import Place
from consent_service.policies import Policy, store

__all__ = ["owner"]

WEB = {"purpose": "analytics", "status": "given", "channel": "web"}


@pytest.fixture
def publisher(tenant: Tenant, tmp_path: Path) -> Publisher:
    return Publisher(tenant.services.ledgers, Outside(FileAnchor(tmp_path / "anchor")), every_s=0)


async def verifiers(tenant: Tenant) -> tuple[Verifier, ...]:
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        return (await ledger.log(connection, await read_head(connection, tenant.log_id))).verifiers


async def grow(tenant: Tenant, count: int) -> None:
    """So many entries more, of no person."""
    for at in range(0, count, 5_000):
        async with tenant.services.ledgers.of(tenant.log_id).connection() as connection, connection.transaction():
            tip = await lock_head(connection, tenant.log_id)
            some = range(tip.size, tip.size + min(5_000, count - at))
            made = [system(PolicyApplied(at=tip.now, version=n, sha256="0")) for n in some]
            await append(connection, tenant.log_id, tip, made, tip.now)


async def get(tenant: Tenant, path: str, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {tenant.keys[key]}"}
    return await tenant.http.get(f"/ledger/{tenant.slug}/{path}", headers=headers)


def number(n: int) -> str:
    """As in the specification: by threes, all but the last with an x."""
    text = f"{n % 1000:03}"
    while n >= 1000:
        n //= 1000
        text = f"x{n % 1000:03}/{text}"
    return text


def address(level: int | str, n: int, size: int) -> str:
    wide = min(256, (size >> (8 * level if isinstance(level, int) else 0)) - 256 * n)
    return f"tile/{level}/{number(n)}" + ("" if wide == 256 else f".p/{wide}")


async def mirrored(tenant: Tenant) -> tuple[Checkpoint, list[bytes]]:
    """The whole log, read and checked by its published side alone."""
    answer = await get(tenant, "checkpoint")
    assert answer.status_code == 200, answer.text
    checkpoint = Checkpoint.parse(read(answer.text, await verifiers(tenant)).text)
    entries: list[bytes] = []
    for n in range(-(-checkpoint.size // 256)):
        body = (await get(tenant, address("entries", n, checkpoint.size))).content
        while body:
            length = int.from_bytes(body[:2], "big")
            entries.append(body[2 : 2 + length])
            body = body[2 + length :]
    leaves = [tree.leaf_hash(entry) for entry in entries]
    assert tree.Frontier().grown(leaves).root == checkpoint.root
    hashes, level = leaves, 0
    while hashes:
        shown = [(await get(tenant, address(level, n, checkpoint.size))).content for n in range(-(-len(hashes) // 256))]
        assert b"".join(shown) == b"".join(hashes)
        full = [hashes[at : at + 256] for at in range(0, len(hashes) - 255, 256)]
        hashes, level = [tree.Frontier().grown(one).root for one in full], level + 1
    return checkpoint, entries


async def test_a_mirror_gets_the_whole_log(tenant: Tenant, publisher: Publisher) -> None:
    for more in (1, 254, 1, 300, 70_000):
        await grow(tenant, more)
        assert await publisher.publish(tenant.log_id)
        checkpoint, entries = await mirrored(tenant)
        assert checkpoint.size == len(entries)


async def test_what_is_not_published_is_not_shown(tenant: Tenant, publisher: Publisher) -> None:
    assert (await get(tenant, "checkpoint")).status_code == 404
    assert (await get(tenant, "tile/0/000.p/1")).status_code == 404
    await publisher.publish(tenant.log_id)
    before = (await mirrored(tenant))[0]
    await grow(tenant, 1)
    assert (await mirrored(tenant))[0] == before
    assert (await get(tenant, address(0, 0, before.size + 1))).status_code == 404
    await publisher.publish(tenant.log_id)
    assert (await mirrored(tenant))[0].size == before.size + 1


@pytest.mark.parametrize(
    "path",
    ["0/000", "0/000.p/256", "0/000.p/0", "0/000.p/01", "0/0", "0/x000/000.p/1", "1/000.p/1", "8/000.p/1", "64/000.p/1",
     "entries/001.p/1", "entry/000.p/1", "00/000.p/1", "0/000.p/1/2", "0/000/1", "0/x001/x234/067.p/1",
     "0//000.p/1", "0/x999/x999/x999/x999/x999/999.p/1"],
)  # fmt: skip
async def test_a_tile_that_there_is_not_is_not_found(tenant: Tenant, publisher: Publisher, path: str) -> None:
    await publisher.publish(tenant.log_id)
    assert (await get(tenant, "tile/0/000.p/1")).status_code == 200
    assert (await get(tenant, f"tile/{path}")).status_code == 404


@given(st.integers(0, 63), st.integers(0, 10**15), st.integers(1, 256))
def test_an_address_names_one_tile(level: int, n: int, wide: int) -> None:
    path = f"/{level}/{number(n)}" + ("" if wide == 256 else f".p/{wide}")
    assert mirror._parse(path) == ((Place(level, n), wide) if level < 8 else None)


async def test_a_tile_is_kept_and_a_checkpoint_is_not(tenant: Tenant, publisher: Publisher) -> None:
    await publisher.publish(tenant.log_id)
    tile, checkpoint = await get(tenant, "tile/0/000.p/1"), await get(tenant, "checkpoint")
    assert tile.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert tile.headers["content-type"] == "application/octet-stream"
    assert checkpoint.headers["cache-control"] == "no-cache"
    assert checkpoint.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_tile_of_which_a_part_is_lost_is_not_shown(
    tenant: Tenant, publisher: Publisher, owner: db.Pool
) -> None:
    """A part would be taken for the whole, and kept for ever."""
    await grow(tenant, 3)
    await publisher.publish(tenant.log_id)
    async with db.connection(owner, tenant.log_id) as connection:
        await connection.execute("DELETE FROM ledger_entry WHERE log_id = $1 AND idx = 1", tenant.log_id)
    for path in ("tile/entries/000.p/3", "tile/0/000.p/3"):
        answer = await get(tenant, path)
        assert (answer.status_code, answer.headers["cache-control"]) == (500, "no-store")


async def test_a_ledger_is_shown_to_everybody_or_to_its_auditors(
    make_tenant: Any, tenant: Tenant, demo_policy: Policy, publisher: Publisher
) -> None:
    closed: Tenant = await make_tenant.make(demo_policy)
    policy = replace(demo_policy, tenant=replace(demo_policy.tenant, public_ledger=False))
    async with closed.services.ledgers.of(closed.log_id).connection() as connection:
        await tenants.apply_policy(connection, closed.log_id, store.Policies(), policy)
    await publisher.publish(closed.log_id)
    await publisher.publish(tenant.log_id)
    for path in ("checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1"):
        assert (await get(tenant, path)).status_code == 200
        assert (await get(closed, path)).status_code == 404
        assert (await get(closed, path, "dpo")).status_code == 200
        assert (await get(closed, path, "publishable")).status_code == 404
        stranger = {"Authorization": f"Bearer {tenant.keys['dpo']}"}
        unknown = await tenant.http.get(f"/ledger/{uuid.uuid4().hex}/{path}", headers=stranger)
        foreign = await tenant.http.get(f"/ledger/{closed.slug}/{path}", headers=stranger)
        assert (foreign.status_code, foreign.json()) == (404, unknown.json())
    assert (await get(closed, "tile/0/000.p/1", "dpo")).headers["cache-control"].startswith("private")


async def test_no_number_of_a_tile_is_too_long(tenant: Tenant) -> None:
    """Longer than Python reads as a number, and no address of a tile."""
    assert (await get(tenant, "tile/0/" + "x001/" * 1_600 + "001")).status_code == 404
