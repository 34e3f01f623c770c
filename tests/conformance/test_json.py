"""JSON texts of a published suite, each as a value inside a body that is otherwise valid, and as the whole body.

What is no JSON is refused and leaves nothing behind; what is JSON is never called malformed; what RFC 8259 leaves open
may go either way, but never fails. What was accepted is stored as it was sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpx
import msgspec
import pytest
from conftest import Tenant

from consent_service import decode, errors

from .conftest import Live, grant, problem, somebody

OVER_A_LIMIT: dict[str, str] = {}
"""`y_` cases that we refuse although they are JSON, by name, with the reason: none is deep or long enough."""

TWICE = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}
"""JSON in which a name stands twice: may be refused as a body that cannot be accepted (see test_http.py)."""

Post = Callable[[str, bytes], Awaitable[httpx.Response]]
_AT_ONCE = 8
_PLACE = b'"@"'


def in_evidence(case: bytes, subject: dict[str, str]) -> bytes:
    """The case as the last value of a body. No quote follows that could close a string left open."""
    before, after = json.dumps(grant(subject, evidence={"x": "@"})).encode().split(_PLACE)
    assert after == b"}}"
    return before + case + after


def fault(name: str, answer: httpx.Response) -> str | None:
    """What is wrong with the answer to a case; None where nothing is."""
    status, kind = answer.status_code, problem(answer)
    if status >= 400 and not kind:
        return f"{name}: {status} is no problem document"
    match name[:2]:
        case "n_" if not 400 <= status < 500:
            return f"{name}: no JSON, answered with {status}"
        case "y_" if kind == "/problems/malformed" and name not in OVER_A_LIMIT:
            return f"{name}: JSON, called malformed: {answer.json()['detail']}"
        case _ if not (200 <= status < 300 or 400 <= status < 500):
            return f"{name}: {status}"
    return None


async def ask_all(post: Post, bodies: Iterable[tuple[str, bytes]]) -> dict[str, httpx.Response]:
    """The answer to each, a few at a time."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(name: str, body: bytes) -> tuple[str, httpx.Response]:
        async with gate:
            return name, await post("/v1/consents", body)

    return dict(await asyncio.gather(*(ask(name, body) for name, body in bodies)))


def faults(answers: dict[str, httpx.Response]) -> list[str]:
    return [found for name, answer in answers.items() if (found := fault(name, answer)) is not None]


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same JSON kind all the way down. JSON has one kind of number: `1.0` is kept as `1`."""
    if isinstance(left, int | float) and not isinstance(left, bool) and not isinstance(right, bool):
        return bool(left == right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


async def test_cases_in_evidence(live: Live, json_cases: dict[str, bytes]) -> None:
    subjects = {name: somebody() for name in json_cases}
    answers = await ask_all(live.post, [(name, in_evidence(case, subjects[name])) for name, case in json_cases.items()])
    assert faults(answers) == []
    accepted = [name for name, answer in answers.items() if answer.status_code == 201]
    assert {n for n in json_cases if n.startswith("y_")} - set(accepted) <= TWICE | OVER_A_LIMIT.keys()
    assert len(accepted) > 90
    stored = {name: await live.events(subject) for name, subject in subjects.items()}
    assert [name for name, events in stored.items() if len(events) != (name in accepted)] == []
    changed = [name for name in accepted if not same(stored[name][0]["evidence"], {"x": json.loads(json_cases[name])})]
    assert changed == []


async def test_cases_as_the_whole_body(live: Live, json_cases: dict[str, bytes]) -> None:
    answers = await ask_all(live.post, json_cases.items())
    assert faults(answers) == []
    # Even the empty text: none of them is a body of this call.
    assert {answer.status_code for answer in answers.values()} <= {400, 413, 422}


async def test_a_wrong_field_before_the_fault_hides_nothing(live: Live, json_cases: dict[str, bytes]) -> None:
    # The decoder stops at the wrong field; what is then made of the rest must hold too.
    bodies = [(name, b'{"subject": 5, "evidence": {"x": ' + case + b"}}") for name, case in json_cases.items()]
    assert faults(await ask_all(live.post, bodies)) == []


async def test_control_a_lenient_decoder_is_found_out(
    tenant: Tenant, json_cases: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lenient(raw: bytes, kind: Any, **_: Any) -> Any:
        try:
            return msgspec.convert(json.loads(raw), kind, strict=True)
        except ValueError:
            raise errors.Malformed from None

    monkeypatch.setattr(decode, "body", lenient)
    cases = {name: case for name, case in json_cases.items() if name.startswith("n_number_")}
    answers = await ask_all(tenant.post, [(name, in_evidence(case, somebody())) for name, case in cases.items()])
    assert {found.partition(":")[0] for found in faults(answers)} == {
        "n_number_NaN.json", "n_number_infinity.json", "n_number_minus_infinity.json",
    }  # fmt: skip
