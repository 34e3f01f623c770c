"""The composition root: every operation, its handler, and the only wiring there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol, cast

from litestar import HttpMethod, Litestar, Request, Response
from litestar.handlers import HTTPRouteHandler

from consent_service import auth, consents, db, decisions, openapi
from consent_service.guard import METRICS_TYPE, Guard, Operation, problem, render_metrics
from consent_service.policies.store import Policies
from consent_service.settings import Settings, secret

JSON = "application/json"
BULK = 8 * 1024 * 1024
"""Largest body of a call that carries many items, in bytes."""


class Services(NamedTuple):
    """What handlers work with."""

    pool: db.Pool
    keyring: auth.Keyring
    writer: consents.Writer
    checker: decisions.Checker


class Headers(Protocol):
    """Request headers by lower-case name."""

    def get(self, name: str) -> str | None:
        """The first value, None where it was not sent."""


class Call(NamedTuple):
    """One request, past the guard."""

    body: bytes
    credential: auth.Credential
    headers: Headers


class Reply(NamedTuple):
    """What goes back."""

    body: bytes
    media_type: str = JSON
    status: int = 200


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Services, Call], Awaitable[bytes | Reply]]


@asynccontextmanager
async def services(settings: Settings, database_url: str) -> AsyncIterator[Services]:
    """Everything that needs the database, while it is needed."""
    root = secret(settings)
    pool = await db.connect(database_url, size=settings.pool)
    policies = Policies()
    writer = consents.Writer(pool, policies, root)
    try:
        yield Services(pool, auth.Keyring(pool, root), writer, decisions.Checker(pool, policies, root))
    finally:
        await writer.close()
        await pool.close()


def build(made: Services, *, workers: int = 1) -> Guard:
    """The whole service as one ASGI application."""
    framework = Litestar(
        route_handlers=[_route(made, operation, handler) for operation, handler in ROUTES.items()],
        openapi_config=None,
        logging_config=None,
        exception_handlers={Exception: _problem},
    )
    return Guard(_Front(made, framework), OPERATIONS, made.keyring, workers=workers)


def _route(made: Services, operation: Operation, handler: Handler) -> HTTPRouteHandler:
    """The framework's route for an operation. Bodies stay bytes: the framework's decoding is not strict."""

    async def handle(request: Request[Any, Any, Any]) -> Response[bytes]:
        body = await request.body() if operation.body is not None else b""
        credential = cast("auth.Credential", request.scope["state"].get("credential"))  # None where public
        answer = await handler(made, Call(body, credential, request.headers))
        reply = answer if isinstance(answer, Reply) else Reply(answer, status=operation.status)
        return Response(reply.body, media_type=reply.media_type, status_code=reply.status)

    return HTTPRouteHandler(operation.path, http_method=HttpMethod(operation.method), name=operation.id)(handle)


class _Front:
    """Serves the hot operations itself, behind the same guard: the framework would cost more than their own work."""

    def __init__(self, made: Services, framework: Litestar) -> None:
        self._made = made
        self._framework = cast("Any", framework)
        self._hot = {operation.id: handler for operation, handler in ROUTES.items() if operation in HOT}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        operation: Operation | None = scope.get("state", {}).get("operation")
        handler = None if operation is None else self._hot.get(operation.id)
        if operation is None or handler is None:
            await self._framework(scope, receive, send)
            return
        body = (await receive())["body"]
        answer = await handler(self._made, Call(body, scope["state"]["credential"], _Headers(scope["headers"])))
        reply = answer if isinstance(answer, Reply) else Reply(answer, status=operation.status)
        headers = [(b"content-type", reply.media_type.encode()), (b"content-length", b"%d" % len(reply.body))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


class _Headers:
    """The few headers that a hot handler asks for, found when asked."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def get(self, name: str) -> str | None:
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self._raw if key == wanted), None)


