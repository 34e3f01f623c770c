"""Strings that have broken software before, in every place where a caller's own text may stand.

Accepted: it comes back exactly, and nobody else is found by it. Refused: a problem document with a pointer, which
repeats nothing of it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import unicodedata
import uuid
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import quote

import httpx

from .conftest import CANARY, NOTICE, Live, grant, problem, somebody

TOO_SHORT = 6
"""Shorter strings stand in any text."""
_AT_ONCE = 8


async def each(strings: Iterable[str], ask: Callable[[str], Awaitable[list[str]]]) -> list[str]:
    """What is wrong with any of them, a few at a time; told by escapes, as some would spoil a terminal."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(string: str) -> list[str]:
        async with gate:
            return [f"{string!a}: {wrong}" for wrong in await ask(string)]

    return list(itertools.chain.from_iterable(await asyncio.gather(*map(one, strings))))


def refusal_faults(string: str, answer: httpx.Response, pointers: set[str]) -> list[str]:
    """What is wrong with a refusal of a string, which may name these fields only."""
    wrong = []
    if not 400 <= answer.status_code < 500:
        wrong.append(f"{answer.status_code}")
    if not problem(answer):
        wrong.append("no problem document")
    else:
        document = answer.json()
        named = {error["pointer"] for error in document.get("errors", [])}
        if not named or not named <= pointers:
            wrong.append(f"points at {sorted(named)}")
        if echoes(string, json.dumps(document, ensure_ascii=False)):
            wrong.append("is repeated")
    return wrong


def echoes(string: str, text: str) -> bool:
    return len(string) >= TOO_SHORT and (string in text or json.dumps(string)[1:-1] in text)


async def test_as_subject(live: Live, naughty: list[str]) -> None:
    accepted, other = set(), somebody()["id"]

    async def ask(string: str) -> list[str]:
        subject = {"type": "login", "id": string}
        answer = await live.post("/v1/consents", grant(subject, evidence={"owner": string}))
        check = await live.post("/v1/check", {"subject": subject, "purpose": "analytics", "channel": "web"})
        if answer.status_code != 201:
            return refusal_faults(string, answer, {"/subject/id"}) + refusal_faults(string, check, {"/subject/id"})
        accepted.add(string)
        wrong = []
        events = await live.events(subject)
        if [(e["subject"], e["evidence"]) for e in events] != [(subject, {"owner": string})]:
            wrong.append(f"history holds {events!a}")
        if check.status_code != 200 or not check.json()["allow"]:
            wrong.append(f"check says {check.text}")
        state = await live.post("/v1/subjects/state", {"subject": subject}, "dpo")
        if state.status_code != 200 or state.json()["subject"] != subject:
            wrong.append(f"state says {state.text[:200]}")
        return wrong

    strings = list(dict.fromkeys(naughty))
    assert await each(strings, ask) == []
    assert len(accepted) > len(strings) / 2
    assert other not in accepted
    refused = [string for string in strings if string not in accepted]
    assert "" in refused
    assert any(unicodedata.category(char) == "Cf" for string in refused for char in string)


async def test_as_contact(live: Live, naughty: list[str]) -> None:
    async def ask(string: str) -> list[str]:
        subject = somebody()
        record = {"purpose": "marketing.email", "status": "given", "contact": string}
        answer = await live.post("/v1/consents", grant(subject, records=[record]))
        question = {"subject": subject, "purpose": "marketing.email", "contact": string}
        check = await live.post("/v1/check", question)
        if answer.status_code != 201:
            return refusal_faults(string, answer, {"/records/0/contact"}) + refusal_faults(string, check, {"/contact"})
        wrong = []
        (event,) = await live.events(subject)
        if event["records"][0]["contact"] != string:
            wrong.append(f"history holds {event['records']!a}")
        if check.status_code != 200 or not check.json()["allow"]:
            wrong.append(f"check says {check.text}")
        elsewhere = await live.post("/v1/check", {**question, "contact": f"{CANARY}@example.org"})
        if elsewhere.json()["reason"] != "contact_not_covered":
            wrong.append(f"covers another address: {elsewhere.text}")
        return wrong

    assert await each(dict.fromkeys(naughty), ask) == []


async def test_as_evidence(live: Live, naughty: list[str]) -> None:
    async def ask(string: str) -> list[str]:
        subject = somebody()
        evidence = {"value": string, "list": [string], string: {"key": string}}
        answer = await live.post("/v1/consents", grant(subject, evidence=evidence))
        if answer.status_code != 201:
            return [f"{answer.status_code}: any text may be evidence"]
        (event,) = await live.events(subject)
        return [] if event["evidence"] == evidence else [f"history holds {event['evidence']!a}"]

    assert await each(dict.fromkeys(naughty), ask) == []


