"""Keys: made, rotated without downtime, revoked at once, their use noted; on the real database and through the app."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from conftest import SECRET, Tenant, Tenants

from consent_service import app, auth, db, keys
from consent_service.auth import Credential, Keyring
from consent_service.errors import Invalid, NotFound, SetupError, Unauthenticated, Unavailable
from consent_service.keys import Issued
from consent_service.policies import Policy, store

ROOT = SECRET.encode()
SHOP = "https://shop.example"


def credential(tenant: Tenant, **changes: Any) -> Credential:
    one = Credential(tenant.log_id, "shop", "service", "shop", frozenset({"check"}), frozenset(), None)
    return msgspec.structs.replace(one, **changes)


@asynccontextmanager
async def keyring(pool: db.Pool) -> AsyncIterator[Keyring]:
    """A keyring of its own, as another process has one."""
    ring = Keyring(pool, ROOT)
    try:
        yield ring
    finally:
        await ring.close()


async def on(tenant: Tenant, act: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        return await act(connection, *args)


async def make(tenant: Tenant, **changes: Any) -> str:
    key, _ = await on(tenant, keys.create_key, ROOT, credential(tenant, **changes))
    return key


async def rotate(tenant: Tenant, name: str = "shop") -> str:
    key, _ = await on(tenant, keys.add_second_key, ROOT, tenant.log_id, name)
    return key


async def listed(tenant: Tenant, name: str = "shop") -> Issued:
    return next(one for one in await on(tenant, keys.list_keys, tenant.log_id) if one.id == name)


async def row(tenant: Tenant, name: str = "shop") -> dict[str, Any]:
    """The whole row, and `xmin`: another one after each write."""
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        sql = "SELECT xmin::text, * FROM credential WHERE log_id = $1 AND id = $2"
        return dict(await connection.fetchrow(sql, tenant.log_id, name))


async def status(tenant: Tenant, key: str) -> int:
    body = b'{"subject": {"type": "login", "id": "ada"}, "purpose": "marketing.email"}'
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return (await tenant.http.post("/v1/check", content=body, headers=headers)).status_code


async def refused_within(seconds: float, ask: Callable[[], Awaitable[bool]]) -> float:
    """How long it took until it was refused."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while await ask():  # noqa: ASYNC110 -- another process would not tell us either
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def opens(ring: Keyring, key: str) -> bool:
    try:
        await ring.authenticate(key)
    except Unauthenticated:
        return False
    return True


# -- making ---------------------------------------------------------------------------------------------------------


async def test_a_key_is_made_and_works(tenant: Tenant):
    wanted = credential(tenant, rate=50)
    key, issued = await on(tenant, keys.create_key, ROOT, wanted)
    assert (issued.id, issued.kind, issued.scopes, issued.rate, issued.secrets) == ("shop", "service", ["check"], 50, 1)
    assert (issued.last_used_at, issued.revoked_at) == (None, None)
    assert await status(tenant, key) == 200
    async with keyring(tenant.services.pool) as ring:
        assert await ring.authenticate(key) == wanted
        assert ring.known(key) == wanted


async def test_a_taken_id_is_refused_and_what_is_there_stays(tenant: Tenant):
    key = await make(tenant)
    before = await row(tenant)
    with pytest.raises(Invalid, match="`shop` is taken"):
        await make(tenant, name="another")
    await on(tenant, keys.revoke, ROOT, tenant.log_id, "shop")
    with pytest.raises(Invalid, match="`shop` is taken"):
        await make(tenant)
    assert (await row(tenant))["secrets"] == before["secrets"]
    assert not await opens(Keyring(tenant.services.pool, ROOT), key)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"id": ""}, "/id"),
        ({"id": "Shop"}, "/id"),
        ({"id": "shop_1"}, "/id"),
        ({"id": "-shop"}, "/id"),
        ({"id": "shop\n"}, "/id"),
        ({"id": "s" * 33}, "/id"),
        ({"name": ""}, "/name"),
        ({"name": " shop"}, "/name"),
        ({"name": "a\x1b[2J"}, "/name"),
        ({"name": "\udcff"}, "/name"),
        ({"name": "n" * 101}, "/name"),
        ({"rate": 0}, "/rate"),
        ({"rate": -1}, "/rate"),
        ({"rate": 2**31}, "/rate"),
        ({"kind": "publishable", "scopes": frozenset({"write:attested"})}, "/scopes"),
        ({"kind": "publishable", "scopes": frozenset({"write:device", "export"})}, "/scopes"),
        ({"origins": frozenset({SHOP})}, "/origins"),
    ],
)
async def test_an_unsound_credential_is_refused(tenant: Tenant, changes: dict[str, Any], pointer: str):
    with pytest.raises(Invalid) as caught:
        await make(tenant, **changes)
    assert [error.pointer for error in caught.value.errors] == [pointer]
    assert {one.id for one in await on(tenant, keys.list_keys, tenant.log_id)} == set(tenant.keys)


