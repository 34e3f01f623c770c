"""The front door: every refusal it knows, what it lets through, and that it never repeats what it was sent."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from consent_service import errors, guard, log
from consent_service.auth import Credential, Keyring
from consent_service.guard import Guard, Operation, refusals
from consent_service.guard import door as door_of_the_guard
from consent_service.guard.body import MAX_DEPTH, is_too_deep
from consent_service.guard.deadline import Deadline
from consent_service.guard.limits import Limits

CANARY = "erika.mustermann@example.org"
SHOP = "https://shop.example"
JSON = {"content-type": "application/json"}


class Thing(msgspec.Struct):
    name: str = ""


def _operation(method: str, path: str, name: str, **more: Any) -> Operation:
    given = {"scopes": frozenset({"check", "state"}), "tag": "test", "summary": name, **more}
    return Operation(method=method, path=path, id=name, **given)


OPERATIONS = [
    _operation("POST", "/v1/check", "check", body=Thing, browser=True),
    _operation("POST", "/v1/keys", "keys", body=Thing, scopes=frozenset({"keys"})),
    _operation("POST", "/v1/small", "small", body=Thing, max_body=100),
    _operation("POST", "/v1/things/{id}/end", "end", body=Thing),
    _operation("GET", "/v1/things/{id}", "thing", scopes=frozenset({"state"})),
    _operation("GET", "/v1/things/own", "own"),
    _operation("GET", "/v1/notices/{id}", "notice", scopes=None, public=True, browser=True),
    _operation("GET", "/v1/stream", "stream", streams=True),
    _operation("GET", "/livez", "livez", scopes=None, public=True),
]
KEYS = {
    "sk_all": Credential(1, "all", "service", "all", frozenset({"check", "state"}), frozenset(), None),
    "pk_web": Credential(1, "web", "publishable", "web", frozenset({"check"}), frozenset({SHOP}), None),
    "sk_slow": Credential(1, "slow", "service", "slow", frozenset({"check"}), frozenset(), 1),
    "sk_lost": None,
}


class Keys:
    """A keyring without a database; remembers what it verified, as the real one does."""

    def __init__(self) -> None:
        self.seen: dict[str, Credential] = {}
        self.asked: list[str] = []

    def known(self, token: str) -> Credential | None:
        return self.seen.get(token)

    async def authenticate(self, token: str) -> Credential:
        self.asked.append(token)
        if token not in KEYS:
            raise errors.Unauthenticated
        credential = KEYS[token]
        if credential is None:
            raise errors.Unavailable
        return self.seen.setdefault(token, credential)


def parse(raw: bytes) -> Thing:
    try:
        return msgspec.json.decode(raw, type=Thing)
    except msgspec.ValidationError:
        raise errors.Invalid from None
    except msgspec.DecodeError:
        raise errors.Malformed("This is not JSON.") from None


class Behind:
    """The app behind the guard: tells what reached it, or does what the test asks for."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.act: Callable[[dict[str, Any], bytes, Any], Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            self.scopes.append(scope)
            return
        raw = (await receive())["body"]
        self.scopes.append(scope)
        self.bodies.append(raw)
        if self.act is not None:
            await self.act(scope, raw, send)
        elif scope["state"]["operation"].body is not None:
            parse(raw)
            await answer(send)
        else:
            await answer(send)


async def answer(send: Any, body: bytes = b'{"ok":true}', *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def make(**settings: Any) -> SimpleNamespace:
    behind, keys = Behind(), Keys()
    return SimpleNamespace(behind=behind, keys=keys, guard=Guard(behind, OPERATIONS, keys, **settings))


@pytest.fixture
def door() -> SimpleNamespace:
    return make()


class Reply(SimpleNamespace):
    status: int
    headers: dict[str, str]
    body: bytes
    problem: dict[str, Any]


def scope_of(method: str, target: str | bytes, headers: Any, **more: Any) -> dict[str, Any]:
    raw = target.encode() if isinstance(target, str) else target
    path, _, query = raw.partition(b"?")
    given = headers.items() if isinstance(headers, dict) else headers
    return {
        "type": "http", "method": method, "raw_path": path, "path": path.decode("latin-1"), "query_string": query,
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given], **more,
    }  # fmt: skip


async def ask(app: Any, method: str, target: str | bytes, headers: Any = None, body: bytes | list[Any] = b"") -> Reply:
    """One request at ASGI level; a list sends the body in chunks, and an Exception in it is the client's leaving."""
    chunks = body if isinstance(body, list) else [body]
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": at < len(chunks) - 1}
        if isinstance(chunk, bytes)
        else {"type": "http.disconnect"}
        for at, chunk in enumerate(chunks)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"authorization": "Bearer sk_all"} if headers is None else headers
    if method == "POST" and isinstance(given, dict) and isinstance(body, bytes) and body:
        given = {"content-length": str(len(body)), **given}
    await app(scope_of(method, target, given), receive, send)
    if not sent:
        return Reply(status=0, headers={}, raw_headers=[], body=b"", problem={})
    raw = sent[0]["headers"]
    whole = b"".join(message.get("body", b"") for message in sent[1:])
    pairs = {name.decode(): value.decode() for name, value in raw}
    is_problem = pairs.get("content-type") == "application/problem+json" and bool(whole)
    problem = json.loads(whole) if is_problem else {}
    done = sent[-1]["type"] == "http.response.body" and not sent[-1].get("more_body")
    return Reply(status=sent[0]["status"], headers=pairs, raw_headers=raw, body=whole, problem=problem, done=done)


def auth(key: str = "sk_all", **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **JSON, **{name.replace("_", "-"): value for name, value in more.items()}}


