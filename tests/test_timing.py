"""Known or unknown cannot be told by time: interleaved look-ups, compared by rank (area under the ROC curve).

0.5 says that the times of the two kinds cannot be told apart, 1.0 that each of one kind exceeds each of the other.
No speed is asserted: both kinds are measured side by side, so a busy machine makes both slow.
"""

from __future__ import annotations

import gc
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from conftest import NOTICE, Tenant

from consent_service import app
from consent_service.decisions import check
from consent_service.guard import pace
from consent_service.subjects import Subject
from consent_service.tenures import Member, Snapshot

CALLS = 10_000
PEOPLE = 400
SAME = 0.55
TOLD = 0.7
CHECK = {"purpose": "personalisation", "channel": "web"}


def auc(known: list[float], unknown: list[float]) -> float:
    """How well one threshold on time tells the two apart, whichever way round."""
    ranked = sorted([(took, 1) for took in known] + [(took, 0) for took in unknown])
    ranks = sum(place for place, (_, kind) in enumerate(ranked, 1) if kind)
    area = (ranks - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown))
    return max(area, 1 - area)


async def compare(call: Callable[[bool, int], Awaitable[bytes]], calls: int = CALLS) -> float:
    """Interleave calls about known and unknown ones; every answer must have the same size."""
    order = [n % 2 == 0 for n in range(calls)]
    random.Random(5).shuffle(order)
    took: dict[bool, list[float]] = {True: [], False: []}
    sizes = set()
    gc.disable()
    try:
        for n, known in enumerate(order):
            began = time.perf_counter()
            answer = await call(known, n)
            took[known].append(time.perf_counter() - began)
            sizes.add(len(answer))
    finally:
        gc.enable()
    assert len(sizes) == 1, sizes
    found = auc(took[True], took[False])
    print(f"AUC {found:.3f}, medians {[sorted(t)[len(t) // 2] for t in took.values()]}")  # noqa: T201 -- the figure, with -s
    return found


class Front:
    """The whole application, called without a network between."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.app = app.build(tenant.services)

    async def post(self, path: str, body: dict[str, Any], key: str) -> bytes:
        raw = msgspec.json.encode(body)
        headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json"),
                   (b"content-length", b"%d" % len(raw))]  # fmt: skip
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": headers}  # fmt: skip
        parts: list[bytes] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Any) -> None:
            parts.append(message.get("body", b""))

        await self.app(scope, receive, send)
        return b"".join(parts)


async def devices(tenant: Tenant) -> dict[bool, list[dict[str, Any]]]:
    """Devices that have said something about another purpose, and devices that never said anything."""
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for n in range(2 * PEOPLE):
        device = tenant.device()
        asked = {"subject": msgspec.to_builtins(device.subject), "proof": device.token}
        if n % 2 == 0:
            given = {"purpose": "analytics", "status": "given", "channel": "web"}
            act = {"id": secrets.token_hex(8), "records": [given], "method": "banner_button", "notice": NOTICE}
            body = {**act, **asked}
            assert (await tenant.post("/v1/consents", body, key="publishable")).status_code == 201
        found[n % 2 == 0].append(asked)
    return found


async def test_a_device_that_spoke_cannot_be_told_from_one_that_never_did(tenant: Tenant) -> None:
    front, asked = Front(tenant), await devices(tenant)

    async def call(known: bool, n: int) -> bytes:
        return await front.post("/v1/check", {**CHECK, **asked[known][n % PEOPLE]}, tenant.keys["publishable"])

    assert await compare(call) <= SAME


async def test_control_an_early_return_is_told(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks first whether there is anything to look up, and answers at once, gives it away."""
    monkeypatch.setattr(pace, "EVERY_S", 1e-9)
    front, asked = Front(tenant), await devices(tenant)
    hasher = tenant.services.ledgers.of(tenant.log_id).hasher
    known_ones = {hasher.identifier(msgspec.convert(one["subject"], Subject)) for one in asked[True]}
    whole = check.read
    kept: list[Snapshot] = []

    async def early(ledger: Any, identifiers: Any, shared: Any) -> Snapshot:
        if known_ones.isdisjoint(identifiers) and kept:
            nobody = Member(identifiers[0], identifiers[0], "self", None, 0, 0, False, None, None)
            return kept[0]._replace(members={identifiers[0]: nobody})
        kept.append(await whole(ledger, identifiers, shared))
        return kept[-1]

    monkeypatch.setattr(check, "read", early)

    async def call(known: bool, n: int) -> bytes:
        return await front.post("/v1/check", {**CHECK, **asked[known][n % PEOPLE]}, tenant.keys["publishable"])

    assert await compare(call, CALLS // 5) > TOLD


@pytest.mark.slow
async def test_a_forged_proof_tells_nothing(tenant: Tenant) -> None:
    front, asked = Front(tenant), await devices(tenant)

    async def call(known: bool, n: int) -> bytes:
        one = asked[known][n % PEOPLE]
        forged = {**one, "proof": one["proof"][:-4] + "AAAA"}
        return await front.post("/v1/check", {**CHECK, **forged}, tenant.keys["publishable"])

    assert await compare(call) <= SAME


@pytest.mark.slow
async def test_a_wrong_key_tells_nothing(tenant: Tenant) -> None:
    front = Front(tenant)

    async def call(known: bool, _n: int) -> bytes:
        name = "service" if known else "servic3"
        key = f"sk_{tenant.log_id}_{name}_{secrets.token_urlsafe(32)}"
        return await front.post("/v1/check", {**CHECK, "subject": {"type": "login", "id": "x"}}, key)

    assert await compare(call) <= SAME
