"""The guard: a plain ASGI app in front of the framework. Nothing reaches a handler that did not pass every check here.

The order is the contract: address, method, credential, scope, origin, limit, head of the body, body. Nothing of a
request is ever put into a refusal, a log line or a metric.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import parse_qsl, quote

from consent_service.auth import FRESH_S, MAX_TOKEN, Credential
from consent_service.errors import (
    ConsentError,
    Forbidden,
    Malformed,
    NotAllowed,
    Overdue,
    TooSlow,
    Unauthenticated,
)
from consent_service.guard import body, metrics
from consent_service.guard.call import App, Call, Receive, Scope, Send
from consent_service.guard.deadline import Deadline
from consent_service.guard.limits import Limits
from consent_service.guard.operations import Operation, Place, Table, demand_readable
from consent_service.guard.pace import Pace
from consent_service.guard.refusals import failure, kind_of

_BEARER = b"bearer "
_PREFLIGHT = (
    (b"access-control-allow-headers", b"authorization, content-type, idempotency-key, prefer"),
    (b"access-control-max-age", b"600"),
)
_MAX_ORIGIN = 255


class Authenticator(Protocol):
    """What the guard asks of whoever knows the callers."""

    def known(self, token: str) -> Credential | None:
        """The credential of a key or token verified a moment ago."""

    async def authenticate(self, token: str) -> Credential:
        """The credential of a key or token; raises Unauthenticated or Unavailable."""


class Guard:
    """Stands in front of `app` and lets through what `operations` declare.

    `body_s` and `answer_s` are the seconds a body may take to arrive and an answer (of one that streams, each piece) to
    be made and taken; `workers` is the number
    of processes that share every credential's rate.

    Raises:
        SetupError: an operation declares no scope and is not public, an unknown scope, or an address twice.
    """

    def __init__(
        self,
        app: App,
        operations: Sequence[Operation],
        keyring: Authenticator,
        *,
        body_s: float = 10,
        answer_s: float = 30,
        workers: int = 1,
    ) -> None:
        self._app = app
        self._table = Table(operations)
        self._keyring = keyring
        self._limits = Limits(workers)
        self._pace = Pace()
        self._body_s = body_s
        self._answer_s = answer_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        began = time.perf_counter()
        call = Call(scope, receive, send, self._pace)
        try:
            await self._serve(call)
        except ConsentError as error:
            await call.refuse(error if kind_of(error) else failure(error, call.operation_id()))
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets a problem and we get its id
            await call.refuse(failure(error, call.operation_id()))
        finally:
            if call.status:
                metrics.record(call.operation_id(), call.status, time.perf_counter() - began)

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _serve(self, call: Call) -> None:
        scope = call.scope
        call.length = None  # until the head was read: close rather than guess
        call.length = body.announced(call.headers)
        call.demand_single()
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        place = self._table.find(raw)
        if scope["method"] == "OPTIONS":
            await _answer_options(call, place)
            return
        operation = call.operation = place.operations.get(scope["method"])
        if operation is None:
            raise NotAllowed(place.allow)
        if scope["query_string"]:
            demand_readable(scope["query_string"])
        token = _token(call, operation)
        if token is not None:
            call.credential = await self._admit(token)
        self._authorise(call, operation)
        body.demand_acceptable(operation, call.headers, call.length)
        await self._pass_on(call, operation, token)

    async def _admit(self, token: str) -> Credential:
        return self._keyring.known(token) or await self._keyring.authenticate(token)

    def _authorise(self, call: Call, operation: Operation) -> None:
        """Scope, origin, limit. Without a credential there is nothing to borrow from a browser, so nothing to check."""
        credential = call.credential
        if credential is None:
            return
        if operation.scopes is not None and operation.scopes.isdisjoint(credential.scopes):
            needed = " or ".join(f"`{scope}`" for scope in sorted(operation.scopes))
            raise Forbidden(f"This call needs a key with the scope {needed}.")
        if call.in_address and credential.kind != "publishable":
            raise Unauthenticated("Only a publishable key may stand in an address. Replace this one.")
        origin = call.headers.get(b"origin")
        if origin is not None:
            if origin.decode("latin-1") not in credential.origins:
                raise Forbidden("This key may not be used from that web origin. Add the origin to the key, exactly.")
            call.origin = origin
        self._limits.take(credential)

    async def _pass_on(self, call: Call, operation: Operation, token: str | None) -> None:
        """Read the body and run the app, each against its deadline."""
        reads = operation.body is not None
        admitted_at = time.monotonic()
        try:
            with Deadline(self._body_s if reads else self._answer_s) as deadline:
                if reads:
                    if not await call.read(operation.max_body):
                        return  # the client has gone: nobody is left to answer
                    body.demand_text(call.body or b"")
                    deadline.move(self._answer_s)
                if operation.streams:
                    call.deadline, call.piece_s = deadline, self._answer_s
                if token is not None and time.monotonic() - admitted_at > FRESH_S:  # may have been revoked meanwhile
                    call.credential = await self._admit(token)
                    self._authorise(call, operation)
                await self._app(_scope_below(call, operation), call.receive, call.send)
        except TimeoutError as error:
            if not deadline.expired:
                raise
            raise (TooSlow if reads and call.body is None else Overdue) from error


def _scope_below(call: Call, operation: Operation) -> Scope:
    """The scope as the app behind the guard sees it."""
    scope = call.scope
    if call.is_head:
        # A copy: the server looks into its own scope for what it must not send.
        scope = {**scope, "method": "GET"}
    state = scope.setdefault("state", {})
    state["credential"] = call.credential
    state["operation"] = operation
    if operation.streams:
        state["bodiless"] = call.is_head
    return scope


def _token(call: Call, operation: Operation) -> str | None:
    """The credential that was sent; None only on a public operation."""
    sent = call.headers.get(b"authorization")
    if sent is not None and sent[:7].lower() == _BEARER:
        sent = sent[7:].strip(b" ")
    elif not operation.public:
        raise Unauthenticated
    else:
        # Scripts and images of a page cannot send headers.
        sent = _query_key(call.scope["query_string"]) if operation.method == "GET" else None
        if sent is None:
            return None
        call.in_address = True
    if len(sent) > MAX_TOKEN or not sent.isascii():
        raise Unauthenticated("This is no key of this service. Send `Authorization: Bearer <key>`.")
    return sent.decode()


def _query_key(query: bytes) -> bytes | None:
    """The publishable key in `?key=`."""
    if b"key=" not in query:
        return None
    keys = [value for name, value in parse_qsl(query.decode("ascii")) if name == "key"]
    if len(keys) > 1:
        raise Malformed("The query names `key` twice.")
    return keys[0].encode() if keys else None


async def _answer_options(call: Call, place: Place) -> None:
    """Tell the methods; and tell a browser whether a page elsewhere may ask at all.

    A preflight carries no credential, so the key's own origins are checked when the call itself comes.
    """
    headers = [(b"allow", place.allow.encode())]
    origin = call.headers.get(b"origin", b"")
    wanted = call.headers.get(b"access-control-request-method", b"").decode("latin-1")
    if b"://" in origin and len(origin) <= _MAX_ORIGIN and wanted in place.browser_methods:
        methods = ", ".join(sorted(place.browser_methods)).encode()
        headers += [(b"access-control-allow-origin", origin), (b"access-control-allow-methods", methods), *_PREFLIGHT]
    if place.browser_methods:
        headers.append((b"vary", b"Origin"))
    await call.answer(204, headers)