NONE = dict[str, str]()
GOOD = b'{"name":"x"}'
DEEP = b'{"name":' + b"[" * 32 + b"]" * 32 + b"}"

REQUESTS: list[tuple[str, str, str, Any, Any, int, str]] = [
    # name, method, target, headers, body, status, slug
    ("a good call", "POST", "/v1/check", auth(), GOOD, 200, ""),
    ("charset", "POST", "/v1/check", auth(content_type="application/json; charset=UTF-8"), GOOD, 200, ""),
    ("quoted charset", "POST", "/v1/check", auth(content_type='application/JSON;charset="utf-8"'), GOOD, 200, ""),
    ("identity", "POST", "/v1/check", auth(content_encoding="identity"), GOOD, 200, ""),
    ("scheme in capitals", "POST", "/v1/check", {**auth(), "authorization": "BEARER sk_all"}, GOOD, 200, ""),
    ("chunks", "POST", "/v1/check", auth(transfer_encoding="chunked"), [b'{"na', b'me":"', b'x"}'], 200, ""),
    ("template", "GET", "/v1/things/abc-1", None, b"", 200, ""),
    ("template, escaped", "GET", "/v1/things/%C3%A9", None, b"", 200, ""),
    ("literal before parameter", "GET", "/v1/things/own", auth("pk_web"), b"", 200, ""),
    ("public", "GET", "/livez", NONE, b"", 200, ""),
    ("public, foreign scheme", "GET", "/livez", {"authorization": "Basic eDp5"}, b"", 200, ""),
    ("public, bearer", "GET", "/v1/notices/web", auth("pk_web"), b"", 200, ""),
    ("public, key in address", "GET", "/v1/notices/web?language=de&key=pk_web", NONE, b"", 200, ""),
    ("origin of the key", "POST", "/v1/check", auth("pk_web", origin=SHOP), GOOD, 200, ""),
    ("depth 32", "POST", "/v1/check", auth(), b"[" * 31 + b"{}" + b"]" * 31, 422, "invalid"),
    ("brackets in a string", "POST", "/v1/check", auth(), b'{"name":"' + b'[{\\"' * 90 + b'"}', 200, ""),
    # 400
    ("no JSON", "POST", "/v1/check", auth(), b'{"name":', 400, "malformed"),
    ("depth 33", "POST", "/v1/check", auth(), DEEP, 400, "malformed"),
    ("depth 30,000", "POST", "/v1/check", auth(), b"[" * 30_000, 400, "malformed"),
    ("no UTF-8", "POST", "/v1/check", auth(), b'{"name":"\xff"}', 400, "malformed"),
    ("a surrogate", "POST", "/v1/check", auth(), b'{"name":"\xed\xa0\x80"}', 400, "malformed"),
    ("a byte order mark", "POST", "/v1/check", auth(), b"\xef\xbb\xbf", 400, "malformed"),
    ("a byte order mark before", "POST", "/v1/check", auth(), b"\xef\xbb\xbf" + GOOD, 400, "malformed"),
    ("empty body", "POST", "/v1/check", auth(), b"", 400, "malformed"),
    ("path no UTF-8", "GET", "/v1/things/%FF", None, b"", 400, "malformed"),
    ("path overlong", "GET", "/v1/things/%C0%AF", None, b"", 400, "malformed"),
    ("path with NUL", "GET", "/v1/things/a%00", None, b"", 400, "malformed"),
    ("path with U+FFFD", "GET", "/v1/things/%EF%BF%BD", None, b"", 400, "malformed"),
    ("path, broken escape", "GET", "/v1/things/%4", None, b"", 400, "malformed"),
    ("path, raw bytes", "GET", b"/v1/things/\xc3\xa9", None, b"", 400, "malformed"),
    ("query no UTF-8", "GET", "/v1/things/a?q=%FF", None, b"", 400, "malformed"),
    ("two keys in address", "GET", "/v1/notices/a?key=pk_web&key=pk_web", NONE, b"", 400, "malformed"),
    ("length no number", "POST", "/v1/check", auth(content_length="+5"), GOOD, 400, "malformed"),
    ("header twice", "POST", "/v1/check", [*auth().items(), *auth().items()], GOOD, 400, "malformed"),
    # 401
    ("no credential", "POST", "/v1/check", JSON, GOOD, 401, "unauthenticated"),
    ("foreign scheme", "POST", "/v1/check", {**JSON, "authorization": "Basic sk_all"}, GOOD, 401, "unauthenticated"),
    ("unknown key", "POST", "/v1/check", auth("sk_none"), GOOD, 401, "unauthenticated"),
    ("empty key", "POST", "/v1/check", auth(""), GOOD, 401, "unauthenticated"),
    ("key too long", "POST", "/v1/check", auth("x" * 8_193), GOOD, 401, "unauthenticated"),
    ("key not ASCII", "POST", "/v1/check", auth("\xe9"), GOOD, 401, "unauthenticated"),
    ("public, wrong bearer", "GET", "/v1/notices/web", auth("pk_none"), b"", 401, "unauthenticated"),
    ("public, wrong key", "GET", "/v1/notices/web?key=pk_none", NONE, b"", 401, "unauthenticated"),
    ("service key in address", "GET", "/v1/notices/web?key=sk_all", NONE, b"", 401, "unauthenticated"),
    ("key in address, not public", "GET", "/v1/things/a?key=pk_web", NONE, b"", 401, "unauthenticated"),
    # 403
    ("scope", "POST", "/v1/keys", auth(), GOOD, 403, "forbidden"),
    ("foreign origin", "POST", "/v1/check", auth("pk_web", origin="https://evil.example"), GOOD, 403, "forbidden"),
    ("origin + port", "POST", "/v1/check", auth("pk_web", origin=SHOP + ":8443"), GOOD, 403, "forbidden"),
    ("origin null", "POST", "/v1/check", auth("pk_web", origin="null"), GOOD, 403, "forbidden"),
    ("service key in a browser", "POST", "/v1/check", auth("sk_all", origin=SHOP), GOOD, 403, "forbidden"),
    # 404
    ("unknown path", "GET", "/v1/nothing", None, b"", 404, "not-found"),
    ("trailing slash", "POST", "/v1/check/", auth(), GOOD, 404, "not-found"),
    ("double slash", "POST", "/v1//check", auth(), GOOD, 404, "not-found"),
    ("escaped letter", "POST", "/v1/%63heck", auth(), GOOD, 404, "not-found"),
    ("escaped slash", "GET", "/v1/things/a%2Fend", None, b"", 404, "not-found"),
    ("dots", "GET", "/v1/things/%2e%2e", None, b"", 404, "not-found"),
    ("empty parameter", "GET", "/v1/things/", None, b"", 404, "not-found"),
    ("too many segments", "GET", "/v1/things/" + "a/" * 5_000, None, b"", 404, "not-found"),
    ("no path", "GET", "*", None, b"", 404, "not-found"),
    # 405
    ("method", "GET", "/v1/check", None, b"", 405, "not-allowed"),
    ("odd method", "BREW", "/v1/things/a", None, b"", 405, "not-allowed"),
    # 413, 415
    ("announced too large", "POST", "/v1/small", auth(content_length="101"), b"x" * 101, 413, "too-large"),
    ("streamed too large", "POST", "/v1/small", auth(transfer_encoding="chunked"), [b" " * 60] * 9, 413, "too-large"),
    ("length of 5,000 digits", "POST", "/v1/small", auth(content_length="9" * 5_000), b"", 400, "malformed"),
    ("no content type", "POST", "/v1/check", {"authorization": "Bearer sk_all"}, GOOD, 415, "wrong-media-type"),
    ("form", "POST", "/v1/check", auth(content_type="text/plain"), GOOD, 415, "wrong-media-type"),
    ("latin-1", "POST", "/v1/check", auth(content_type="application/json; charset=latin-1"), GOOD, 415,
     "wrong-media-type"),
    ("compressed", "POST", "/v1/check", auth(content_encoding="gzip"), GOOD, 415, "wrong-media-type"),
    ("body where none is taken", "GET", "/livez", {"content-length": "3"}, b"abc", 415, "wrong-media-type"),
    ("stream where none is taken", "GET", "/livez", {"transfer-encoding": "chunked"}, b"abc", 415, "wrong-media-type"),
    # 422, 503
    ("wrong type", "POST", "/v1/check", auth(), b'{"name":1}', 422, "invalid"),
    ("no database", "POST", "/v1/check", auth("sk_lost"), GOOD, 503, "unavailable"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "headers", "body", "status", "slug"),
                         [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])  # fmt: skip