def _problem(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    status, headers, body = problem(error)
    fields = {name.decode(): value.decode() for name, value in headers}
    return Response(body, status_code=status, headers=fields, media_type=fields.pop("content-type"))


# -- operations -----------------------------------------------------------------------------------------------------

RECORD = Operation(
    method="POST", path="/v1/consents", id="recordConsents", tag="consents", status=201, browser=True, keyed=True,
    summary="Record one act of a person: what they decided about one or more purposes.",
    scopes=frozenset({"write:attested", "write:device"}), body=consents.ConsentBody, answer=consents.Recorded,
)  # fmt: skip
CHECK = Operation(
    method="POST", path="/v1/check", id="check", tag="decisions", scopes=frozenset({"check"}),
    summary="May this person's data be processed for this purpose now?",
    body=decisions.Check, answer=decisions.Answer, errors=frozenset({409}),
)  # fmt: skip
CHECKS = Operation(
    method="POST", path="/v1/checks", id="checkMany", tag="decisions", scopes=frozenset({"check"}), max_body=BULK,
    summary="Many checks, answered in order at one revision.",
    body=decisions.Checks, answer=decisions.Decisions, errors=frozenset({409}),
)  # fmt: skip
STATE = Operation(
    method="POST", path="/v1/subjects/state", id="readState", tag="subjects", scopes=frozenset({"state"}),
    summary="Where a person stands on every purpose and channel.",
    body=decisions.SubjectBody, answer=decisions.SubjectState,
)  # fmt: skip
HISTORY = Operation(
    method="POST", path="/v1/subjects/history", id="readHistory", tag="subjects", scopes=frozenset({"state"}),
    summary="A person's events as they were recorded, oldest first.",
    body=decisions.HistoryBody, answer=decisions.History,
)  # fmt: skip
LIVE = Operation(
    method="GET", path="/livez", id="live", tag="operation", public=True, scopes=None,
    summary="Whether the process answers; does not follow the database.",
)  # fmt: skip
READY = Operation(
    method="GET", path="/readyz", id="ready", tag="operation", public=True, scopes=None,
    summary="Whether the process can serve: 200, or 503 while it starts, stops or has no database.",
)  # fmt: skip
METRICS = Operation(
    method="GET", path="/metrics", id="metrics", tag="operation", public=True, scopes=None, media_type="text/plain",
    summary="Prometheus metrics of all workers.",
)  # fmt: skip
DOCS = Operation(
    method="GET", path="/docs", id="docs", tag="operation", public=True, scopes=None, media_type="text/html",
    summary="This description as a page that loads nothing from elsewhere.",
)  # fmt: skip
DESCRIPTION = Operation(
    method="GET", path="/openapi.json", id="openapi", tag="operation", public=True, scopes=None,
    summary="This description.",
)  # fmt: skip


# -- their handlers -------------------------------------------------------------------------------------------------


async def record(made: Services, call: Call) -> bytes:
    """See `consents.Writer.record`."""
    return await made.writer.record(call.body, call.credential, call.headers.get("idempotency-key"))


async def check(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.check`."""
    return await made.checker.check(call.body, call.credential)


async def checks(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.checks`."""
    return await made.checker.checks(call.body, call.credential)


async def state(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.state`."""
    return await made.checker.state(call.body, call.credential)


async def history(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.history`."""
    return await made.checker.history(call.body, call.credential)


async def live(_made: Services, _call: Call) -> bytes:
    """Answering is the answer."""
    return b'{"live":true}'


async def ready(made: Services, _call: Call) -> bytes:
    """Ready when the database answers; raises Unavailable when not."""
    async with db.connection(made.pool) as connection:
        await db.PING(connection)
    return b'{"ready":true}'


async def metrics(_made: Services, _call: Call) -> Reply:
    """The counters of all workers."""
    return Reply(render_metrics(), METRICS_TYPE)


async def docs(_made: Services, _call: Call) -> Reply:
    """The description as a page."""
    return Reply(openapi.page(OPERATIONS), "text/html; charset=utf-8")


async def description(_made: Services, _call: Call) -> bytes:
    """The description as a file."""
    return openapi.document(OPERATIONS)


ROUTES: dict[Operation, Handler] = {
    RECORD: record,
    CHECK: check,
    CHECKS: checks,
    STATE: state,
    HISTORY: history,
    LIVE: live,
    READY: ready,
    METRICS: metrics,
    DOCS: docs,
    DESCRIPTION: description,
}
OPERATIONS: tuple[Operation, ...] = tuple(ROUTES)
HOT = frozenset({RECORD, CHECK, CHECKS})
"""Served in front of the framework."""
