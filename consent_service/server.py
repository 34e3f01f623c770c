"""Processes: one supervisor, which owns the port and the embedded database, and its workers, which serve.

The supervisor binds the port once; workers accept on the same socket. It restarts a worker or an embedded server that
died. If the supervisor dies, even by kill -9, the kernel ends its workers, so the port is free again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from consent_service import log
from consent_service.embedded import Embedded
from consent_service.errors import ConsentError, SetupError
from consent_service.settings import Settings

ORDERS = "CONSENT_WORKER_ORDERS"
_METRICS = "consent-metrics-"
_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 0.5
_READY_WITHIN_S = 60
HEADERS_WITHIN_S = 10
LONGEST_HEAD = 65_536
"""Bytes of request line and headers."""
_BACKLOG = 4096


class Orders(msgspec.Struct, frozen=True):
    """What a worker is told."""

    settings: Settings
    database_url: str
    socket: int
    """File descriptor of the listening socket."""
    parent: int


# -- the supervisor -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def database(settings: Settings) -> Iterator[tuple[str, Embedded | None]]:
    """The database's URL, and the embedded server where there is one, for as long as it is needed."""
    if settings.database_url is not None:
        yield settings.database_url, None
        return
    embedded = Embedded(
        Path(settings.data),
        binaries=None if settings.postgres_binaries is None else Path(settings.postgres_binaries),
    )
    url = embedded.start()
    try:
        yield url, embedded
    finally:
        embedded.stop()


def bind(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        SetupError: somebody else has the port, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, TypeError, UnicodeError) as error:  # the latter two: a name that cannot be encoded
        listener.close()
        raise SetupError(
            f"Port {settings.port} on {settings.host} cannot be used: {getattr(error, 'strerror', error)}."
            " Choose another with --port or --host."
        ) from None
    listener.listen(_BACKLOG)
    listener.set_inheritable(True)
    return listener


def address(listener: socket.socket) -> str:
    """The base URL that the socket answers on."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared with, not bound to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Ending:
    """Whether Ctrl-C was pressed while the service was starting, which interrupts whatever is under way.

    It is kept as well: Python drops an interrupt that falls into a finaliser, and code may swallow a cancellation.
    """

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if not self.asked:  # once: the next must not break into the tidying up
            self.asked = True
            raise KeyboardInterrupt


class Supervisor:
    """Starts the workers, keeps them and the embedded server alive, and stops them in order."""

    def __init__(
        self, settings: Settings, database_url: str, embedded: Embedded | None, listener: socket.socket, ending: Ending
    ) -> None:
        self._settings = settings
        self._embedded = embedded
        self._listener = listener
        self._orders = Orders(settings, database_url, listener.fileno(), os.getpid())
        self._workers: list[subprocess.Popen[bytes]] = []
        self._ending = ending
        self._stopping = False
        self._log = log.get("server")

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; `on_ready` is called once a request was really answered."""
        _sweep_metrics()
        metrics = tempfile.mkdtemp(prefix=f"{_METRICS}{os.getpid()}-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._stopping = self._ending.asked
        try:
            self._workers = [self._start() for _ in range(self._settings.workers)]
            self._until_ready()
            if not self._stopping:
                on_ready()
            while not self._stopping:
                self._look()
                time.sleep(_LOOK_EVERY_S)
        finally:
            self._listener.close()
            self._end_workers()
            shutil.rmtree(metrics, ignore_errors=True)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, ORDERS: msgspec.json.encode(self._orders).decode()}
        return subprocess.Popen(
            [sys.executable, "-m", "consent_service.server"], env=environment, pass_fds=[self._listener.fileno()]
        )

    def _look(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.poll() is not None:
                self._log.warning("worker_died", worker=worker.pid, exit_code=worker.returncode)
                self._workers[index] = self._start()
        if self._embedded is not None:
            try:
                if self._embedded.ensure():
                    self._log.warning("database_restarted")
            except SetupError:
                self._log.exception("database_not_restarted")

    def _until_ready(self) -> None:
        """Being bound is not being ready: only an answered request is."""
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self._stopping and not answers(address(self._listener), "/readyz"):
            if any(worker.poll() is not None for worker in self._workers):
                raise SetupError("A worker ended while starting; what it printed above says why.")
            if time.monotonic() > deadline:
                raise SetupError(f"The service did not become ready within {_READY_WITHIN_S} s.")
            time.sleep(0.05)

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.terminate()
        deadline = time.monotonic() + self._settings.stop_s + 2
        for worker in self._workers:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def _sweep_metrics() -> None:
    """Remove what supervisors left that could not clean up after themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_METRICS}*"):
        pid = folder.name.removeprefix(_METRICS).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def answers(base: str, path: str) -> bool:
    """Whether a GET is answered with 200 within two seconds."""
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class PatientProtocol(HttpToolsProtocol):
    """The server's HTTP/1.1, with an end to its patience: neither a slow nor an endless head holds a connection.

    Bodies are the guard's matter; the wait between requests is `timeout_keep_alive`'s.
    """

    _limit: asyncio.TimerHandle | None = None
    _open = False
    """Whether a head is being received."""
    _began = False
    """Whether it began in the piece that has just arrived."""
    _head = 0
    """Its bytes so far, without those of the piece in which it began: what of that is its own is not known."""
    _piece = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A first request must come."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(HEADERS_WITHIN_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._lift()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives while a head is open."""
        self._began, self._piece = False, len(data)
        super().data_received(data)
        if self._open:
            self._head += 0 if self._began else len(data)
            if self._limit is None:
                self._limit = self.loop.call_later(HEADERS_WITHIN_S, self.transport.close)
            if self._head > LONGEST_HEAD:
                self.transport.close()

    def on_message_begin(self) -> None:
        """A head is open."""
        self._open, self._began, self._head = True, True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole; raised, the parser ends the connection with a 400."""
        self._open = False
        self._lift()
        if self._head + self._piece > LONGEST_HEAD:  # else it cannot be too long
            whole = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if whole > LONGEST_HEAD:
                raise ValueError("the head is too long")
        super().on_headers_complete()

    def _lift(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


# -- a worker -------------------------------------------------------------------------------------------------------


def work(orders: Orders) -> None:
    """Serve until SIGTERM, or until the supervisor is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != orders.parent:  # it died before the line above took hold
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    log.configure(orders.settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(orders))


async def _serve(orders: Orders) -> None:
    from consent_service import app  # noqa: PLC0415 -- metrics look at the environment when they are imported

    async with app.services(orders.settings, orders.database_url) as services:
        config = uvicorn.Config(
            app.build(services, workers=orders.settings.workers),
            lifespan="off",
            http=PatientProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=orders.settings.stop_s,
        )
        gc.collect()
        gc.set_threshold(20_000, 20, 50)  # requests leave few cycles behind
        gc.freeze()  # what is loaded now stays; collecting it again and again costs latency
        async with services.publisher.running():
            await _Server(config).serve([socket.socket(fileno=orders.socket)])


class _Server(uvicorn.Server):
    """Stops on SIGTERM alone, and then returns.

    Uvicorn's own takes Ctrl-C as well, the second time as an order to drop what is in flight; and it raises the signal
    once more at its end, before what surrounds it is closed.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """For as long as it serves."""
        signal.signal(signal.SIGTERM, self.handle_exit)
        yield


if __name__ == "__main__":
    try:
        work(msgspec.json.decode(os.environ.pop(ORDERS), type=Orders))
    except ConsentError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- the operator's terminal
        sys.exit(2)
