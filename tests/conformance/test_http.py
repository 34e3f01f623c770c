"""Hostile HTTP over a raw socket: what no well-behaved client sends, against the real service.

On a name that stands twice in an object: RFC 8259 leaves open what that means, so two readers of one record may differ
about what a person decided. A record must mean one thing; it is refused, everywhere in a body.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from conftest import Tenant

from consent_service import app
from consent_service.decisions.model import MAX_CHECKS
from consent_service.guard.body import MAX_DEPTH

from .conftest import CANARY, NOTICE, Live, Service, grant, problem, somebody

JSON = b"Content-Type: application/json"
WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
CHECK = {"purpose": "analytics", "channel": "web"}
_PATIENCE_S = 5


class Heard:
    """What came back over one connection."""

    def __init__(self, raw: bytes, *, closed: bool) -> None:
        self.raw = raw
        self.closed = closed
        """Whether the server ended the connection."""
        self.statuses = [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]
        if not any(status < 300 for status in self.statuses):
            assert CANARY.encode() not in raw, "a refusal repeats what was sent"


async def talk(port: int, *parts: bytes | float, answers: int = 1) -> Heard:
    """Send the parts (a number is a pause in seconds); read until there are that many answers, or the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard, closed = bytearray(), False

    async def send() -> None:
        with suppress(ConnectionError):
            for part in parts:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                else:
                    await asyncio.sleep(part)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while _whole(bytes(heard)) < answers:
                chunk = await reader.read(65_536)
                if not chunk:
                    closed = True
                    break
                heard.extend(chunk)
            if not closed and b"connection: close" in bytes(heard).lower():
                closed = await reader.read() == b""
    except ConnectionError:
        closed = True
    except TimeoutError:
        pass
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return Heard(bytes(heard), closed=closed)


def _whole(heard: bytes) -> int:
    """How many complete answers there are, bodies by their lengths."""
    count = 0
    while heard:
        head, found, rest = heard.partition(b"\r\n\r\n")
        if not found:
            break
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            break
        count, heard = count + 1, rest[size:]
    return count


def request(
    service: Service | str, body: bytes, *headers: bytes, path: str = "/v1/consents", key: str = "service"
) -> bytes:
    """A POST with a key; the headers are all there are beside it, but for the length."""
    token = service if isinstance(service, str) else service.keys[key]
    lines = [f"POST {path} HTTP/1.1".encode(), b"Host: test", b"Authorization: Bearer " + token.encode()]
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + body


def raw(subject: dict[str, str], **more: Any) -> bytes:
    return json.dumps(grant(subject, **more)).encode()


def spliced(subject: dict[str, str], value: bytes) -> bytes:
    """A body that is right but for this value in its evidence."""
    before, after = raw(subject, evidence={"x": "@"}).split(b'"@"')
    return before + value + after


# -- writes from other sites ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Type: text/plain",
        b"Content-Type: text/plain; x=application/json",
        b"Content-Type: application/x-www-form-urlencoded",
        b"Content-Type: multipart/form-data; boundary=x",
        b"Content-Type: application/jsonx",
        b"Content-Type: application/json, text/plain",
        b"Content-Type: application/json; charset=utf-16",
        b"Content-Type: application/problem+json",
        b"Content-Type:",
        b"X-None: 1",
    ],
)
async def test_only_json_announced_as_json_is_read(live: Live, header: bytes) -> None:
    subject = somebody()
    heard = await talk(live.service.port, request(live.service, raw(subject), header))
    assert heard.statuses == [415]
    assert await live.events(subject) == []


@pytest.mark.parametrize("key", ["service", "publishable"])
@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"", b"http://127.0.0.1", b"http://127.0.0.1:1"])
async def test_foreign_pages_write_nothing(live: Live, key: str, origin: bytes) -> None:
    subject = {**somebody(), "type": "device"}
    sent = request(live.service, raw(subject), JSON, b"Origin: " + origin, key=key)
    heard = await talk(live.service.port, sent)
    assert heard.statuses == [403]
    assert b"access-control-allow-origin" not in heard.raw.lower()
    assert await live.events(subject) == []


async def test_the_own_page_writes(live: Live) -> None:
    publishable = {"Authorization": f"Bearer {live.service.keys['publishable']}"}
    minted = (await live.http.post("/v1/devices", json={}, headers=publishable)).json()
    subject = minted["identifier"]
    body = json.dumps({**json.loads(raw(subject)), "proof": minted["token"]}).encode()
    origin = b"Origin: " + live.service.url.encode()
    heard = await talk(live.service.port, request(live.service, body, JSON, origin, key="publishable"))
    assert heard.statuses == [201]
    assert b"access-control-allow-origin: " + live.service.url.encode() in heard.raw.lower()
    assert len(await live.events(subject)) == 1


