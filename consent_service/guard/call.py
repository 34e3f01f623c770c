"""One request on its way through the guard, and the answer on its way back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

from consent_service.auth import Credential
from consent_service.errors import ConsentError, Malformed, TooSlow
from consent_service.guard import metrics
from consent_service.guard.body import too_large
from consent_service.guard.deadline import Deadline
from consent_service.guard.operations import Operation
from consent_service.guard.pace import Pace
from consent_service.guard.refusals import Headers, problem

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SMALL = 65_536
"""An unread body up to this size is left to the server to skip; past it the connection is closed."""
_LINGER_S = 1.0
_LINGER_BYTES = 4_194_304

_SINGLE = frozenset({b"authorization", b"content-encoding", b"content-length", b"content-type",
                     b"idempotency-key", b"origin"})  # fmt: skip
_NO_STORE = (b"cache-control", b"no-store")
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_VARY = (b"vary", b"Origin")


class Call:
    """What the guard knows of one request; also the `receive` and `send` that the app behind it gets."""

    __slots__ = (
        "_ended", "_pace", "_receive", "_replayed", "_send", "body", "credential", "deadline", "headers", "in_address",
        "is_head", "length", "operation", "origin", "piece_s", "scope", "status",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, pace: Pace) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._pace = pace
        self._ended = False
        self._replayed = False
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.is_head = scope["method"] == "HEAD"
        self.operation: Operation | None = None
        self.credential: Credential | None = None
        self.in_address = False
        """Whether the credential stood in the address."""
        self.origin: bytes | None = None
        """The browser's origin, once it is known to be allowed."""
        self.length: int | None = 0
        self.body: bytes | None = None
        self.status = 0
        """Of the answer, once it has begun."""
        self.deadline: Deadline | None = None
        """Of an answer that streams: each piece that has left gives the next one `piece_s` seconds."""
        self.piece_s = 0.0

    def demand_single(self) -> None:
        """Refuse a second header of a kind that decides something: which one counts is anybody's guess."""
        if len(self.headers) != len(self.scope["headers"]):
            names = [name for name, _ in self.scope["headers"] if name in _SINGLE]
            if len(names) != len(set(names)):
                raise Malformed("A header that may stand once stands twice.")

    def operation_id(self) -> str:
        """The label under which this call is counted."""
        return metrics.UNMATCHED if self.operation is None else self.operation.id

    async def read(self, limit: int) -> bool:
        """Take in the whole body; False when the client has gone.

        Raises:
            TooLarge: more than `limit` bytes came.
        """
        chunks: list[bytes] = []
        size = 0
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return False
            self._ended = not message.get("more_body")
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise too_large(limit)
            chunks.append(chunk)
        self.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return True

    async def receive(self) -> Message:
        """The body, whole and once; then nothing but the client's leaving."""
        if not self._replayed:
            self._replayed = True
            return {"type": "http.request", "body": self.body or b"", "more_body": False}
        while (message := await self._receive())["type"] == "http.request":
            pass
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            if self.credential is not None and self.credential.kind == "publishable":
                await self._pace.tick()
            self.status = message["status"]
            message = {**message, "headers": self._complete(message.get("headers", ()))}
        elif self.is_head and message["type"] != "http.response.debug":
            if message.get("more_body"):
                return
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)
        if self.deadline is not None:
            self.deadline.move(self.piece_s)

    def _complete(self, given: Iterable[tuple[bytes, bytes]]) -> Headers:
        headers = [*given, *_ALWAYS]
        for name, _ in headers:
            if name == b"cache-control":
                break
        else:
            headers.append(_NO_STORE)
        if self.operation is not None and self.operation.browser:
            headers.append(_VARY)
            if self.origin is not None:
                headers.append((b"access-control-allow-origin", self.origin))
        return headers

    async def refuse(self, error: ConsentError) -> None:
        """Answer with a problem document, unless an answer has begun; left unfinished, the server cuts that off."""
        if self.status:
            return
        status, headers, content = problem(error)
        pending = not self._ended and (self.length is None or self.length > SMALL)
        if pending or isinstance(error, TooSlow):
            headers.append((b"connection", b"close"))
        linger = pending and not isinstance(error, TooSlow)
        with suppress(OSError):
            await self.answer(status, headers, content, more=linger)
            if linger:
                await self._drain()
                await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, status: int, headers: Headers, content: bytes = b"", *, more: bool = False) -> None:
        """Send an answer of our own."""
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content, "more_body": more})

    async def _drain(self) -> None:
        """Take a little more of what the client is sending: closed with data on the way, it would lose our answer."""
        left = _LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return