async def test_every_request_gets_its_status(door, method, target, headers, body, status, slug):
    reply = await ask(door.guard, method, target, headers, body)
    assert (reply.status, reply.problem.get("type", "")) == (status, f"/problems/{slug}" if slug else "")
    assert reply.done
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    assert int(reply.headers["content-length"]) == len(reply.body)
    if slug:
        assert reply.problem["status"] == status
        assert {"type", "title", "status", "detail"} <= reply.problem.keys()
    # Refused before the app, except where only the app can tell; let through exactly once.
    assert len(door.behind.scopes) == (status in (200, 422) or reply.problem["title"] == _malformed_by_app(reply))


def _malformed_by_app(reply: Reply) -> str:
    return reply.problem["title"] if "JSON" in reply.problem["detail"] and reply.status == 400 else ""


async def test_refusals_say_what_to_do(door):
    async def headers_and_detail(*request: Any) -> Any:
        reply = await ask(door.guard, *request)
        return reply.headers, reply.problem["detail"]

    headers, _ = await headers_and_detail("GET", "/v1/things/a", NONE)
    assert headers["www-authenticate"].startswith("Bearer")
    headers, _ = await headers_and_detail("DELETE", "/v1/things/a")
    assert headers["allow"] == "GET, HEAD, OPTIONS"
    _, detail = await headers_and_detail("POST", "/v1/keys", auth(), GOOD)
    assert "`keys`" in detail
    headers, _ = await headers_and_detail("POST", "/v1/check", auth("sk_lost"), GOOD)
    assert headers["retry-after"] == "1"


async def test_the_app_gets_the_body_whole_and_then_only_the_leaving(door):
    heard: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        heard.extend([await receive(), await receive()])
        await answer(send)

    front = Guard(app, OPERATIONS, door.keys)
    await ask(front, "POST", "/v1/check", auth(transfer_encoding="chunked"), [b'{"name"', b':"x"}', b""])
    assert heard == [{"type": "http.request", "body": GOOD, "more_body": False}, {"type": "http.disconnect"}]
    heard.clear()
    await ask(front, "GET", "/livez", NONE, [b"late", b"data"])
    assert heard == [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]


async def test_the_app_gets_credential_and_operation(door):
    await ask(door.guard, "POST", "/v1/check", auth(), GOOD)
    await ask(door.guard, "GET", "/livez", NONE)
    first, second = (scope["state"] for scope in door.behind.scopes)
    assert first == {"credential": KEYS["sk_all"], "operation": OPERATIONS[0]}
    assert second == {"credential": None, "operation": OPERATIONS[-1]}