# -- methods and addresses ------------------------------------------------------------------------------------------


async def test_methods(live: Live) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "PROPFIND"):
        answer = await live.http.request(method, "/v1/consents")
        assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST"), method
    head, get = await live.http.head("/livez"), await live.http.get("/livez")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))
    assert (await live.http.head("/v1/check")).content == b""
    for unknown in (b"BREW /livez HTTP/1.1\r\nHost: test\r\n\r\n", b"get /livez HTTP/1.1\r\nHost: test\r\n\r\n"):
        assert (await talk(live.service.port, unknown)).statuses in ([400], [405])


@pytest.mark.parametrize(
    "target",
    [
        "/v1/%63onsents", "/v1/consents/", "//v1/consents", "/v1/../v1/consents", "/v1/./consents", "/v1/consents%2f",
        "/v1/consents%00", "/v1/consents%0a", "/v1/%ff%fe", "/v1/%zz", "/v1/%", "/v1/consents;x=1", "/v1\\consents",
        "/V1/CONSENTS", "/v1/consents?x=%00", "/v1/consents?x=%ff", "/v1/consents?key=%zz", "*", "v1/consents",
    ],
)  # fmt: skip
async def test_addresses_have_one_spelling(live: Live, target: str) -> None:
    subject = somebody()
    heard = await talk(live.service.port, request(live.service, raw(subject), JSON, path=target))
    assert heard.statuses in ([400], [404])
    assert await live.events(subject) == []


# -- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-7", "latin-1"]
)
async def test_only_utf_8_is_read(live: Live, encoding: str) -> None:
    subject = somebody()
    text = json.dumps(grant(subject, evidence={"name": "Märta"}), ensure_ascii=False)
    heard = await talk(live.service.port, request(live.service, text.encode(encoding), JSON))
    if encoding == "utf-7":  # is ASCII, and says something else
        assert heard.statuses == [201]
        assert (await live.events(subject))[0]["evidence"] == {"name": "M+AOQ-rta"}
    else:
        assert heard.statuses == [400]
        assert await live.events(subject) == []


@pytest.mark.parametrize(
    ("value", "statuses"),
    [
        (b"\x00", {400}),
        (b'"a\x00b"', {400}),
        (b'"a\x1fb"', {400}),
        (b'"\\ud800"', {400, 422}),
        (b'"\\udc00\\ud800"', {400, 422}),
        (b'"\xed\xa0\x80"', {400}),
        (b'"\xc0\x80"', {400}),
        (b'"\xf4\x90\x80\x80"', {400}),
        (b"1e400", {400, 422}),
        (b"-1e400", {400, 422}),
        (b"9" * 5_000, {400, 422}),
        (b"1" + b"0" * 40_000 + b".0", {400, 422}),
        (b"0." + b"1" * 40_000, {201, 400, 422}),
        (b"[" * 10_000 + b"]" * 10_000, {400}),
        (b'{"x":' * 10_000 + b"1" + b"}" * 10_000, {400}),
        (b"[" * 30_000, {400}),
        (b'"' + b"\\" * 30_001 + b'"', {400}),
        (b'"\\u0000"', {201}),
        (b'"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["', {201}),
        (b'"\\\\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["', {201}),
        (b"1180591620717411303424", {422}),
        (b"-1180591620717411303424", {422}),
        (b"9007199254740992", {422}),
        (b"9007199254740991", {201}),
        (b"-9007199254740991", {201}),
        (b"0.1", {201}),
        (b"-0.0", {201}),
        (b"5e-324", {201}),
        (b"1.7976931348623157e308", {201}),
    ],
)
async def test_values_are_stored_as_they_were_sent_or_refused(live: Live, value: bytes, statuses: set[int]) -> None:
    subject = somebody()
    began = time.monotonic()
    heard = await talk(live.service.port, request(live.service, spliced(subject, value), JSON))
    assert time.monotonic() - began < 2
    assert set(heard.statuses) <= statuses
    assert len(heard.statuses) == 1
    events = await live.events(subject)
    if heard.statuses == [201]:
        assert events[0]["evidence"]["x"] == json.loads(value)
    else:
        assert events == []


