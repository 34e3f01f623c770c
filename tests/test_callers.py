"""Callers with tokens: whom a logout concerns, what a revocation reaches, and for how long."""

from __future__ import annotations

import http.server
import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jwt
import msgspec
import pytest
from conftest import Tenant, Tenants
from cryptography.hazmat.primitives.asymmetric import ec

from consent_service import db, revocations, tenants
from consent_service.errors import Unavailable
from consent_service.policies import Duration, Issuer, Policy, store
from consent_service.tokens.verify import LOGOUT

CLIENT = "shop"


class Provider:
    """Publishes keys on loopback, and signs whatever a test wants with them."""

    def __init__(self, port: int, sets: dict[str, Any]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.word = uuid.uuid4().hex[:8]
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._sets = sets
        self.publish("/jwks", self.key)

    def publish(self, path: str, key: ec.EllipticCurvePrivateKey) -> str:
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        self._sets[f"/{self.word}{path}"] = {"keys": [{**jwk, "kid": "k"}]}
        return f"{self.url}/{self.word}{path}"

    @property
    def issuer(self) -> str:
        return f"{self.url}/{self.word}"

    def trusted(self, kind: Any = "login", audience: str = "api", path: str = "/jwks", **more: Any) -> Issuer:
        more = {"clients": (CLIENT,), "algorithms": ("ES256",)} | more
        jwks_uri = f"{self.issuer}{path}"
        return Issuer(issuer=self.issuer, kind=kind, audience=f"{audience}-{self.word}", jwks_uri=jwks_uri, **more)

    def access(self, audience: str = "api", **more: Any) -> str:
        now = int(time.time())
        claims = {"aud": f"{audience}-{self.word}", "client_id": CLIENT, "sub": "ada", "exp": now + 600, **more}
        return self._sign("at+jwt", claims, self.key)

    def logout(self, key: ec.EllipticCurvePrivateKey | None = None, **more: Any) -> dict[str, str]:
        now = int(time.time())
        claims = {"aud": CLIENT, "exp": now + 100, "events": {LOGOUT: {}}, **more}
        return {"logout_token": self._sign("logout+jwt", claims, key or self.key)}

    def identity(self, nonce: str, **more: Any) -> str:
        return self._sign(
            "JWT", {"aud": CLIENT, "sub": "ada", "exp": int(time.time()) + 300, "nonce": nonce, **more}, self.key
        )

    def _sign(self, kind: str, claims: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
        whole = {"iss": self.issuer, "iat": int(time.time()), "jti": uuid.uuid4().hex, **claims}
        return jwt.encode(whole, key, "ES256", headers={"typ": kind, "kid": "k"})


@pytest.fixture(scope="module")
def published() -> Iterator[tuple[int, dict[str, Any]]]:
    sets: dict[str, Any] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(sets[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], sets
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def provider(published: tuple[int, dict[str, Any]]) -> Provider:
    return Provider(*published)


def trusting(policy: Policy, *issuers: Issuer) -> Policy:
    return msgspec.structs.replace(policy, tenant=msgspec.structs.replace(policy.tenant, issuers=issuers))


def forget(tenant: Tenant) -> None:
    """As if a second had passed."""
    tenant.services.callers._known.clear()
    tenant.services.callers._trusted._read_at = float("-inf")


async def status(tenant: Tenant, provider: Provider, token: str, path: str = "/v1/check") -> int:
    """What a caller with a token is answered when it asks about Ada."""
    forget(tenant)
    subject = {"type": "login", "id": f"{provider.issuer}|ada"}
    body: dict[str, Any] = {"subject": subject}
    if path == "/v1/check":
        body |= {"purpose": "analytics", "channel": "web"}
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = await tenant.http.post(path, content=msgspec.json.encode(body), headers=headers)
    return answer.status_code


async def log_out(tenant: Tenant, form: dict[str, str]) -> int:
    forget(tenant)
    return (await tenant.http.post("/v1/logout", data=form)).status_code


async def test_no_tenant_decides_by_what_keys_anothers_logouts_are_known(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    theirs = ec.generate_private_key(ec.SECP256R1())
    provider.publish("/theirs", theirs)
    mine = await make_tenant.make(trusting(demo_policy, provider.trusted()))
    await make_tenant.make(trusting(demo_policy, provider.trusted(audience="sister", path="/theirs")))
    token = provider.access()
    assert await status(mine, provider, token) == 200
    assert await log_out(mine, provider.logout(theirs, sub="ada")) == 200, "good for the sister, by her own keys"
    assert await status(mine, provider, token) == 200
    assert await log_out(mine, provider.logout(sub="ada")) == 200
    assert await status(mine, provider, token) == 401


async def test_sisters_with_the_same_login_obey_the_same_logout(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    """Also where one of them has two audiences for the one client."""
    first = await make_tenant.make(trusting(demo_policy, provider.trusted(), provider.trusted(audience="app")))
    second = await make_tenant.make(trusting(demo_policy, provider.trusted(audience="sister")))
    tokens = [(first, provider.access()), (first, provider.access("app")), (second, provider.access("sister"))]
    assert [await status(tenant, provider, token) for tenant, token in tokens] == [200] * 3
    form = provider.logout(sub="ada")
    assert await log_out(first, form) == 200
    assert [await status(tenant, provider, token) for tenant, token in tokens] == [401] * 3
    assert await log_out(first, form) == 400, "taken once"


async def test_a_logout_that_was_interrupted_is_done_when_it_comes_again(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await make_tenant.make(trusting(demo_policy, provider.trusted()))
    token, form = provider.access(), provider.logout(sub="ada")

    async def lost(*_: Any) -> None:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(revocations, "revoke", lost)
        assert await log_out(tenant, form) == 503
    assert await status(tenant, provider, token) == 200
    assert await log_out(tenant, form) == 200
    assert await status(tenant, provider, token) == 401


async def test_a_session_that_ended_is_over_whatever_its_provider_takes_for_now(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    tenant = await make_tenant.make(trusting(demo_policy, provider.trusted()))
    ahead = int(time.time()) + 20
    tokens = [provider.access(iat=ahead, sid="s1"), provider.access(iat=ahead)]
    assert [await status(tenant, provider, token) for token in tokens] == [200, 200]
    assert await log_out(tenant, provider.logout(sub="ada", sid="s1", iat=ahead)) == 200
    assert [await status(tenant, provider, token) for token in tokens] == [401, 401]
    assert await status(tenant, provider, provider.access(iat=ahead + 5)) == 200, "a login of later"


async def test_a_session_that_ended_ends_no_other(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    tenant = await make_tenant.make(trusting(demo_policy, provider.trusted()))
    laptop, phone, unnamed = (provider.access(**more) for more in ({"sid": "laptop"}, {"sid": "phone"}, {}))
    assert await log_out(tenant, provider.logout(sub="ada", sid="phone")) == 200
    found = [await status(tenant, provider, token) for token in (laptop, phone, unnamed)]
    assert found == [200, 401, 401], "what names no session cannot be told from the one that ended"
    assert await log_out(tenant, provider.logout(sub="ada")) == 200
    assert await status(tenant, provider, laptop) == 401


async def test_what_is_revoked_stays_so_until_no_clock_takes_it(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    life = Duration(seconds=6)
    tenant = await make_tenant.make(trusting(demo_policy, provider.trusted(max_lifetime=life)))
    body = {"issuer": provider.issuer, "jti": "taken"}
    forget(tenant)
    assert (await tenant.post("/v1/tokens/revoke", body, key="dpo")).status_code == 200
    ledger = tenant.services.ledgers.of(tenant.log_id)
    async with ledger.connection() as connection:
        row = await connection.fetchrow(
            "SELECT expires_at - clock_timestamp() AS kept FROM revocation WHERE what = $1",
            ledger.hasher.once("jti", f"{provider.issuer}|taken"),
        )
    assert row["kept"].total_seconds() > 6 + 30, "tokens are taken 30 s beyond their end, if they were issued ahead"


async def test_an_issuer_that_was_dropped_is_trusted_no_more(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    tenant = await make_tenant.make(trusting(demo_policy, provider.trusted()))
    token = provider.access()
    assert await status(tenant, provider, token) == 200
    async with db.connection(tenant.services.pool, tenant.log_id) as connection:
        await tenants.apply_policy(connection, tenant.log_id, store.Policies(), demo_policy)
    assert await status(tenant, provider, token) == 401


async def test_what_a_person_gets_at_the_machines_provider_is_no_machines_token(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    machines = provider.trusted("service", clients=("warehouse",), scopes=("check",))
    officers = provider.trusted("officer", "office", roles={"dpo": "approver"})
    tenant = await make_tenant.make(trusting(demo_policy, machines, officers))
    assert await status(tenant, provider, provider.access(client_id="warehouse", scope="check")) == 200
    assert await status(tenant, provider, provider.access(client_id=CLIENT, scope="check")) == 401
    olga, eve = (provider.access("office", roles=["dpo"], client_id=client) for client in (CLIENT, "game"))
    assert [await status(tenant, provider, token, "/v1/subjects/links") for token in (olga, eve)] == [200, 401]


async def test_one_person_with_a_key_and_a_token_is_not_two_officers(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    officers = provider.trusted("officer", roles={"dpo": "approver"})
    tenant = await make_tenant.make(trusting(demo_policy, officers))
    linked = {"identifier": {"type": "email", "id": "x@example.org"}, "login": "ada"}
    link = (await tenant.post("/v1/links", linked)).json()["link"]
    path, reason = f"/v1/links/{link}/annul", {"reason": "false"}
    olga, paul = (provider.access(sub=sub, roles=["dpo"]) for sub in ("olga", "paul"))
    tenant.keys.update(olga=olga, paul=paul)
    forget(tenant)
    answers = [(await tenant.post(path, reason, key=key)).status_code for key in ("olga", "olga", "dpo", "paul", "dpo")]
    assert answers == [202, 202, 403, 200, 200]


async def test_the_login_of_an_ended_session_links_nothing(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    tenant = await make_tenant.make(trusting(demo_policy, provider.trusted()))
    device = tenant.device()
    mine = {"identifier": msgspec.to_builtins(device.subject), "proof": device.token}
    nonce = (await tenant.post("/v1/links/challenge", mine, key="publishable")).json()["nonce"]
    login = provider.identity(nonce, sid="s1")
    assert await log_out(tenant, provider.logout(sub="ada", sid="s1")) == 200
    answer = await tenant.post("/v1/links", {**mine, "id_token": login}, key="publishable")
    assert answer.status_code == 401, answer.text


async def test_a_challenge_is_answered_once_even_where_the_link_was_there(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider
) -> None:
    tenant = await make_tenant.make(trusting(demo_policy, provider.trusted()))
    device = tenant.device()
    mine = {"identifier": msgspec.to_builtins(device.subject), "proof": device.token}

    async def link() -> dict[str, Any]:
        nonce = (await tenant.post("/v1/links/challenge", mine, key="publishable")).json()["nonce"]
        return {**mine, "id_token": provider.identity(nonce)}

    first, second = await link(), await link()
    assert (await tenant.post("/v1/links", first, key="publishable")).status_code == 201
    again = await tenant.post("/v1/links", second, key="publishable")
    assert again.status_code == 201
    assert (await tenant.post("/v1/links", second, key="publishable")).status_code == 201, "a retry"
    end = await tenant.post(f"/v1/links/{again.json()['link']}/end", {"proof": device.token}, key="publishable")
    assert end.status_code == 200
    for used in (first, second):
        assert (await tenant.post("/v1/links", used, key="publishable")).status_code == 403