async def test_a_key_verified_a_moment_ago_is_not_asked_for_again(door):
    for _ in range(3):
        await ask(door.guard, "POST", "/v1/check", auth(), GOOD)
    assert door.keys.asked == ["sk_all"]


async def test_a_key_that_is_too_long_is_not_looked_at(door):
    await ask(door.guard, "POST", "/v1/check", auth("x" * 8_192), GOOD)
    assert len(door.keys.asked) == 1
    await ask(door.guard, "POST", "/v1/check", auth("x" * 8_193), GOOD)
    await ask(door.guard, "GET", "/v1/notices/a?key=" + "x" * 8_193, NONE)
    assert len(door.keys.asked) == 1


async def test_a_client_that_leaves_gets_no_answer_and_reaches_nobody(door):
    reply = await ask(door.guard, "POST", "/v1/check", auth(transfer_encoding="chunked"), [b'{"na', Exception()])
    assert (reply.status, door.behind.scopes) == (0, [])


async def test_head_is_get_without_a_body(door):
    reply = await ask(door.guard, "HEAD", "/v1/things/a")
    assert (reply.status, reply.body, reply.headers["content-length"], reply.done) == (200, b"", "11", True)
    assert door.behind.scopes[0]["method"] == "GET"
    refused = await ask(door.guard, "HEAD", "/v1/nothing")
    assert (refused.status, refused.body) == (404, b"")


async def test_what_the_app_says_about_caching_stays(door):
    async def cached(_scope: Any, _raw: bytes, send: Any) -> None:
        await answer(send, b"{}", (b"cache-control", b"max-age=60"))

    door.behind.act = cached
    reply = await ask(door.guard, "GET", "/v1/notices/web", NONE)
    assert [value for name, value in reply.raw_headers if name == b"cache-control"] == [b"max-age=60"]


class TestCrossOrigin:
    async def test_a_preflight_echoes_the_origin_for_browser_operations_only(self, door):
        sent = {"origin": SHOP, "access-control-request-method": "POST"}
        reply = await ask(door.guard, "OPTIONS", "/v1/check", sent)
        assert (reply.status, reply.body, reply.headers["vary"]) == (204, b"", "Origin")
        assert reply.headers["access-control-allow-origin"] == SHOP
        assert reply.headers["access-control-allow-methods"] == "POST"
        assert "access-control-allow-credentials" not in reply.headers
        for path, method in (("/v1/keys", "POST"), ("/v1/check", "DELETE"), ("/v1/things/a", "GET")):
            other = await ask(door.guard, "OPTIONS", path, {**sent, "access-control-request-method": method})
            assert other.status == 204
            assert not any(name.startswith("access-control") for name in other.headers), path
        assert door.behind.scopes == []

    async def test_only_answers_to_an_allowed_origin_can_be_read(self, door):
        allowed = await ask(door.guard, "POST", "/v1/check", auth("pk_web", origin=SHOP), GOOD)
        assert (allowed.headers["access-control-allow-origin"], allowed.headers["vary"]) == (SHOP, "Origin")
        late_refusal = await ask(door.guard, "POST", "/v1/check", auth("pk_web", origin=SHOP), b"nothing")
        assert late_refusal.status == 400
        assert late_refusal.headers["access-control-allow-origin"] == SHOP
        refused = await ask(door.guard, "POST", "/v1/check", auth("pk_web", origin="https://evil.example"), GOOD)
        anonymous = await ask(door.guard, "GET", "/v1/notices/web", {"origin": SHOP})
        not_for_browsers = await ask(door.guard, "GET", "/v1/things/own", auth("pk_web", origin=SHOP))
        assert (anonymous.status, not_for_browsers.status) == (200, 200)
        for reply in (refused, anonymous, not_for_browsers):
            assert "access-control-allow-origin" not in reply.headers