@pytest.mark.parametrize("deeper", [0, 1])
async def test_the_deepest_body_that_is_taken_can_be_read_back(live: Live, deeper: int) -> None:
    subject, levels = somebody(), MAX_DEPTH - 2 + deeper
    value = b"[" * levels + b"]" * levels
    heard = await talk(live.service.port, request(live.service, spliced(subject, value), JSON))
    assert heard.statuses == [400 if deeper else 201]
    if not deeper:
        assert (await live.events(subject))[0]["evidence"] == {"x": json.loads(value)}
        explained = await live.post("/v1/check", {"subject": subject, **CHECK, "explain": True})
        assert explained.json()["allow"]


@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, 2**70, -1, 10**400])
async def test_numbers_out_of_range(live: Live, number: int) -> None:
    subject = somebody()
    notice = {"id": "web-banner", "version": number, "language": "en"}
    answer = await live.post("/v1/consents", grant(subject, notice=notice))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/notice/version")
    for body in ({"after": -abs(number)}, {"after": 2**60 + abs(number)}, {"limit": number}):
        answer = await live.post("/v1/subjects/history", {"subject": subject, **body}, "dpo")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{next(iter(body))}")
    answer = await live.post("/v1/check", {"subject": subject, **CHECK, "context": {"age": number}})
    assert answer.status_code == 422
    answer = await live.post("/v1/check", {"subject": subject, **CHECK, "at_least": f"999999999.{abs(number)}"})
    assert answer.status_code in {409, 422}
    assert await live.events(subject) == []


@pytest.mark.parametrize(
    "moment",
    [
        "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "1989-12-31T23:59:59Z",
        "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2024-01-01T00:00:00", "2024-01-01T00:00:60Z", "infinity",
        "2024-02-30T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00+24:00", "-1", "now", 0, 1e18,
    ],
)  # fmt: skip
async def test_times_that_cannot_be_meant(live: Live, moment: Any) -> None:
    """A grant with such a time is refused; a no stands all the same, from now on."""
    subject = somebody()
    answer = await live.post("/v1/consents", grant(subject, records=[{**WEB, "occurred_at": moment}]))
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert (answer.status_code, pointers) == (422, ["/records/0/occurred_at"])
    assert await live.events(subject) == []
    await live.post("/v1/consents", grant(subject))
    no = {"purpose": "analytics", "status": "withdrawn", "occurred_at": moment}
    assert (await live.post("/v1/consents", {"subject": subject, "records": [no]})).status_code in {201, 422}
    check = (await live.post("/v1/check", {"subject": subject, **CHECK})).json()
    assert (check["allow"], check["reason"]) == (False, "withdrawn")


DOUBLES = [
    b'"records":[{"purpose":"analytics","status":"withdrawn","status":"given","channel":"web"}]',
    b'"records":[{"purpose":"analytics","status":"withdrawn"}],"records":[%(web)s]',
    b'"subject":{"type":"login","id":"another"},"records":[%(web)s]',
    b'"records":[%(web)s],"evidence":{"who":"Ada","who":"Eve"}',
    b'"records":[{"purpose":"analytics","status":"given","ch\\u0061nnel":"app","channel":"web"}]',
]


@pytest.mark.parametrize("body", DOUBLES)
async def test_a_name_that_stands_twice_is_refused(live: Live, body: bytes) -> None:
    subject = somebody()
    rest = json.dumps({"subject": subject, "notice": NOTICE, "method": "form", "id": uuid.uuid4().hex})
    sent = b"{" + body.replace(b"%(web)s", json.dumps(WEB).encode()) + b"," + rest[1:].encode()
    answer = await live.post("/v1/consents", sent)
    assert (answer.status_code, problem(answer)) == (422, "/problems/invalid")
    assert await live.events(subject) == []


# -- identifiers that are nearly the same ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [{"subject": {"type": "login\n", "id": "x"}, **CHECK}, {**CHECK, "context": {"jurisdiction": "DE\n"}}]
)
async def test_a_pattern_ends_where_the_text_ends(live: Live, body: dict[str, Any]) -> None:
    assert (await live.post("/v1/check", {"subject": somebody(), **body})).status_code == 422


async def test_two_addresses_stay_two(live: Live) -> None:
    subject, record = somebody(), {"purpose": "marketing.email", "status": "given"}
    given = await live.post("/v1/consents", grant(subject, records=[{**record, "contact": "strasse@example.org"}]))
    assert given.status_code == 201
    question = {"subject": subject, "purpose": "marketing.email", "contact": "straße@example.org"}
    assert (await live.post("/v1/check", question)).json()["reason"] == "contact_not_covered"