ORIGINS = {
    True: (
        SHOP, "http://localhost:3000", "http://127.0.0.1:8080", "https://xn--bcher-kva.example", "http://[::1]:8080",
        "https://a-b.c_d.example:8443", "capacitor://localhost", "https://localhost:80", "http://intranet",
    ),
    False: (
        "", "null", "*", "shop.example", "https://", "https://shop.example/", "https://shop.example/cart",
        "https://Shop.example", "HTTPS://shop.example", "https://*.example", "https://shop.example:443",
        "http://shop.example:80", "https://shop.example:0", "https://shop.example:08443", "https://shop.example:65536",
        "https://shop.example:", "https://shop.example.", "https://.example", "https://user@shop.example",
        "https://shop.example?x", "https://shop.example#x", " https://shop.example", "https://shop.example\n",
        "https://bücher.example", "https://127.1", "https://300.1.1.1", "http://[::0001]", "http://[1.2.3.4]",
        "http://[:::]", "https://" + "a" * 250, "\udcff",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("origin", "sound"), [(origin, sound) for sound, group in ORIGINS.items() for origin in group], ids=ascii
)
def test_an_origin_is_what_browsers_send(origin: str, sound: bool):
    wanted = Credential(1, "web", "publishable", "web", frozenset({"write:device"}), frozenset({SHOP, origin}), None)
    if sound:
        keys.demand_sound(wanted)
        return
    with pytest.raises(Invalid) as caught:
        keys.demand_sound(wanted)
    (error,) = caught.value.errors
    assert error.pointer == "/origins"
    assert error.detail.startswith(ascii(origin))  # which of them it is, in a form that can be printed anywhere
    msgspec.json.encode(error)


def test_everything_wrong_is_told_at_once():
    with pytest.raises(Invalid) as caught:
        keys.demand_sound(Credential(1, "", "publishable", "", auth.SCOPES, frozenset({"*"}), 0))
    assert {error.pointer for error in caught.value.errors} == {"/id", "/name", "/rate", "/scopes", "/origins"}


# -- verifying ------------------------------------------------------------------------------------------------------


async def test_what_is_no_key_or_not_this_one_is_refused(tenant: Tenant):
    key = await make(tenant)
    body = key.removeprefix(f"sk_{tenant.log_id}_shop_")
    async with keyring(tenant.services.pool) as ring:
        assert await opens(ring, key)
        for wrong in (
            key[:-1] + ("A" if key[-1] != "A" else "B"),
            f"pk_{tenant.log_id}_shop_{body}",
            f"sk_{tenant.log_id + 1}_shop_{body}",
            f"sk_{tenant.log_id}_dpo_{body}",
            f"sk_{tenant.log_id}_nobody_{body}",
            f"sk_999999999_shop_{body}",
            key + "\n", body, "",
        ):  # fmt: skip
            assert not await opens(ring, wrong)
    assert not await opens(Keyring(tenant.services.pool, b"another root secret"), key)


@pytest.mark.parametrize("which", ["unknown", "revoked", "wrong", "right", "rotated"])
async def test_every_answer_compares(tenant: Tenant, monkeypatch: pytest.MonkeyPatch, which: str):
    """An id that is not there must not answer sooner than one that is."""
    key = await make(tenant)
    if which == "unknown":
        key = key.replace("_shop_", "_pohs_")
    elif which == "wrong":
        key = key[:-1] + ("A" if key[-1] != "A" else "B")
    elif which == "revoked":
        await on(tenant, keys.revoke, ROOT, tenant.log_id, "shop")
    elif which == "rotated":
        await rotate(tenant)
    compared = []
    compare = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    async with keyring(tenant.services.pool) as ring:
        monkeypatch.setattr(auth.hmac, "compare_digest", spy)
        assert await opens(ring, key) is (which in ("right", "rotated"))
    assert compared == [(32, 32)] * (2 if which == "rotated" else 1)


# -- rotation -------------------------------------------------------------------------------------------------------


async def test_rotation_without_downtime(tenant: Tenant):
    old = await make(tenant)
    assert await status(tenant, old) == 200
    new = await rotate(tenant)
    assert new != old
    assert (await listed(tenant)).secrets == 2
    async with keyring(tenant.services.pool) as other:
        for key in (old, new):
            assert await status(tenant, key) == 200
            assert await opens(other, key)
        assert await other.authenticate(old) == await other.authenticate(new) == credential(tenant)
        with pytest.raises(Invalid, match=r"two keys already.*revoke --old shop"):
            await rotate(tenant)
        assert await opens(other, old)  # read a moment ago, so that the wait below is seen

        assert (await on(tenant, keys.drop_old_key, ROOT, tenant.log_id, "shop")).secrets == 1
        await refused_within(auth.FRESH_S + 0.5, lambda: opens(other, old))
        assert await status(tenant, old) == 401
        assert await opens(other, new)
    assert await status(tenant, new) == 200
    with pytest.raises(Invalid, match="one key only"):
        await on(tenant, keys.drop_old_key, ROOT, tenant.log_id, "shop")
    third = await rotate(tenant)
    assert [await status(tenant, key) for key in (new, third)] == [200, 200]


async def test_a_rotation_keeps_what_records_know_the_credential_by(tenant: Tenant, person: dict[str, str]):
    """The same idempotency key by the old and the new key is the same act."""
    first = await tenant.record({"purpose": "marketing.email", "status": "given"}, subject=person, id="order-1")
    tenant.keys["service"] = await rotate(tenant, "service")
    again = await tenant.record({"purpose": "marketing.email", "status": "given"}, subject=person, id="order-1")
    assert first.status_code == 201
    assert again.json()["event"] == first.json()["event"]


async def test_two_rotations_at_once_are_one(tenant: Tenant):
    await make(tenant)
    outcomes = await asyncio.gather(*(rotate(tenant) for _ in range(4)), return_exceptions=True)
    assert [type(one) for one in outcomes if not isinstance(one, str)] == [Invalid] * 3
    assert (await listed(tenant)).secrets == 2


# -- revocation -----------------------------------------------------------------------------------------------------


async def test_a_revocation_is_obeyed_by_every_keyring_in_time(tenant: Tenant):
    key, sibling = await make(tenant), await rotate(tenant)
    async with keyring(tenant.services.pool) as other:
        assert await opens(other, key)
        assert await status(tenant, key) == 200
        issued, was_live = await on(tenant, keys.revoke, ROOT, tenant.log_id, "shop")
        assert was_live
        assert issued.revoked_at is not None
        assert other.known(key), "the control: what was read a moment ago is still believed"
        took = await refused_within(auth.FRESH_S + 0.5, lambda: opens(other, key))
        assert took <= auth.FRESH_S + 0.2
        assert not await opens(other, sibling)
    await refused_within(auth.FRESH_S + 0.5, lambda: _passes(tenant, key))
    assert await status(tenant, sibling) == 401


async def _passes(tenant: Tenant, key: str) -> bool:
    return await status(tenant, key) == 200


async def test_revoked_is_for_good(tenant: Tenant):
    await make(tenant)
    first, was_live = await on(tenant, keys.revoke, ROOT, tenant.log_id, "shop")
    assert was_live
    again, was_live = await on(tenant, keys.revoke, ROOT, tenant.log_id, "shop")
    assert not was_live
    assert again == first
    for act, args in ((keys.add_second_key, (ROOT,)), (keys.drop_old_key, (ROOT,))):
        with pytest.raises(Invalid, match="was revoked on"):
            await on(tenant, act, *args, tenant.log_id, "shop")


async def test_another_tenants_key_is_not_there(tenant: Tenant, make_tenant: Tenants, demo_policy: Policy):
    other = await make_tenant.make(demo_policy)
    key = await make(other)
    before = await row(other)
    for log_id in (tenant.log_id, other.log_id):  # the second: a statement that names the other ledger outright
        for act, args in ((keys.add_second_key, (ROOT,)), (keys.drop_old_key, (ROOT,)), (keys.revoke, (ROOT,))):
            with pytest.raises(NotFound, match=r"no key with that id|no such tenant"):
                await on(tenant, act, *args, log_id, "shop")
    assert await on(tenant, keys.list_keys, other.log_id) == []
    with pytest.raises(NotFound, match="no such tenant"):
        await on(tenant, keys.create_key, ROOT, credential(other, id="mine"))
    assert await row(other) == before
    assert await status(other, key) == 200


async def test_the_list_tells_everything_but_the_secrets(tenant: Tenant):
    key = await make(tenant, kind="publishable", scopes=frozenset({"write:device"}), origins=frozenset({SHOP}), rate=9)
    new = await rotate(tenant)
    found = await on(tenant, keys.list_keys, tenant.log_id)
    assert [one.id for one in found] == [*tenant.keys, "shop"]
    assert (found[-1].kind, found[-1].origins, found[-1].rate, found[-1].secrets) == ("publishable", [SHOP], 9, 2)
    told = msgspec.json.encode(found).decode() + repr(found)
    stored = (await row(tenant))["secrets"]
    assert len(stored) == 2
    for secret in (key[-43:], new[-43:], *(one.hex() for one in stored), *map(repr, stored)):
        assert secret not in told


# -- keys that are kept over restarts ---------------------------------------------------------------------------------


async def kept(tenant: Tenant, key: str | None, **changes: Any) -> str:
    return await on(tenant, keys.add_key, ROOT, credential(tenant, **changes), key)


async def test_a_restart_keeps_the_key_and_learns_another_origin(tenant: Tenant):
    web = {"kind": "publishable", "scopes": frozenset({"write:device"})}
    key = await kept(tenant, None, **web, origins=frozenset({SHOP}))
    assert await kept(tenant, key, **web, origins=frozenset({"http://localhost:3000"}), name="web", rate=5) == key
    issued = await listed(tenant)
    assert set(issued.origins) == {SHOP, "http://localhost:3000"}
    assert (issued.name, issued.rate, issued.secrets) == ("web", 5, 1)
    assert await opens(Keyring(tenant.services.pool, ROOT), key)


async def test_a_restart_undoes_no_rotation(tenant: Tenant):
    old = await kept(tenant, None)
    new = await rotate(tenant)
    both = (await row(tenant))["secrets"]
    await kept(tenant, old)
    assert (await row(tenant))["secrets"] == both
    assert [await status(tenant, key) for key in (old, new)] == [200, 200]

    await on(tenant, keys.drop_old_key, ROOT, tenant.log_id, "shop")
    before = await row(tenant)
    await kept(tenant, old, name="another", rate=1)
    assert await row(tenant) == before
    async with keyring(tenant.services.pool) as ring:
        assert not await opens(ring, old)
        assert await opens(ring, new)


@pytest.mark.parametrize("lost", [False, True])
async def test_a_restart_undoes_no_revocation(tenant: Tenant, lost: bool):
    key = await kept(tenant, None)
    await on(tenant, keys.revoke, ROOT, tenant.log_id, "shop")
    before = await row(tenant)
    again = await kept(tenant, None if lost else key, name="another")
    assert await row(tenant) == before
    async with keyring(tenant.services.pool) as ring:
        assert not await opens(ring, again)


async def test_whoever_lost_a_key_gets_one_that_joins_the_newest(tenant: Tenant):
    first = await kept(tenant, None)
    second = await kept(tenant, None)
    third = await kept(tenant, None)
    assert (await listed(tenant)).secrets == 2
    async with keyring(tenant.services.pool) as ring:
        assert [await opens(ring, key) for key in (first, second, third)] == [False, True, True]


async def test_a_publishable_key_never_attests(tenant: Tenant):
    with pytest.raises(SetupError, match="cannot attest"):
        await kept(tenant, None, kind="publishable", scopes=frozenset({"write:attested"}))


# -- last used --------------------------------------------------------------------------------------------------------


async def noted(ring: Keyring) -> None:
    if ring._noting is not None:
        await ring._noting


async def test_use_is_written_once_however_often_a_key_is_used(tenant: Tenant):
    key = await make(tenant)
    async with keyring(tenant.services.pool) as ring:
        await ring.authenticate(key)
        await noted(ring)
        first = await row(tenant)
        assert first["last_used_at"] is not None
        for _ in range(1_000):
            ring._known.clear()  # each asks the database
            await ring.authenticate(key)
            await noted(ring)
        assert await row(tenant) == first
        async with keyring(tenant.services.pool) as other:
            await other.authenticate(key)
            assert other._noting is None, "what it read says that somebody has done it"
            other._note((tenant.log_id, "shop"))  # the statement itself holds back as well
            await noted(other)
        assert await row(tenant) == first


async def test_use_is_written_again_after_a_minute(tenant: Tenant):
    key = await make(tenant)
    async with keyring(tenant.services.pool) as ring:
        await ring.authenticate(key)
        await noted(ring)
        await _age(tenant)
        ring._known.clear()
        await ring.authenticate(key)
        await noted(ring)
        aged = await row(tenant)
        assert aged["last_used_at"] < (await listed(tenant)).created_at, "this process has done it within the minute"
        ring._noted = {who: at - auth._NOTE_EVERY_S for who, at in ring._noted.items()}
        ring._known.clear()
        await ring.authenticate(key)
        await noted(ring)
        assert (await row(tenant))["last_used_at"] > aged["created_at"]


async def _age(tenant: Tenant) -> None:
    """Let the last use be 61 seconds ago."""
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        sql = "UPDATE credential SET last_used_at = last_used_at - interval '61 s' WHERE log_id = $1 AND id = 'shop'"
        await connection.execute(sql, tenant.log_id)


async def test_use_is_noted_through_the_app(tenant: Tenant):
    key = await make(tenant)
    assert (await listed(tenant)).last_used_at is None
    assert await status(tenant, key) == 200
    await noted(tenant.services.keyring)
    issued = await listed(tenant)
    assert issued.last_used_at is not None
    assert issued.last_used_at >= issued.created_at


async def test_a_refused_key_is_not_used(tenant: Tenant):
    key = await make(tenant)
    async with keyring(tenant.services.pool) as ring:
        assert not await opens(ring, key[:-1] + ("A" if key[-1] != "A" else "B"))
        assert ring._noting is None
    assert (await listed(tenant)).last_used_at is None


async def test_a_row_that_somebody_holds_is_not_waited_for(tenant: Tenant):
    key = await make(tenant)
    async with (
        keyring(tenant.services.pool) as ring,
        db.connection(tenant.services.pool, tenant.log_id) as connection,
        keys._hold(connection, ROOT, tenant.log_id, "shop"),
        asyncio.timeout(0.9),
    ):
        await ring.authenticate(key)
        await noted(ring)
    assert (await listed(tenant)).last_used_at is None


async def test_a_note_that_fails_fails_no_request(tenant: Tenant, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    key = await make(tenant)

    async def fail(*_: Any) -> None:
        raise asyncpg.ReadOnlySQLTransactionError(f"cannot write {key}")

    async with keyring(tenant.services.pool) as ring:
        with monkeypatch.context() as broken:
            broken.setattr(auth, "_NOTE", fail)
            assert await opens(ring, key)
            await noted(ring)
        (line,) = [msgspec.json.decode(one) for one in capsys.readouterr().err.splitlines()]
        assert (line["event"], line["level"], line["error"]) == (
            "use of a key not noted", "warning", "Unavailable from ReadOnlySQLTransactionError"
        )  # fmt: skip
        assert (line["log_id"], line["credential"]) == (tenant.log_id, "shop")
        assert key not in str(line)
        assert (await listed(tenant)).last_used_at is None
        ring._noted.clear()  # a minute later
        ring._known.clear()
        assert await opens(ring, key)
        await noted(ring)
        assert (await listed(tenant)).last_used_at is not None


async def test_a_note_delays_no_request(tenant: Tenant, monkeypatch: pytest.MonkeyPatch):
    key = await make(tenant)
    ring = Keyring(tenant.services.pool, ROOT)
    stuck = asyncio.Event()

    async def wait(*_: Any) -> None:
        stuck.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(auth, "_NOTE", wait)
    async with asyncio.timeout(1):
        assert await opens(ring, key)
        await stuck.wait()
        ring._known.clear()
        assert await opens(ring, key)
    monkeypatch.setattr(auth, "_CLOSE_S", 0.1)
    async with asyncio.timeout(1):
        await ring.close()
    assert ring._noting is not None
    assert ring._noting.cancelled()


async def test_a_closed_keyring_has_written_and_writes_no_more(tenant: Tenant):
    key = await make(tenant)
    ring = Keyring(tenant.services.pool, ROOT)
    await ring.close()  # before anything was noted
    assert await opens(ring, key)
    assert ring._noting is None

    ring = Keyring(tenant.services.pool, ROOT)
    assert await opens(ring, key)
    await ring.close()
    assert (await listed(tenant)).last_used_at is not None
    await ring.close()


async def test_many_keys_are_noted_over_one_connection(tenant: Tenant):
    made = [await make(tenant, id=f"shop-{number}") for number in range(12)]
    async with keyring(tenant.services.pool) as ring:
        assert all(await asyncio.gather(*(opens(ring, key) for key in made)))
        await noted(ring)
    used = [one for one in await on(tenant, keys.list_keys, tenant.log_id) if one.id.startswith("shop-")]
    assert len(used) == 12
    assert all(one.last_used_at for one in used)


async def test_a_lost_database_is_told_and_a_known_key_lives_on(tenant: Tenant, services: app.Services):
    """Unchanged by the notes: what was verified a moment ago is served without the database."""
    key = await make(tenant)
    pool = await db.connect(str(services.pool._connect_args[0]), size=1)
    async with keyring(pool) as ring:
        assert await opens(ring, key)
        await noted(ring)
        await pool.close()
        assert ring.known(key)
        assert await ring.authenticate(key)
        ring._known.clear()
        with pytest.raises(Unavailable):
            await ring.authenticate(key)


async def test_a_generated_id_is_an_id(tenant: Tenant):
    for kind in auth.PREFIX:
        name = keys.new_id(kind)
        assert name != keys.new_id(kind)
        scopes = frozenset({"write:device"}) if kind == "publishable" else frozenset({"check"})
        assert await status(tenant, await make(tenant, id=name, kind=kind, scopes=scopes)) in (200, 403)


async def test_a_name_may_be_anything_printable(tenant: Tenant):
    name = f"Büro Süd „{uuid.uuid4().hex}“ — 店"
    await make(tenant, name=name)
    assert (await listed(tenant)).name == name


async def test_the_hash_of_one_key_lets_nobody_in_as_another(tenant: Tenant, services: app.Services):
    async with db.connection(services.pool, tenant.log_id) as connection:
        await connection.execute(
            """UPDATE credential SET secrets = (SELECT secrets FROM credential WHERE id = 'publishable')
               WHERE id = 'dpo'"""
        )
    forged = tenant.keys["publishable"].replace(f"pk_{tenant.log_id}_publishable_", f"ok_{tenant.log_id}_dpo_")
    with pytest.raises(Unauthenticated):
        await auth.Keyring(services.pool, SECRET.encode()).authenticate(forged)


async def test_what_one_tenant_wrote_among_the_issuers_keeps_out_nobody(tenant: Tenant, services: app.Services):
    async with db.connection(services.pool, tenant.log_id) as connection:
        before = await store.read_issuers(connection)
        await connection.execute("UPDATE tenant SET issuers = 'no JSON' WHERE log_id = $1", tenant.log_id)
        assert await store.read_issuers(connection) == before
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("INSERT INTO tenant (log_id, slug, issuers) VALUES (9, 'evil', '[]')")
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("INSERT INTO tenant (log_id, slug) VALUES (2147483647, 'evil')")