class TestLimits:
    async def test_the_bucket_empties_and_tells_when_to_come_back(self, door):
        replies = [await ask(door.guard, "POST", "/v1/check", auth("sk_slow"), GOOD) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        assert replies[-1].headers["retry-after"] == "1"
        assert replies[-1].problem["type"] == "/problems/too-many"

    @pytest.mark.parametrize(
        ("rate", "workers", "burst", "per_10_s", "retry_after"),
        [(10, 1, 20, 100, 1), (10, 4, 5, 25, 1), (1, 4, 1, 2, 4), (0, 1, 0, 0, 3600), (None, 1, 500, 500, 0)],
    )
    def test_shares_of_the_rate(self, rate, workers, burst, per_10_s, retry_after):
        now = [0.0]
        limits = Limits(workers, lambda: now[0])
        credential = Credential(1, "x", "service", "x", frozenset(), frozenset(), rate)
        waits = []

        def taken(steps: int, seconds: float) -> int:
            count = 0
            for _ in range(steps):
                now[0] += seconds / steps
                try:
                    limits.take(credential)
                    count += 1
                except errors.TooMany as error:
                    waits.append(error.retry_after)
            return count

        assert taken(500, 0) == burst
        assert waits[:1] == ([retry_after] if rate is not None else [])
        assert taken(500, 10) == pytest.approx(per_10_s, abs=1)

    def test_credentials_do_not_share_and_memory_is_bounded(self, monkeypatch):
        monkeypatch.setattr("consent_service.guard.limits._MAX_BUCKETS", 100)
        limits = Limits()
        for number in range(1_000):
            limits.take(Credential(1, str(number), "service", "x", frozenset(), frozenset(), 1))
        assert len(limits._buckets) <= 100


class TestSetup:
    @pytest.mark.parametrize(
        ("operations", "words"),
        [
            ([_operation("GET", "/a", "a", scopes=None)], "`a` declares no scope"),
            ([_operation("GET", "/a", "a", scopes=frozenset())], "empty set"),
            ([_operation("GET", "/a", "a", scopes=frozenset({"chekc"}))], "unknown scope `chekc`"),
            ([_operation("GET", "/a", "a"), _operation("POST", "/a", "a")], "the id `a` stands twice"),
            ([_operation("GET", "/a/{x}", "a"), _operation("GET", "/a/{y}", "b")], "`b` has the address of `a`"),
            ([_operation("HEAD", "/a", "a")], "method `HEAD`"),
            ([_operation("GET", "/a/{x}.p", "a")], "the path"),
            ([_operation("GET", "/a/", "a")], "the path"),
            ([_operation("GET", "/a", "a", body=Thing)], "GET with a body"),
        ],
    )
    def test_a_table_that_is_wrong_stops_the_start(self, operations, words):
        with pytest.raises(errors.SetupError, match=re.escape(words)):
            Guard(Behind(), operations, Keys())

    def test_every_fault_is_told_at_once(self):
        with pytest.raises(errors.SetupError) as caught:
            Guard(Behind(), [_operation("GET", "/a", name, scopes=None) for name in "ab"], Keys())
        assert "`a` declares no scope" in caught.value.detail
        assert "`b` declares no scope" in caught.value.detail

    def test_the_real_keyring_fits(self):
        keyring: Keyring = object.__new__(Keyring)
        assert Guard(Behind(), [_operation("GET", "/", "root")], keyring)


class TestOtherScopes:
    async def test_lifespan_passes_through(self, door):
        await door.guard({"type": "lifespan"}, None, None)
        assert door.behind.scopes == [{"type": "lifespan"}]

    async def test_websockets_are_closed(self, door):
        sent = []

        async def send(message: Any) -> None:
            sent.append(message)

        await door.guard({"type": "websocket", "path": "/v1/check"}, None, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]
        assert door.behind.scopes == []


@pytest.fixture
def logs(capsys) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Our log lines since the last look."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure("info")
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    log._configure_ours(logging.INFO)
    root.handlers[:], root.level = handlers, level


class TestFailures:
    async def test_an_exception_is_told_by_its_id_only(self, door, logs):
        async def fail(_scope: Any, raw: bytes, _send: Any) -> None:
            raise ValueError(f"cannot {CANARY} {raw!r}")

        door.behind.act = fail
        reply = await ask(door.guard, "POST", f"/v1/things/{CANARY}/end?x={CANARY}", auth(), GOOD)
        (line,) = logs()
        assert reply.status == 500
        assert line["error_id"] == reply.problem["error_id"]
        assert (line["event"], line["operation"], line["error"]) == ("request failed", "end", "ValueError")
        assert CANARY not in json.dumps(line) + reply.body.decode()

    async def test_a_domain_error_without_a_row_is_a_failure_of_ours(self, door, logs):
        async def fail(*_: Any) -> None:
            raise errors.SetupError(CANARY)

        door.behind.act = fail
        reply = await ask(door.guard, "GET", "/livez", NONE)
        assert (reply.status, reply.problem["type"]) == (500, "/problems/failed")
        assert logs()[0]["error_id"] == reply.problem["error_id"]
        assert CANARY not in reply.body.decode()

    async def test_after_the_answer_began_nothing_is_added(self, door, logs):
        async def half(_scope: Any, _raw: bytes, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError(CANARY)

        door.behind.act = half
        reply = await ask(door.guard, "GET", "/livez", NONE)
        assert (reply.status, reply.body, reply.done) == (200, b"", False)
        assert logs()[0]["error"] == "RuntimeError"

    async def test_an_answer_not_ready_in_time(self):
        door = make(answer_s=0.05)
        cancelled = []

        async def slow(*_: Any) -> None:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        door.behind.act = slow
        reply = await ask(door.guard, "POST", "/v1/check", auth(), GOOD)
        assert (reply.status, reply.problem["type"], reply.headers["retry-after"]) == (503, "/problems/overdue", "1")
        assert cancelled == [True]

    async def test_of_an_answer_that_streams_each_piece_has_its_time(self):
        door = make(answer_s=0.2)

        async def pieces(_scope: Any, _raw: bytes, send: Any, *, pause: float = 0.05) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(8):
                await asyncio.sleep(pause)
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        door.behind.act = pieces
        whole = await ask(door.guard, "GET", "/v1/stream", auth())
        assert (whole.status, whole.body, whole.done) == (200, b"x" * 8, True)
        control = await ask(door.guard, "POST", "/v1/check", auth(), GOOD)
        assert (control.status, control.done) == (200, False), "one that does not stream has one time for all of it"
        door.behind.act = functools.partial(pieces, pause=5)
        stuck = await ask(door.guard, "GET", "/v1/stream", auth())
        assert (stuck.status, stuck.body, stuck.done) == (200, b"", False)

    async def test_a_timeout_of_the_app_is_not_ours(self, door, logs):
        async def fail(*_: Any) -> None:
            raise TimeoutError(CANARY)

        door.behind.act = fail
        assert (await ask(door.guard, "GET", "/livez", NONE)).status == 500
        assert logs()[0]["error"] == "TimeoutError"

    async def test_being_cancelled_from_outside_is_passed_on(self, door):
        async def slow(*_: Any) -> None:
            await asyncio.sleep(5)

        door.behind.act = slow
        task = asyncio.create_task(ask(door.guard, "GET", "/livez", NONE))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestDeadline:
    async def test_it_strikes_and_leaves_the_task_usable(self):
        with pytest.raises(TimeoutError), Deadline(0.01) as deadline:
            await asyncio.sleep(5)
        assert deadline.expired
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    @pytest.mark.parametrize("first", [0.02, 5.0])
    async def test_it_can_be_moved_both_ways(self, first):
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError), Deadline(first) as deadline:  # noqa: PT012 -- moved inside is the point
            deadline.move(0.1)
            await asyncio.sleep(5)
        assert 0.09 < asyncio.get_running_loop().time() - began < 2

    async def test_a_foreign_cancellation_goes_on_even_when_both_come(self):
        async def both() -> None:
            with Deadline(0.01):
                try:
                    await asyncio.sleep(5)
                finally:
                    asyncio.current_task().cancel()  # type: ignore[union-attr]
                    await asyncio.sleep(5)

        task = asyncio.create_task(both())
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_swallowed_cancellation_is_taken_back(self):
        with Deadline(0.01) as deadline, pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(5)
        assert deadline.expired
        await asyncio.sleep(0)


class TestProblems:
    def test_every_domain_error_has_a_row(self):
        def below(kind: type) -> Iterator[type]:
            for one in kind.__subclasses__():
                yield one
                yield from below(one)

        missing = [one for one in below(errors.ConsentError)
                   if one.__module__ == errors.__name__ and one is not errors.SetupError
                   and refusals.kind_of(_instance(one)) is None]  # fmt: skip
        assert missing == []

    def test_every_type_is_documented(self):
        found = guard.problems()
        assert len({one.slug for one in found}) == len(found) == len(refusals.KINDS)
        for one in found:
            assert one.title, one
            assert one.remedy or one.slug == "not-found", one
            assert not one.remedy.startswith("."), one

    def test_field_errors_and_extra_members(self):
        error = errors.Invalid("Wrong.", (errors.FieldError("/a~1b", "is missing"),))
        error.extra = {"recorded": [1], "status": 200}  # type: ignore[attr-defined]
        status, headers, body = guard.problem(error)
        assert json.loads(body) == {
            "type": "/problems/invalid", "title": errors.Invalid.title(), "status": 422, "detail": "Wrong.",
            "errors": [{"pointer": "/a~1b", "detail": "is missing"}], "recorded": [1],
        }  # fmt: skip
        assert status == 422
        assert (b"content-type", b"application/problem+json") in headers

    def test_a_subclass_is_what_its_parent_is(self):
        status, _, body = guard.problem(errors.PolicyError("No."))
        assert (status, json.loads(body)["type"]) == (422, "/problems/invalid")

    def test_a_strange_error_is_logged_and_told_without_its_text(self, logs):
        status, _, body = guard.problem(KeyError(CANARY))
        (line,) = logs()
        assert status == 500
        assert line["error_id"] == json.loads(body)["error_id"]
        assert CANARY not in body.decode() + json.dumps(line)


def _instance(kind: type) -> BaseException:
    error = kind.__new__(kind)
    assert isinstance(error, BaseException)
    return error


# Depth: equal to what a plain loop finds.

_PIECES = [b"[", b"]", b"{", b"}", b'"', b"\\", b'\\"', b"a", b",", b"[" * 16, b"]" * 16, b"{" * 16, b"}" * 16,
           b"[]" * 20, b'"[[["', b"[" * 32 + b"]" * 32]  # fmt: skip


def _too_deep_by_loop(body: bytes) -> bool:
    depth, deepest, opened, in_string, at = 0, 0, 0, False, 0
    matched = True
    while at < len(body):
        one = body[at : at + 1]
        if one == b"\\" and body[at + 1 : at + 2] in (b"\\", b'"'):
            at += 1
        elif one == b'"':
            in_string = not in_string
        elif one in (b"[", b"{"):
            opened += 1
            depth += not in_string
            deepest = max(deepest, depth)
        elif one in (b"]", b"}"):
            depth -= not in_string
            matched = matched and depth >= 0
        at += 1
    if opened <= MAX_DEPTH:
        return False
    return deepest > MAX_DEPTH or depth != 0 or not matched


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=40).map(b"".join))
@example(b"[" * 32 + b"]" * 32 + b"[]")
@example(b"[" * 33 + b"]" * 33)
@example(b'["' + b"\\" * 4 + b'"' + b"[" * 40 + b"]" * 40 + b"]")
def test_depth_equals_the_plain_loop(body):
    assert is_too_deep(body) == _too_deep_by_loop(body)


