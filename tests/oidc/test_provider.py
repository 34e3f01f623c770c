"""Tokens of a real OpenID provider, through its rotations and outages; nothing on our side is replaced."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from consent_service.errors import Unauthenticated, Unavailable
from consent_service.tokens import Jwks, Verifier, demand_assurance, fetch_keys, keys

from .conftest import CLIENT, MACHINES, OFFICE, PEOPLE, Provider


class Clock:
    """Monotonic time that can be moved on."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """The real fetch, and how often it was asked."""

    def __init__(self) -> None:
        self.count = 0
        self.ended: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self, uri: str) -> bytes:
        self.count += 1
        try:
            return await fetch_keys(uri)
        finally:
            self.ended.put_nowait(None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
async def jwks(clock: Clock, counted: Counted) -> AsyncIterator[Jwks]:
    made = Jwks(counted, clock)
    yield made
    await made.close()


@pytest.fixture
def verifier(jwks: Jwks) -> Verifier:
    return Verifier(jwks)


async def test_an_id_token_is_whose_it_says(provider: Provider, verifier: Verifier) -> None:
    token = await provider.id_token("ada", "the nonce of this login")
    claims = await verifier.id_token(token, provider.issuers, nonce="the nonce of this login")
    assert (claims.identity, claims.client, claims.issuer) == (f"{provider.url}|ada", CLIENT, provider.login)
    with pytest.raises(Unauthenticated):
        await verifier.id_token(token, provider.issuers, nonce="the nonce of another login")
    for other in (verifier.access_token, verifier.logout_token):
        with pytest.raises(Unauthenticated):
            await other(token, provider.issuers)


async def test_a_person_calls(provider: Provider, verifier: Verifier) -> None:
    token = await provider.access_token("ada")
    claims = await verifier.access_token(token, provider.issuers)
    assert (claims.identity, claims.audience, claims.client) == (f"{provider.url}|ada", PEOPLE, CLIENT)
    assert (claims.scopes, claims.roles) == ({"check"}, frozenset())
    assert verifier.known(token) is claims


async def test_a_machine_calls(provider: Provider, verifier: Verifier) -> None:
    claims = await verifier.access_token(await provider.machine_token("check state"), provider.issuers)
    assert (claims.sub, claims.client, claims.audience) == ("machine", "machine", MACHINES)
    assert claims.scopes == {"check", "state"}
    assert claims.issuer == provider.service


async def test_an_officer_calls(provider: Provider, verifier: Verifier) -> None:
    olga = await verifier.access_token(await provider.access_token("olga", OFFICE), provider.issuers)
    assert (olga.roles, demand_assurance(olga)) == ({"admin"}, {"admin"})
    ada = await verifier.access_token(await provider.access_token("ada", OFFICE), provider.issuers)
    assert ada.roles == frozenset()


async def test_a_token_is_for_one_audience(provider: Provider, verifier: Verifier) -> None:
    token = await provider.access_token("ada", PEOPLE)
    with pytest.raises(Unauthenticated):
        await verifier.access_token(token, [provider.service, provider.officer])
    assert (await verifier.access_token(token, provider.issuers)).sub == "ada"


async def test_a_logout_reaches_us(provider: Provider, verifier: Verifier) -> None:
    claims = await verifier.logout_token(await provider.logout_token("ada"), provider.issuers)
    assert (claims.sub, claims.client) == ("ada", CLIENT)
    assert claims.sid
    assert claims.jti


async def test_a_new_key_is_found_at_once(provider: Provider, verifier: Verifier, counted: Counted) -> None:
    before = await provider.access_token("ada")
    await verifier.access_token(before, provider.issuers)
    await provider.rotate(retire=False)
    after = await provider.access_token("ada")
    assert (await verifier.access_token(after, provider.issuers)).sub == "ada"
    assert counted.count == 2
    assert verifier.known(before) is not None, "the old key is still published"


async def test_a_retired_key_is_dropped(provider: Provider, verifier: Verifier, counted: Counted, clock: Clock) -> None:
    before = await provider.access_token("ada")
    await verifier.access_token(before, provider.issuers)
    await provider.rotate()
    assert verifier.known(before) is not None, "nobody has told us yet"
    clock.now += keys.REFRESH_S
    again = await provider.access_token("ada")
    assert (await verifier.access_token(again, provider.issuers)).sub == "ada"
    assert counted.count == 2
    assert verifier.known(before) is None
    with pytest.raises(Unauthenticated):
        await verifier.access_token(before, provider.issuers)


async def test_an_outage_is_survived(provider: Provider, verifier: Verifier, clock: Clock, counted: Counted) -> None:
    first, second = await provider.access_token("ada"), await provider.access_token("ada")
    await verifier.access_token(first, provider.issuers)
    await provider.stop()
    try:
        clock.now += keys.REFRESH_S
        assert (await verifier.access_token(second, provider.issuers)).sub == "ada"
        async with asyncio.timeout(10):
            await counted.ended.get()
            await counted.ended.get()  # in vain
        assert counted.count == 2
        without_keys = Jwks()
        with pytest.raises(Unavailable):
            await Verifier(without_keys).access_token(first, provider.issuers)
        await without_keys.close()
    finally:
        await provider.start()
    clock.now += keys.ASK_AGAIN_S
    token = await provider.id_token("ada", nonce := uuid.uuid4().hex)
    assert (await verifier.id_token(token, provider.issuers, nonce=nonce)).sub == "ada"