@pytest.mark.parametrize("key", ["bestellung-ä", "à"])
async def test_a_key_is_the_same_in_header_and_body(live: Live, key: str) -> None:
    body = grant(somebody(), id=f"{uuid.uuid4().hex}{key}")
    answer = await live.post("/v1/consents", body, idempotency_key=body["id"].encode())
    assert answer.status_code == 201


@pytest.mark.parametrize("path", ["/v1/subjects/state", "/v1/subjects/history"])
@pytest.mark.parametrize("name", ["Mu\u0308ller", " x", "a\x00b", "\u202ex"])
async def test_ids_that_nobody_can_have_are_refused_by_every_call(live: Live, path: str, name: str) -> None:
    answer = await live.post(path, {"subject": {"type": "login", "id": name}}, "dpo")
    assert (answer.status_code, [e["pointer"] for e in answer.json()["errors"]]) == (422, ["/subject/id"])


async def test_a_no_under_a_used_key_stands(live: Live) -> None:
    subject = somebody()
    given = grant(subject)
    await live.post("/v1/consents", given)
    no = {"id": given["id"], "subject": subject, "records": [{"purpose": "analytics", "status": "withdrawn"}]}
    assert problem(await live.post("/v1/consents", no)) == "/problems/key-reused"
    assert not (await live.post("/v1/check", {"subject": subject, **CHECK})).json()["allow"]


# -- framing --------------------------------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    port, service, subject = live.service.port, live.service, somebody()
    check = request(service, json.dumps({"subject": subject, **CHECK}).encode(), JSON, path="/v1/check")
    written = request(service, raw(subject), JSON)
    nothing = b"GET /nothing HTTP/1.1\r\nHost: test\r\n\r\n"
    heard = await talk(port, check + written + check + nothing + request(service, b"{", JSON) + check, answers=6)
    assert heard.statuses == [200, 201, 200, 404, 400, 200]
    assert re.findall(rb'"allow":(\w+),"reason":"\w+","basis"', heard.raw) == [b"false", b"true", b"true"]


@pytest.mark.parametrize(
    "headers",
    [
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5, 6",),
        (b"Content-Length: -5",),
        (b"Content-Length: +5",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 99999999999999999999999",),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding : chunked",),
    ],
)
async def test_ambiguous_lengths_write_nothing(live: Live, headers: tuple[bytes, ...]) -> None:
    subject, hidden = somebody(), somebody()
    smuggled = request(live.service, raw(hidden), JSON)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(raw(subject)), raw(subject))
    heard = await talk(live.service.port, request(live.service, chunk, JSON, *headers) + smuggled, answers=2)
    assert all(400 <= status < 500 for status in heard.statuses)
    assert len(heard.statuses) <= 1
    assert await live.events(subject) == []
    assert await live.events(hidden) == []


@pytest.mark.parametrize("header", [b"Authorization: Bearer x", b"Content-Type: text/plain", b"Origin: x"])
async def test_headers_that_decide_stand_once(live: Live, header: bytes) -> None:
    subject = somebody()
    heard = await talk(live.service.port, request(live.service, raw(subject), JSON, b"Origin: y", header))
    assert heard.statuses == [400]
    assert await live.events(subject) == []


@pytest.mark.parametrize(
    "header",
    [
        b"X-Long: " + b"x" * 2_000_000,
        b"Idempotency-Key: " + b"x" * 100_000,
        b"X" * 100_000 + b": 1",
        b"\r\n".join(b"X-%d: 1" % number for number in range(20_000)),
        b"X-Nul: a\x00b",
        b"X-Bare: a\nb",
        b"No colon",
        b" folded: 1",
    ],
    ids=["value", "key", "name", "many", "nul", "bare", "colon", "folded"],
)
async def test_heads_that_are_wrong_or_too_long(live: Live, header: bytes) -> None:
    subject = somebody()
    body = json.dumps({**grant(subject), "id": None}).encode()
    heard = await talk(live.service.port, request(live.service, body, JSON, header))
    if heard.statuses != [201]:
        assert all(400 <= status < 500 for status in heard.statuses)
        assert await live.events(subject) == []
    assert heard.closed or heard.statuses
    assert (await live.http.get("/livez")).status_code == 200


@pytest.mark.parametrize("token", ["x" * 1_025, "x" * 50_000, "sk_1_service_" + "x" * 44, "", " ", "Märta", "a b"])
async def test_credentials_that_are_none(live: Live, token: str) -> None:
    subject = somebody()
    heard = await talk(live.service.port, request(token, raw(subject), JSON))
    assert heard.statuses == [401]
    assert await live.events(subject) == []