_STRINGS = st.text(alphabet='[]{}"\\é', max_size=8)
_VALUES = st.recursive(_STRINGS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_STRINGS, inner))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_VALUES, st.lists(st.booleans(), max_size=40), st.booleans())
def test_depth_of_real_json(value, wraps, ascii_only):
    for in_list in wraps:
        value = [value, "["] if in_list else {'"': value}

    def depth(one: Any) -> int:
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        return (isinstance(one, dict | list)) + max(map(depth, inner), default=0)

    assert is_too_deep(json.dumps(value, ensure_ascii=ascii_only).encode()) == (depth(value) > MAX_DEPTH)


# Hostile input: whatever comes, a problem document and nothing of what was sent.

_NAMES = ["authorization", "content-type", "content-length", "content-encoding", "transfer-encoding", "origin",
          "cookie", "accept", "idempotency-key", "x-forwarded-for", "access-control-request-method"]  # fmt: skip
_LATIN = st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=12)
_HEADER_VALUES = st.one_of(
    st.sampled_from(["Bearer sk_all", "Bearer pk_web", "application/json", "identity", "gzip", "12", "chunked", SHOP,
                     f"Bearer {CANARY}", f"https://{CANARY}", f"application/{CANARY}", CANARY, "POST"]),
    _LATIN,
)  # fmt: skip
_PATHS = st.one_of(
    st.sampled_from(["/v1/check", "/v1/small", "/livez", f"/v1/things/{CANARY}", f"/v1/notices/{CANARY}"]),
    st.lists(st.sampled_from(["/", "v1", "things", CANARY, "%", "%ff", "%2F", "..", "é", "{id}", "%00"]), max_size=8)
    .map("".join),
)  # fmt: skip
_QUERIES = st.sampled_from(["", f"?key={CANARY}", f"?q={CANARY}&key=pk_web", f"?{CANARY}=%ff", "?key=pk_web"])
_BODIES = st.one_of(
    st.sampled_from([GOOD, f'{{"name":"{CANARY}"}}'.encode(), f'{{"name":{CANARY}}}'.encode(), b"[" * 99]),
    st.binary(max_size=200),
    st.binary(max_size=20).map(lambda raw: f'{{"name": ["{CANARY}"], '.encode() + raw),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["POST", "POST", "POST", "GET", "GET", "HEAD", "OPTIONS", "PUT", CANARY]),
    target=st.tuples(_PATHS, _QUERIES).map("".join),
    headers=st.lists(st.tuples(st.sampled_from(_NAMES) | _LATIN.map(str.lower), _HEADER_VALUES), max_size=4),
    common=st.sampled_from([[], [("authorization", "Bearer sk_all")], list(auth().items()), list(auth().items())]),
    body=_BODIES,
    is_chunked=st.booleans(),
)
def test_hostile_input_is_refused_without_an_echo(logs, method, target, headers, common, body, is_chunked):
    door = make()
    chunks = [body[:7], body[7:]] if is_chunked else body
    reply = asyncio.run(ask(door.guard, method, target, common + headers, chunks))
    assert reply.status in {200, 204, 400, 401, 403, 404, 405, 413, 415, 422}
    if reply.status >= 400 and method != "HEAD":
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.problem["status"] == reply.status
    # A preflight and an allowed origin are answered with the origin itself: that echo is CORS.
    told = [value for name, value in reply.raw_headers if name != b"access-control-allow-origin"]
    assert CANARY.encode() not in b"".join(told) + reply.body
    assert CANARY not in json.dumps(logs())
    assert CANARY.encode() not in guard.render_metrics()


