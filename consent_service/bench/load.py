"""Load over HTTP/1.1, keep-alive: a connection sends its next request when the last is answered, or when it is due."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator

import msgspec


class Load(msgspec.Struct, frozen=True):
    """What one run of load gave."""

    requests: int
    seconds: float
    latencies_ms: list[float]
    """Sorted."""

    def percentile(self, share: float) -> float:
        """The latency that this share of the requests did not exceed, in milliseconds."""
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(len(self.latencies_ms) * share))]


class _Connection(asyncio.Protocol):
    """One connection; asks for the next request as soon as an answer is complete."""

    def __init__(
        self, requests: Iterator[bytes], due: Iterator[float], deadline: float, latencies: list[float], expected: bytes
    ) -> None:
        self._requests = requests
        self._due = due
        self._deadline = deadline
        self._latencies = latencies
        self._expected = b"HTTP/1.1 " + expected
        self._buffer = b""
        self._since = 0.0
        """When the request was due."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        if not self._buffer.startswith(self._expected):
            self._fail(RuntimeError(f"unexpected answer: {self._buffer[:500]!r}"))
            return
        self._buffer = b""
        self._latencies.append((time.perf_counter() - self._since) * 1000)
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._fail(error or ConnectionError("the connection was closed"))

    def _next(self) -> None:
        now = time.perf_counter()
        self._since = next(self._due, now)
        if self._since > now:
            asyncio.get_running_loop().call_later(self._since - now, self._send)
        else:
            self._send()

    def _send(self) -> None:
        request = next(self._requests, None) if self._since < self._deadline else None
        if request is None:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._transport.write(request)  # type: ignore[attr-defined]  # the base class of transports lacks it

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
        self._transport.close()


async def drive(
    port: int, requests: Iterator[bytes], connections: int, seconds: float, expected: int, rate: float | None = None
) -> Load:
    """Load 127.0.0.1:`port` from `connections` connections for `seconds`; every answer must have status `expected`.

    `rate`: how many requests are due a second, all in all; latencies then count from when each was due, so that waiting
    for a free connection is part of them. None: as many as are answered.
    """
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    begun = time.perf_counter()
    due = iter(()) if rate is None else (begun + number / rate for number in itertools.count())
    made = [
        await loop.create_connection(
            lambda: _Connection(requests, due, begun + seconds, latencies, str(expected).encode()), "127.0.0.1", port
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.done for _, connection in made))
    return Load(len(latencies), time.perf_counter() - begun, sorted(latencies))


def post(path: str, key: str, body: bytes) -> bytes:
    """A whole request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