async def test_a_head_that_never_ends_is_cut_off(live: Live) -> None:
    """Ended by its size long before it could fill the memory."""
    line = b"X-More: " + b"x" * 8_000 + b"\r\n"
    heard = await talk(live.service.port, b"GET /livez HTTP/1.1\r\nHost: test\r\n", *[line * 16] * 256)
    assert heard.closed
    assert heard.statuses in ([], [400], [431])


async def test_chunked_bodies(live: Live) -> None:
    subject = somebody()
    body = raw(subject)
    chunks = b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body))) + b"0\r\n\r\n"
    sent = request(live.service, chunks, JSON, b"Transfer-Encoding: chunked")
    assert (await talk(live.service.port, sent)).statuses == [201]
    assert len(await live.events(subject)) == 1
    large = request(live.service, b"10000\r\n" + b" " * 65_536 + b"\r\n" + chunks, JSON, b"Transfer-Encoding: chunked")
    assert (await talk(live.service.port, large)).statuses == [413]
    wrong = request(live.service, b"zz\r\n" + body, JSON, b"Transfer-Encoding: chunked")
    assert (await talk(live.service.port, wrong)).statuses in ([], [400])


async def test_a_dripping_body_is_cut_off(tenant: Tenant) -> None:
    front = app.build(tenant.services)
    front._body_s = 0.4
    server = uvicorn.Server(
        uvicorn.Config(front, port=0, http="httptools", ws="none", lifespan="off", log_config=None)  # type: ignore[arg-type]
    )
    serving = asyncio.create_task(server._serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:  # noqa: ASYNC110 -- it tells by this flag alone
                await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        body = raw(somebody())
        head = request(tenant.keys["service"], b"", JSON, b"Transfer-Encoding: chunked")
        drip = [part for byte in body[:20] for part in (b"1\r\n%c\r\n" % byte, 0.1)]
        began = time.monotonic()
        heard = await talk(port, head, *drip)
        assert (heard.statuses, heard.closed) == ([408], True)
        assert time.monotonic() - began < 1.5
        heard = await talk(port, request(tenant.keys["service"], body[:-1], JSON, b"Content-Length: %d" % len(body)))
        assert (heard.statuses, heard.closed) == ([408], True)
        assert (await talk(port, request(tenant.keys["service"], body, JSON))).statuses == [201]
    finally:
        server.should_exit = True
        await serving


# -- sizes ----------------------------------------------------------------------------------------------------------


async def test_bodies_up_to_64_kb(live: Live) -> None:
    for size, status in ((65_536, 201), (65_537, 413), (1_000_000, 413)):
        subject = somebody()
        body = raw(subject)
        heard = await talk(live.service.port, request(live.service, body + b" " * (size - len(body)), JSON))
        assert heard.statuses == [status]
        assert len(await live.events(subject)) == (status == 201)
    announced = request(live.service, b"", JSON, b"Content-Length: 9000000", path="/v1/checks")
    heard = await talk(live.service.port, announced)
    assert (heard.statuses, heard.closed) == ([413], True)


async def test_a_batch_of_the_largest_size(live: Live) -> None:
    checks = [{"subject": somebody(), **CHECK} for _ in range(MAX_CHECKS + 1)]
    answer = await live.post("/v1/checks", {"checks": checks[:-1]})
    assert answer.status_code == 200
    assert [decision["reason"] for decision in answer.json()["decisions"]] == ["no_record"] * MAX_CHECKS
    answer = await live.post("/v1/checks", {"checks": checks})
    assert (answer.status_code, [e["pointer"] for e in answer.json()["errors"]]) == (422, ["/checks"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"checks":[' + b",".join([b"{}"] * MAX_CHECKS) + b"]}",
        b'{"checks":[{' + b",".join(b'"%d":1' % number for number in range(50_000)) + b"}]}",
        b'{"checks":[' + b",".join([b'{"subject":{"type":"A","id":""},"purpose":1}'] * MAX_CHECKS) + b"]}",
    ],
    ids=["empty", "names", "fields"],
)
async def test_a_bulk_body_that_is_all_wrong_is_refused_at_once(live: Live, body: bytes) -> None:
    began = time.monotonic()
    answer = await live.post("/v1/checks", body)
    assert answer.status_code == 422
    assert time.monotonic() - began < 1
    assert len(answer.content) < 65_536


async def test_nothing_of_all_that_is_told_to_anybody_else(live: Live) -> None:
    assert CANARY not in live.service.log()
    assert CANARY not in (await live.http.get("/metrics")).text
    assert (await live.http.get("/readyz")).status_code == 200
    assert "request failed" not in live.service.log(), "nothing of this was a failure of ours"
