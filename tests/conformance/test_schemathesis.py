"""The OpenAPI file against the service that it describes: schemathesis with all checks on, the same cases in every run.

What it cannot know stands in schemathesis.toml: which operations refuse bodies that fit their schema, and why.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from consent_service import demo, openapi, operations
from consent_service.guard import Operation

from .conftest import Live, Service

EXAMPLES = Path(__file__).parents[2] / "openapi" / "examples"
CONFIG = Path(__file__).with_name("schemathesis.toml")
_RUN_S = 240


def examples() -> dict[str, dict[str, Any]]:
    """By operation: a body that the demo's tenant accepts."""
    return {file.stem: json.loads(file.read_bytes()) for file in sorted(EXAMPLES.glob("*.json"))}


def key_of(operation: Operation, service: Service) -> str:
    """A key of the demo with a scope of the operation."""
    scopes = operation.scopes or frozenset()
    fitting = [name for name in ("service", "dpo", "publishable") if not scopes.isdisjoint(demo.KEYS[name][1])]
    return service.keys[fitting[0]]


async def test_what_is_served_is_what_the_code_describes(live: Live) -> None:
    assert (await live.http.get("/openapi.json")).content == openapi.document(operations.ALL)


ELSEWHERE = {"backChannelLogout"}
"""Succeeds only with a token of a real provider: tests/oidc/test_logins.py."""
SPREAD = {"readTile", "readEpochTile"}
"""A parameter with slashes in it, which no tool sends: tests/ledger/test_mirror.py."""


def a_receipt(service: Service) -> str:
    """Of an act that the examples record."""
    body = {**examples()["recordConsents"], "id": uuid.uuid4().hex}
    key = {"Authorization": f"Bearer {service.keys['service']}"}
    answer = httpx.post(f"{service.url}/v1/consents", json=body, headers=key, trust_env=False)
    return str(answer.json()["receipt"])


def living(service: Service) -> dict[str, dict[str, Any]]:
    """The examples, with a receipt of this service instead of one that nobody has the key to."""
    found = examples()
    return found | {"showReceipt": found["showReceipt"] | {"receipt": a_receipt(service)}}


def a_link(service: Service) -> str:
    """Of a loyalty card and a log-in that nobody else uses."""
    body = {"identifier": {"type": "loyalty", "id": uuid.uuid4().hex}, "login": uuid.uuid4().hex}
    key = {"Authorization": f"Bearer {service.keys['service']}"}
    return str(httpx.post(f"{service.url}/v1/links", json=body, headers=key, trust_env=False).json()["link"])


def an_export(service: Service) -> str:
    """Of everything."""
    key = {"Authorization": f"Bearer {service.keys['dpo']}"}
    return str(httpx.post(f"{service.url}/v1/exports", json={}, headers=key, trust_env=False).json()["id"])


async def test_the_examples_are_accepted_by_every_operation(live: Live) -> None:
    found, statuses = living(live.service), {}
    for operation in operations.ALL:
        headers = {} if operation.public else {"Authorization": f"Bearer {key_of(operation, live.service)}"}
        body = None if operation.body is None else found[operation.id]
        how = {"data": body} if operation.form else {"json": body}
        made = an_export if operation.tag == "exports" else a_link
        path = operation.path.replace("{id}", made(live.service))
        path = path.replace("{tenant}", "demo").replace("{tile*}", "0/000.p/1").replace("{epoch}", "1")
        answer = await live.http.request(operation.method, path, headers=headers, **how)
        statuses[operation.id] = answer.status_code
    wanted = {operation.id: 202 if operation.pending else operation.status for operation in operations.ALL}
    assert statuses == wanted | dict.fromkeys(ELSEWHERE, 400)
    assert found.keys() == {operation.id for operation in operations.ALL if operation.body is not None}
    assert (await live.post("/v1/check", found["check"])).json()["allow"]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Path:
    """The description with a seeded example for every body."""
    document, found = json.loads(openapi.document(operations.ALL)), living(service)
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    known = {"tenant": "demo", "tile": "0/000.p/1", "epoch": 1}
                    value = known.get(parameter["name"]) or a_link(service)
                    parameter["examples"] = {"seeded": {"value": value}}
            if "requestBody" in operation:
                (media,) = operation["requestBody"]["content"].values()
                media["examples"] = {"seeded": {"value": found[operation["operationId"]]}}
    file = tmp_path_factory.mktemp("described") / "openapi.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def run(service: Service, described: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ,
        "CONSENT_TEST_URL": service.url,
        "CONSENT_TEST_SERVICE_KEY": service.keys["service"],
        "CONSENT_TEST_DPO_KEY": service.keys["dpo"],
        "CONSENT_TEST_PUBLISHABLE_KEY": service.keys["publishable"],
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", str(described)]
    return subprocess.run(
        [*command, "--url", service.url, "--no-color", "--warnings", "off", *options],
        cwd=described.parent, env=environment, capture_output=True, timeout=_RUN_S, check=False,
    )  # fmt: skip


def test_no_operation_departs_from_its_description(service: Service, described: Path) -> None:
    har = described.with_name("calls.har")
    ran = run(service, described, "--report", "har", "--report-har-path", str(har))
    assert ran.returncode == 0, ran.stdout.decode(errors="replace")[-20_000:]
    calls = json.loads(har.read_bytes())["log"]["entries"]
    assert len(calls) > 500
    succeeded = set()
    for call in calls:
        if 200 <= call["response"]["status"] < 300:
            address = call["request"]["url"].removeprefix(service.url).partition("?")[0]
            succeeded.add((call["request"]["method"], re.sub(r"[0-9a-f-]{36}", "{id}", address)))
    shapes = {"/ledger/demo/1/": "/ledger/{tenant}/{epoch}/", "/ledger/demo/": "/ledger/{tenant}/"}
    for seeded, shape in shapes.items():
        succeeded = {(method, address.replace(seeded, shape)) for method, address in succeeded}
    wanted = {(one.method, one.path) for one in operations.ALL if one.id not in ELSEWHERE | SPREAD}
    assert wanted <= succeeded


def test_control_a_departure_is_found(service: Service, described: Path) -> None:
    document = json.loads(described.read_bytes())
    document["components"]["schemas"]["Answer"]["properties"]["allow"] = {"type": "string"}
    wrong = described.with_name("wrong.json")
    wrong.write_text(json.dumps(document), encoding="utf-8")
    ran = run(service, wrong, "--phases", "examples", "--include-operation-id", "check")
    assert ran.returncode == 1
    assert b"allow" in ran.stdout
