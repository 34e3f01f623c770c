"""The whole service with a real OpenID provider: log in, link the device, call with tokens, rotate, fail, log out."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import Any

import httpx
import msgspec
import pytest
from conftest import NOTICE, Tenant, Tenants

from consent_service.auth import FRESH_S
from consent_service.policies import Policy

from .conftest import CLIENT, OFFICE, Provider

YES = {"purpose": "analytics", "status": "given", "channel": "web"}


@pytest.fixture(scope="module")
async def shop(make_tenant: Tenants, demo_policy: Policy, provider: Provider) -> Tenant:
    """The one tenant that trusts the provider: issuer and audience lead to one."""
    tenant = msgspec.structs.replace(demo_policy.tenant, issuers=provider.issuers)
    return await make_tenant.make(msgspec.structs.replace(demo_policy, tenant=tenant))


async def ask(shop: Tenant, path: str, body: Any, token: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return await shop.http.post(path, content=msgspec.json.encode(body), headers=headers)


class Browser:
    """A device on which somebody agreed to analytics before anybody knew who it was."""

    def __init__(self, shop: Tenant) -> None:
        minted = shop.device()
        self.shop = shop
        self.device: dict[str, str] = msgspec.to_builtins(minted.subject)
        self.token = minted.token

    async def agree(self) -> None:
        body = {"id": uuid.uuid4().hex, "subject": self.device, "records": [YES], "method": "banner_button",
                "notice": NOTICE, "proof": self.token}  # fmt: skip
        assert (await self.shop.post("/v1/consents", body, key="publishable")).status_code == 201

    async def challenge(self) -> str:
        body = {"identifier": self.device, "proof": self.token}
        return str((await self.shop.post("/v1/links/challenge", body, key="publishable")).json()["nonce"])

    async def link(self, id_token: str, **more: Any) -> httpx.Response:
        body = {"identifier": self.device, "proof": self.token, "id_token": id_token, **more}
        return await self.shop.post("/v1/links", body, key="publishable")


@pytest.fixture
async def browser(shop: Tenant) -> Browser:
    made = Browser(shop)
    await made.agree()
    return made


async def allow(shop: Tenant, subject: dict[str, str]) -> tuple[bool, str]:
    answer = await shop.check(subject, "analytics", channel="web")
    return answer["allow"], answer["reason"]


async def test_log_in_and_link_the_device(shop: Tenant, provider: Provider, browser: Browser) -> None:
    sub = uuid.uuid4().hex
    account = {"type": "login", "id": f"{provider.url}|{sub}"}
    assert await allow(shop, account) == (False, "no_record")
    linked = await browser.link(await provider.id_token(sub, await browser.challenge()))
    assert linked.status_code == 201, linked.text
    made = linked.json()
    assert (made["anchor"], made["grade"], made["conflicts"]) == (account, "login", [])
    assert await allow(shop, account) == (True, "consent"), "what was agreed before the log-in counts"
    own = await ask(shop, "/v1/check", {"subject": account, "purpose": "analytics", "channel": "web"},
                    await provider.access_token(sub))  # fmt: skip
    assert own.json()["allow"] is True
    ended = await shop.post(f"/v1/links/{made['link']}/end", {"proof": browser.token}, key="publishable")
    assert ended.status_code == 200, ended.text
    assert await allow(shop, account) == (False, "no_record")
    assert await allow(shop, browser.device) == (True, "consent")


async def test_what_the_account_refused_before_is_a_conflict(
    shop: Tenant, provider: Provider, browser: Browser
) -> None:
    sub = uuid.uuid4().hex
    account = {"type": "login", "id": f"{provider.url}|{sub}"}
    refused = {"subject": account, "records": [{**YES, "status": "refused", "occurred_at": "2026-01-01T00:00:00Z"}]}
    person = await provider.access_token(sub)
    assert (await ask(shop, "/v1/consents", refused, person)).status_code == 201
    linked = await browser.link(await provider.id_token(sub, await browser.challenge()))
    assert linked.json()["conflicts"] == []
    assert await allow(shop, account) == (False, "refused"), "evidence of a log-in outweighs that of a banner"
    again = {"subject": account, "records": [YES], "id": uuid.uuid4().hex, "method": "form", "notice": NOTICE}
    answer = await ask(shop, "/v1/consents", again, person)
    assert (answer.status_code, answer.json()["effective"]) == (201, True)
    assert await allow(shop, browser.device) == (True, "consent")


async def test_an_id_token_links_once_and_one_device_only(shop: Tenant, provider: Provider, browser: Browser) -> None:
    sub, other = uuid.uuid4().hex, Browser(shop)
    token = await provider.id_token(sub, await browser.challenge())
    assert (await other.link(token)).status_code == 401
    assert (await browser.link(token)).status_code == 201
    body = {"identifier": browser.device, "proof": browser.token, "id_token": token, "replace": True}
    someone = await provider.id_token(uuid.uuid4().hex, await browser.challenge())
    assert (await browser.link(someone)).status_code == 409
    assert (await browser.link(someone, replace=True)).status_code == 201
    assert (await shop.post("/v1/links", body, key="publishable")).status_code == 403, "the challenge was answered"


async def test_whoever_lost_the_telephone_ends_its_link(shop: Tenant, provider: Provider, browser: Browser) -> None:
    sub = uuid.uuid4().hex
    me = {"subject": {"type": "login", "id": f"{provider.url}|{sub}"}}
    await browser.link(await provider.id_token(sub, await browser.challenge()))
    mine, somebody = await provider.access_token(sub), await provider.access_token("somebody")
    known = (await ask(shop, "/v1/subjects/state", me, mine)).json()["identifiers"]
    (link,) = [one["link"] for one in known if one["id"] == browser.device["id"]]
    assert (await ask(shop, f"/v1/links/{link}/end", {}, somebody)).status_code == 404
    assert (await shop.post(f"/v1/links/{link}/end", {}, key="publishable")).status_code == 404
    assert (await ask(shop, f"/v1/links/{link}/end", {}, mine)).status_code == 200
    assert len((await ask(shop, "/v1/subjects/state", me, mine)).json()["identifiers"]) == 1


async def test_no_link_without_proof(shop: Tenant, provider: Provider, browser: Browser) -> None:
    sub = uuid.uuid4().hex
    stale = await provider.id_token(sub, "a nonce of our own")
    assert (await browser.link(stale)).status_code == 401
    good = await provider.id_token(sub, await browser.challenge())
    for body in (
        {"identifier": browser.device, "id_token": good},
        {"identifier": browser.device, "id_token": good, "proof": shop.device().token},
        {"identifier": {"type": "email", "id": "eve@example.org"}, "id_token": good},
        {"identifier": browser.device, "login": {"type": "login", "id": "eve"}, "proof": browser.token},
    ):
        assert (await shop.post("/v1/links", body, key="publishable")).status_code == 403, body
    access = await provider.access_token(sub)
    assert (await browser.link(access)).status_code == 401
    assert (await browser.link(good)).status_code == 201


async def test_people_machines_and_officers_do_what_is_theirs(shop: Tenant, provider: Provider) -> None:
    sub = uuid.uuid4().hex
    me, you = ({"type": "login", "id": f"{provider.url}|{who}"} for who in (sub, "somebody-else"))
    person = await provider.access_token(sub)
    check = {"purpose": "analytics", "channel": "web"}
    assert (await ask(shop, "/v1/check", {"subject": me, **check}, person)).status_code == 200
    assert (await ask(shop, "/v1/check", {"subject": you, **check}, person)).status_code == 403
    no = {"records": [{"purpose": "*", "status": "withdrawn"}]}
    assert (await ask(shop, "/v1/consents", {"subject": you, **no}, person)).status_code == 403
    assert (await ask(shop, "/v1/consents", {"subject": me, **no}, person)).status_code == 201
    history = (await shop.post("/v1/subjects/history", {"subject": me}, key="dpo")).json()["events"]
    assert [event["event"]["grade"] for event in history] == ["login"]
    machine = await provider.machine_token("check write:attested")
    assert (await ask(shop, "/v1/check", {"subject": you, **check}, machine)).status_code == 200
    assert (await ask(shop, "/v1/consents", {"subject": you, **no}, machine)).status_code == 403, "more than it may"
    officer = await provider.access_token("olga", OFFICE)
    assert (await ask(shop, "/v1/subjects/state", {"subject": me}, officer)).status_code == 200
    assert (await ask(shop, "/v1/check", {"subject": me, **check}, officer)).status_code == 403
    nobody = await provider.access_token(sub, OFFICE)
    assert (await ask(shop, "/v1/subjects/state", {"subject": me}, nobody)).status_code == 403


async def test_a_rotation_and_an_outage_are_survived(shop: Tenant, provider: Provider, browser: Browser) -> None:
    sub = uuid.uuid4().hex
    me = {"subject": {"type": "login", "id": f"{provider.url}|{sub}"}, "purpose": "analytics", "channel": "web"}
    before = await provider.access_token(sub)
    assert (await ask(shop, "/v1/check", me, before)).status_code == 200
    await provider.rotate(retire=False)
    nonce = await browser.challenge()
    after, id_token = await provider.access_token(sub), await provider.id_token(sub, nonce)
    assert (await ask(shop, "/v1/check", me, after)).status_code == 200
    await provider.stop()
    try:
        await asyncio.sleep(FRESH_S + 0.1)
        for token in (before, after):
            assert (await ask(shop, "/v1/check", me, token)).status_code == 200
        assert (await browser.link(id_token)).status_code == 201
    finally:
        await provider.start()


async def test_a_revoked_token_is_refused_and_others_are_not(shop: Tenant, provider: Provider) -> None:
    sub = uuid.uuid4().hex
    me = {"subject": {"type": "login", "id": f"{provider.url}|{sub}"}, "purpose": "analytics", "channel": "web"}
    first, second = await provider.access_token(sub), await provider.access_token(sub)
    assert (await ask(shop, "/v1/check", me, first)).status_code == 200
    admin = await provider.access_token("olga", OFFICE)
    body = {"issuer": provider.url, "jti": claims(first)["jti"]}
    assert (await ask(shop, "/v1/tokens/revoke", {**body, "issuer": "https://other.example"}, admin)).status_code == 422
    assert (await ask(shop, "/v1/tokens/revoke", body, first)).status_code == 403
    assert (await ask(shop, "/v1/tokens/revoke", body, admin)).status_code == 200
    await asyncio.sleep(FRESH_S + 0.1)
    assert (await ask(shop, "/v1/check", me, first)).status_code == 401
    assert (await ask(shop, "/v1/check", me, second)).status_code == 200


async def test_whoever_logs_out_at_the_provider_is_out_here(shop: Tenant, provider: Provider) -> None:
    sub = uuid.uuid4().hex
    me = {"subject": {"type": "login", "id": f"{provider.url}|{sub}"}, "purpose": "analytics", "channel": "web"}
    token = await provider.access_token(sub)
    bystander = await provider.access_token("bystander")
    assert (await ask(shop, "/v1/check", me, token)).status_code == 200
    await asyncio.sleep(1)  # `iat` counts whole seconds
    logout = await provider.logout_token(sub)
    assert claims(logout)["aud"] == CLIENT
    posted = await shop.http.post("/v1/logout", data={"logout_token": logout})
    assert (posted.status_code, posted.headers["cache-control"]) == (200, "no-store"), posted.text
    assert (await shop.http.post("/v1/logout", data={"logout_token": logout})).status_code == 400, "taken once"
    for bad in ("", "a.b.c", token, logout[:-4] + "AAAA"):
        assert (await shop.http.post("/v1/logout", data={"logout_token": bad})).status_code == 400
    await asyncio.sleep(FRESH_S + 0.1)
    assert (await ask(shop, "/v1/check", me, token)).status_code == 401
    other = {**me, "subject": {"type": "login", "id": f"{provider.url}|bystander"}}
    assert (await ask(shop, "/v1/check", other, bystander)).status_code == 200
    assert (await ask(shop, "/v1/check", me, await provider.access_token(sub))).status_code == 200


async def test_issuer_and_audience_lead_to_one_tenant(
    make_tenant: Tenants, demo_policy: Policy, provider: Provider, shop: Tenant
) -> None:
    assert shop.slug
    tenant = msgspec.structs.replace(demo_policy.tenant, issuers=provider.issuers)
    with pytest.raises(Exception, match="Another tenant has these issuers"):
        await make_tenant.make(msgspec.structs.replace(demo_policy, tenant=tenant))


def claims(token: str) -> dict[str, Any]:
    """Unverified."""
    body = token.split(".")[1]
    return dict(msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))