def test_the_fuzz_would_notice_an_echo(logs):
    door = make()

    async def careless(scope: Any, raw: bytes, send: Any) -> None:
        log.get("test").info("got", url=scope["path"])
        await answer(send, raw)

    door.behind.act = careless
    body = f'{{"name":"{CANARY}"}}'.encode()
    reply = asyncio.run(ask(door.guard, "POST", f"/v1/things/{CANARY}/end", auth(), body))
    assert CANARY.encode() in reply.body
    assert CANARY in json.dumps(logs())


# Metrics.


async def test_answers_are_counted_by_operation_and_status(door):
    def counted(operation: str, status: int) -> float:
        found = re.search(rf'^consent_requests_total{{operation="{operation}",status="{status}"}} (\S+)$',
                          guard.render_metrics().decode(), re.MULTILINE)  # fmt: skip
        return float(found[1]) if found else 0

    before = counted("check", 200), counted("check", 401), counted("none", 404)
    await ask(door.guard, "POST", "/v1/check", auth(), GOOD)
    await ask(door.guard, "POST", "/v1/check", JSON, GOOD)
    await ask(door.guard, "GET", f"/{CANARY}")
    assert (counted("check", 200), counted("check", 401), counted("none", 404)) == tuple(one + 1 for one in before)
    text = guard.render_metrics().decode()
    assert 'consent_request_seconds_bucket{le="0.001",operation="check"}' in text
    assert CANARY not in text


_WORKER = """
import sys
from consent_service.guard import metrics
for _ in range(int(sys.argv[1])):
    metrics.record("check", 200, 0.002)
"""


def test_the_numbers_of_all_workers_add_up(tmp_path, monkeypatch):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [subprocess.Popen([sys.executable, "-c", _WORKER, count], env=environment) for count in ("3", "4")]
    assert [worker.wait(30) for worker in workers] == [0, 0]
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    text = guard.render_metrics().decode()
    assert 'consent_requests_total{operation="check",status="200"} 7.0' in text
    assert 'consent_request_seconds_count{operation="check"} 7.0' in text
    assert 'consent_request_seconds_bucket{le="0.001",operation="check"} 0.0' in text
    assert 'consent_request_seconds_bucket{le="0.0025",operation="check"} 7.0' in text


# Over a real socket.


@asynccontextmanager
async def serving(http: str = "httptools", **settings: Any) -> AsyncIterator[SimpleNamespace]:
    door = make(**settings)
    config = uvicorn.Config(door.guard, port=0, http=http, ws="none", lifespan="off", log_config=None,
                            timeout_graceful_shutdown=1)  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    async with asyncio.timeout(20):
        while not server.started:  # noqa: ASYNC110 -- it tells by this flag alone
            await asyncio.sleep(0.01)
        door.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield door
        finally:
            server.should_exit = True
            await task


def head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def post(body: bytes, path: str = "/v1/check") -> bytes:
    return head("POST", path, auth(content_length=str(len(body)))) + body


