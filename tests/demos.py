"""What tests of the running service share: real `consent demo` processes in folders of their own, and a plain client.

Everything here cleans up after itself by the folder: a process that works under it and is left over is a failed test.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

CONSENT = Path(sys.executable).with_name("consent")
NOTICE = {"id": "web-banner", "version": 1, "language": "en"}
READY_S = 30.0
"""A start on an existing folder takes two seconds; a busy machine with two processors takes more."""


class Answer(NamedTuple):
    """What a call came back with."""

    status: int
    body: Any

    @property
    def allow(self) -> tuple[bool, str]:
        """A check's decision and its reason."""
        assert self.status == 200, self
        return self.body["allow"], self.body["reason"]


class Client:
    """Calls the service over one connection, made anew after a failure; not for several threads at once."""

    def __init__(self, url: str, keys: dict[str, str], patience: float = 20) -> None:
        self._place = url.removeprefix("http://")
        self._keys = keys
        self._patience = patience
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, method: str, path: str, body: Any = None, key: str = "service", **headers: str) -> Answer:
        """One request; raises OSError or HTTPException where no whole answer came."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._place, timeout=self._patience)
        sent = {"Authorization": f"Bearer {self._keys[key]}", **headers} if key else headers
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, content, sent)
            answer = self._connection.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        kind = answer.headers.get_content_type()
        return Answer(answer.status, json.loads(raw) if kind.endswith("json") else raw.decode())

    def record(self, who: str, status: str = "given", purpose: str = "marketing.email", **more: Any) -> Answer:
        return self.call("POST", "/v1/consents", act(who, status, purpose, **more))

    def check(self, who: str, purpose: str = "marketing.email") -> Answer:
        return self.call("POST", "/v1/check", {"subject": subject(who), "purpose": purpose})

    def history(self, who: str) -> list[dict[str, Any]]:
        """Every event of a person, over all pages."""
        events: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            body = {"subject": subject(who), "after": after, "limit": 500}
            answer = self.call("POST", "/v1/subjects/history", body, key="dpo")
            assert answer.status == 200, answer
            events += answer.body["events"]
            after = answer.body["next"]
        return events


def subject(who: str) -> dict[str, str]:
    return {"type": "login", "id": who}


def act(who: str, status: str, purpose: str = "marketing.email", **more: Any) -> dict[str, Any]:
    """The body of one act with everything that a grant needs, and a key."""
    given = {"id": uuid.uuid4().hex, "method": "form", "notice": NOTICE}
    return {**given, "subject": subject(who), "records": [{"purpose": purpose, "status": status}], **more}


class Demo:
    """A `consent` process, `demo` unless told otherwise, that leads its own process group."""

    def __init__(
        self, place: Path, *more: str, data: Path | None = None, port: int = 0, command: str = "demo",
        environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.place = place
        self.data = data or place / "data"
        self.ready_file = place / f"ready-{uuid.uuid4().hex[:8]}.json"
        self.output = self.ready_file.with_suffix(".out")
        arguments = [command, "--data", str(self.data), "--port", str(port), "--ready-file", str(self.ready_file)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [CONSENT, *arguments, *more],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=place, start_new_session=True,
                env=clean_environment() | (environment or {}),
            )  # fmt: skip
        self.facts: dict[str, Any] = {}
        _started.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def keys(self) -> dict[str, str]:
        return dict(self.facts["keys"])

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def ready(self) -> Demo:
        """Wait until it says that it answers."""
        assert within(READY_S, lambda: self.ready_file.exists() or self.process.poll() is not None), self.said()
        assert self.process.poll() is None, self.said()
        self.facts = json.loads(self.ready_file.read_bytes())
        return self

    def client(self, patience: float = 20) -> Client:
        return Client(self.url, self.keys, patience)

    def workers(self) -> list[int]:
        return [pid for pid in children(self.pid) if "consent_service.server" in command_line(pid)]

    def postmaster(self) -> int | None:
        """Its process id; None between the end of one and the start of the next, whose file is not whole at once."""
        try:
            return postmaster(self.data)
        except (FileNotFoundError, IndexError):
            return None  # and no number: 0 and -1 mean more than one process to whoever kills

    def database_url(self) -> str:
        return f"postgresql://consent@/consent?host={self.data / 'pg'}&port=5432"

    def kill_group(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self, how: signal.Signals = signal.SIGTERM, patience: float = 30) -> int:
        """Ask it to end, and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(patience)


_started: list[Demo] = []


def clean_environment() -> dict[str, str]:
    """Without the settings of whoever runs the tests, except which PostgreSQL the suite runs on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONSENT_", "PG", "DATABASE_"))}
    binaries = os.environ.get("CONSENT_TEST_POSTGRES_BINARIES")
    return kept | ({"CONSENT_POSTGRES_BINARIES": binaries} if binaries else {})


@contextmanager
def new_place() -> Iterator[Path]:
    """A short folder that everybody may enter; whatever is left running in it at the end is ended and complained of."""
    folder = Path(tempfile.mkdtemp(prefix="cs-"))
    folder.chmod(0o755)
    try:
        yield folder
        left = not within(10, lambda: not processes(folder)) and [command_line(pid) for pid in processes(folder)]
    finally:
        for pid in processes(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for demo in _started:
            if demo.place == folder:
                demo.process.wait(10)
        _started[:] = [demo for demo in _started if demo.place != folder]
        assert within(10, lambda: not processes(folder))
        shutil.rmtree(folder)
    assert not left, left


@contextmanager
def demo_data() -> Iterator[Path]:
    """A data folder in which a demo has run and was stopped: to copy, which is quicker than to make."""
    with new_place() as place:
        demo = Demo(place)
        try:
            demo.ready()
        finally:
            code = demo.stop()
        assert code == 0, demo.said()
        yield demo.data


def copied(data: Path, copy: Path) -> Path:
    """A copy of a data folder with its owners: where namespaces are refused, root's server belongs to `nobody`."""
    shutil.copytree(data, copy, symlinks=True)
    for path in (copy, *copy.rglob("*")):
        original = data / path.relative_to(copy)
        os.chown(path, original.lstat().st_uid, original.lstat().st_gid, follow_symlinks=False)
    return copy


@contextmanager
def running(place: Path, *more: str, **given: Any) -> Iterator[Demo]:
    """A demo that answers; ended with all it started, however the block ends."""
    demo = Demo(place, *more, **given)
    try:
        yield demo.ready()
    finally:
        if demo.process.poll() is None:
            demo.process.terminate()
            try:
                demo.process.wait(20)
            except subprocess.TimeoutExpired:
                demo.kill_group()


def within(seconds: float, done: Callable[[], object]) -> bool:
    """Wait until it is done; whether it was in that time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def processes(place: Path) -> list[int]:
    """Every live process that works in the folder."""
    found = []
    for pid in pids():
        with suppress(OSError):
            if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(place):
                found.append(pid)
    return found


def children(parent: int) -> list[int]:
    found = []
    for pid in pids():
        with suppress(OSError):
            state, mother = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            if int(mother) == parent and state != "Z":
                found.append(pid)
    return found


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


def alive(pid: int) -> bool:
    with suppress(OSError):
        return bool(Path(f"/proc/{pid}/cwd").readlink())
    return False


def postmaster(data: Path) -> int:
    """Its process id, where one runs under the data folder."""
    return int((data / "pg" / "postmaster.pid").read_text().split()[0])


def is_free(port: int) -> bool:
    """Whether nobody listens there; connections that are closing do not count, as they do not for the service."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