async def test_as_idempotency_key(live: Live, naughty: list[str]) -> None:
    """The same key twice is one act; in the header, where only some bytes may stand, it may be refused."""

    async def ask(string: str) -> list[str]:
        body = grant(somebody(), id=string)
        first, again = await live.post("/v1/consents", body), await live.post("/v1/consents", body)
        if problem(first) == "/problems/key-reused":
            return []  # other tests use simple keys too
        if first.status_code != 201:
            return refusal_faults(string, first, {"/id"})
        wrong = [] if again.content == first.content else [f"a retry says {again.text[:200]}"]
        other = await live.post("/v1/consents", grant(somebody(), id=string))
        if problem(other) != "/problems/key-reused" or echoes(string, other.text):
            wrong.append(f"for somebody else: {other.text[:200]}")
        return wrong

    async def ask_in_header(string: str) -> list[str]:
        body = {**grant(somebody()), "id": None}
        try:
            answer = await live.post("/v1/consents", body, idempotency_key=string.encode())
        except httpx.LocalProtocolError:
            return []  # line ends and NUL, which no client will send; test_http.py does
        if answer.status_code == 400 and any(unicodedata.category(char) == "Cc" for char in string):
            return []  # the server's own refusal of what is no HTTP
        return [] if answer.status_code == 201 else refusal_faults(string, answer, {"/id"})

    strings = list(dict.fromkeys(naughty))
    assert await each(strings, ask) == []
    mine = uuid.uuid4().hex[:8]  # these are keys of the body by now
    assert await each([mine + string for string in strings], ask_in_header) == []


async def test_as_names_of_the_policy_in_records(live: Live, naughty: list[str]) -> None:
    async def ask(string: str) -> list[str]:
        subject, wrong = somebody(), []
        for field in ("purpose", "channel", "recipient", "status"):
            record = {"purpose": "share.partner", "status": "given", "channel": "web", field: string}
            answer = await live.post("/v1/consents", grant(subject, records=[record]))
            wrong += [f"{field} {found}" for found in refusal_faults(string, answer, {f"/records/0/{field}"})]
        for field in ("id", "language"):
            answer = await live.post("/v1/consents", grant(subject, notice={**NOTICE, field: string}))
            wrong += [f"notice {field} {found}" for found in refusal_faults(string, answer, {f"/notice/{field}"})]
        if await live.events(subject):
            wrong.append("something was written")
        return wrong

    assert await each(dict.fromkeys(naughty), ask) == []


async def test_as_names_of_the_policy_in_checks(live: Live, naughty: list[str]) -> None:
    async def ask(string: str) -> list[str]:
        subject, wrong = somebody(), []
        for field in ("purpose", "channel", "recipient"):
            question = {"subject": subject, "purpose": "share.partner", "channel": "web", field: string}
            answer = await live.post("/v1/check", question)
            if answer.status_code != 200:
                wrong += [f"{field} {found}" for found in refusal_faults(string, answer, {f"/{field}"})]
            elif answer.json()["allow"]:
                wrong.append(f"{field} allows")
        return wrong

    assert await each(dict.fromkeys(naughty), ask) == []


async def test_as_namespaces_and_unknown_keys(live: Live, naughty: list[str]) -> None:
    async def ask(string: str) -> list[str]:
        wrong = []
        answer = await live.post("/v1/consents", grant({"type": string, "id": somebody()["id"]}))
        if answer.status_code != 201:
            wrong += [f"type {found}" for found in refusal_faults(string, answer, {"/subject/type"})]
        answer = await live.post("/v1/consents", {**grant(somebody()), "@" + string: 1})
        if answer.status_code != 422 or echoes(string, answer.text):
            wrong.append(f"as an unknown key: {answer.text[:200]}")
        return wrong

    assert await each(dict.fromkeys(naughty), ask) == []


async def test_in_addresses(live: Live, naughty: list[str]) -> None:
    async def ask(string: str) -> list[str]:
        escaped = quote(string, safe="")
        wrong = []
        for address in (f"/v1/{escaped}", f"/v1/subjects/{escaped}/state", f"/livez?key={escaped}&x={escaped}"):
            answer = await live.http.get(address)
            if answer.status_code >= 500 or echoes(string, answer.text):
                wrong.append(f"{address}: {answer.status_code} {answer.text[:200]}")
        return wrong

    assert await each(dict.fromkeys(naughty), ask) == []


async def test_a_no_with_naughty_strings_beside_it_stands(live: Live, naughty: list[str]) -> None:
    async def ask(string: str) -> list[str]:
        subject = somebody()
        await live.post("/v1/consents", grant(subject))
        no = {"purpose": "analytics", "status": "withdrawn", "channel": string, "recipient": string, "contact": string}
        body = {"subject": subject, "records": [no], "id": mine + string, "evidence": {string: string}}
        answer = await live.post("/v1/consents", body)
        check = await live.post("/v1/check", {"subject": subject, "purpose": "analytics", "channel": "web"})
        wrong = [] if check.json()["reason"] == "withdrawn" else [f"{answer.status_code}, and check says {check.text}"]
        if answer.status_code >= 500:
            wrong.append(answer.text[:200])
        return wrong

    mine = uuid.uuid4().hex[:8]
    assert await each(dict.fromkeys(naughty), ask) == []


async def test_none_of_them_is_in_the_log_or_the_metrics(live: Live, naughty: list[str]) -> None:
    said = live.service.log() + (await live.http.get("/metrics")).text
    assert CANARY not in said
    # Words that the log itself is made of do not count.
    telling = {string for string in naughty if len(string) >= TOO_SHORT and not string.isalnum()}
    assert len(telling) > 300
    assert sorted(string for string in telling if echoes(string, said)) == []