async def talk(port: int, *parts: bytes | float, half_close: bool = False, patience: float = 0.4) -> bytes:
    """Send the parts (a number is a pause in seconds) and read until the server closes, or patience ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = bytearray()

    async def listen() -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                heard.extend(chunk)
        heard.extend(b"<closed>")

    listening = asyncio.create_task(listen())
    with suppress(ConnectionError):
        for part in parts:
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            else:
                await asyncio.sleep(part)
        if half_close:
            writer.write_eof()
    await asyncio.wait([listening], timeout=patience)
    listening.cancel()
    await asyncio.wait([listening])
    writer.close()
    return bytes(heard)


@pytest.fixture(params=["httptools", "h11"])
def http(request) -> str:
    return request.param


def statuses(heard: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3})", heard)]


async def test_a_slow_body_is_cut_off(http):
    async with serving(http, body_s=0.2) as door:
        heard = await talk(door.port, post(GOOD)[:-5], patience=5)
        assert statuses(heard) == [408]
        assert b"connection: close" in heard
        assert heard.endswith(b"<closed>")
        dripping = head("POST", "/v1/check", auth(transfer_encoding="chunked"))
        heard = await talk(door.port, dripping, *[b"1\r\n \r\n", 0.06] * 6)
        assert statuses(heard) == [408]
        assert door.behind.scopes == []
        assert statuses(await talk(door.port, post(GOOD)[:-5], 0.05, GOOD[-5:])) == [200]


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_body_that_took_long_is_taken_from_whoever_may_still_send_it(monkeypatch, revoked):
    monkeypatch.setattr(door_of_the_guard, "FRESH_S", 0.01)
    keys, behind, sent = Keys(), Behind(), []
    chunks = [b'{"name":', b'"x"}']

    async def receive() -> Any:
        if len(chunks) == 1:
            await asyncio.sleep(0.02)
            keys.seen.clear()
            if revoked:
                monkeypatch.delitem(KEYS, "sk_all")
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    await Guard(behind, OPERATIONS, keys)(scope_of("POST", "/v1/check", auth(content_length="12")), receive, send)
    assert sent[0]["status"] == (401 if revoked else 200)
    assert behind.bodies == ([] if revoked else [GOOD])
    assert keys.asked == ["sk_all", "sk_all"]


async def test_chunked_bodies(http):
    async with serving(http) as door:
        chunked = head("POST", "/v1/small", auth(transfer_encoding="chunked"))
        good = chunked + b'6\r\n{"name\r\n' + b'6\r\n":"x"}\r\n0\r\n\r\n'
        assert statuses(await talk(door.port, good, good)) == [200, 200]
        assert door.behind.bodies == [GOOD, GOOD]
        large = chunked + (b"3c\r\n" + b" " * 60 + b"\r\n") * 2
        heard = await talk(door.port, large + b"0\r\n\r\n", good)
        assert statuses(heard) == [413, 200], "it came to its end, so the connection is in step"
        heard = await talk(door.port, large, patience=3)
        assert statuses(heard) == [413]
        assert heard.endswith(b"<closed>")


async def test_a_refusal_is_read_by_clients_that_send_everything_first(http):
    def send_all_then_read(port: int, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(request)
            heard = b""
            while chunk := connection.recv(65_536):
                heard += chunk
        return heard

    async with serving(http) as door:
        for path, status in (("/v1/check", 413), ("/v1/nothing", 404)):
            heard = await asyncio.to_thread(send_all_then_read, door.port, post(b" " * 3_000_000, path))
            assert statuses(heard) == [status]
            assert b"connection: close" in heard


async def test_a_small_refused_body_leaves_the_connection_open(http):
    async with serving(http) as door:
        refused = head("POST", "/v1/check", {**JSON, "Content-Length": "12"}) + GOOD
        heard = await talk(door.port, refused, post(GOOD))
        assert statuses(heard) == [401, 200]
        assert not heard.endswith(b"<closed>")


async def test_pipelined_requests_are_answered_in_order(http):
    async with serving(http) as door:
        live = head("GET", "/livez", {})
        heard = await talk(door.port, live + post(GOOD) + head("GET", "/none", {}) + post(b"nothing") + live)
        assert statuses(heard) == [200, 200, 404, 400, 200]


async def test_head_keeps_the_connection_in_step(http):
    async with serving(http) as door:
        heard = await talk(door.port, head("HEAD", "/livez", {}), head("HEAD", "/none", {}), head("GET", "/livez", {}))
        assert statuses(heard) == [200, 404, 200]
        assert heard.count(b"\r\n\r\n{") == 1
        assert not heard.endswith(b"<closed>")


async def test_half_closed_connections_reach_nobody(http):
    async with serving(http) as door:
        heard = await talk(door.port, post(GOOD)[:-5], half_close=True)
        assert statuses(heard) in ([], [400])
        assert heard.endswith(b"<closed>")
        assert door.behind.scopes == []
        assert statuses(await talk(door.port, post(GOOD))) == [200]


async def test_an_answer_that_fails_half_way_is_cut_off(http):
    async with serving(http) as door:

        async def half(_scope: Any, _raw: bytes, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise RuntimeError(CANARY)

        door.behind.act = half
        heard = await talk(door.port, post(GOOD))
        assert heard.endswith(b"half<closed>")
        door.behind.act = None
        assert statuses(await talk(door.port, post(GOOD))) == [200]


async def test_only_who_is_let_in_is_asked_for_a_large_body(http):
    async with serving(http) as door:
        expecting = auth(content_length="12", expect="100-continue")
        assert statuses(await talk(door.port, head("POST", "/v1/check", expecting), 0.1, GOOD)) == [100, 200]
        expecting["content-length"] = "900000"
        assert statuses(await talk(door.port, head("POST", "/v1/check", expecting)))[0] == 413
