"""The composition root: the handler of every operation, and the only wiring there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple, Protocol, cast

from litestar import HttpMethod, Litestar, Request, Response
from litestar.handlers import HTTPRouteHandler

from consent_service import auth, consents, db, decisions, exports, links, openapi, operations, records
from consent_service.callers import Callers
from consent_service.devices import Devices
from consent_service.erasures import Eraser
from consent_service.guard import METRICS_TYPE, Guard, Operation, problem, render_metrics
from consent_service.ledger import Ledgers
from consent_service.ledger.mirror import Mirror
from consent_service.ledger.outside import reaching
from consent_service.ledger.publish import Publisher
from consent_service.links.proof import Challenges, Prover
from consent_service.reads import Watch, What
from consent_service.settings import Settings, key_file, secret
from consent_service.tokens import Jwks, Verifier
from consent_service.vault import Vault

JSON = "application/json"


class Services(NamedTuple):
    """What handlers work with."""

    pool: db.Pool
    ledgers: Ledgers
    publisher: Publisher
    mirror: Mirror
    keyring: auth.Keyring
    callers: Callers
    devices: Devices
    writer: consents.Writer
    shower: records.Shower
    checker: decisions.Checker
    linker: links.Linker
    conflicted: links.Conflicted
    eraser: Eraser
    watch: Watch
    exporter: exports.Exporter


class Headers(Protocol):
    """Request headers by lower-case name."""

    def get(self, name: str) -> str | None:
        """The first value, None where it was not sent."""


class Call(NamedTuple):
    """One request, past the guard."""

    body: bytes
    credential: auth.Credential
    """Nothing where the operation is public and none was sent."""
    headers: Headers
    params: Mapping[str, str] = {}
    """What stands in the address."""


class Reply(NamedTuple):
    """What goes back."""

    body: bytes
    media_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = {}


class Stream(NamedTuple):
    """What goes back piece by piece."""

    pieces: AsyncGenerator[bytes, None]
    headers: tuple[tuple[bytes, bytes], ...]


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Services, Call], Awaitable[bytes | Reply | Stream]]


@asynccontextmanager
async def services(settings: Settings, database_url: str) -> AsyncIterator[Services]:
    """Everything that needs the database, while it is needed."""
    root = secret(settings)
    pool = await db.connect(database_url, size=settings.pool)
    ledgers, devices = Ledgers(pool, root, vault=Vault(root, key_file(settings))), Devices(root)
    writer = consents.Writer(ledgers, devices)
    jwks = Jwks()
    verifier = Verifier(jwks)
    challenges = Challenges(root)
    prover = Prover(devices, challenges, verifier)
    keyring = auth.Keyring(pool, root)
    try:
        async with reaching(settings) as outside:
            yield Services(
                pool=pool,
                ledgers=ledgers,
                publisher=Publisher(ledgers, outside, every_s=settings.publish_s),
                mirror=Mirror(ledgers),
                keyring=keyring,
                callers=Callers(pool, ledgers, keyring, verifier),
                devices=devices,
                writer=writer,
                shower=records.Shower(ledgers),
                checker=decisions.Checker(ledgers, devices),
                linker=links.Linker(ledgers, prover, challenges),
                conflicted=links.Conflicted(ledgers),
                eraser=Eraser(ledgers, outside.anchor),
                watch=Watch(ledgers),
                exporter=exports.Exporter(ledgers),
            )
    finally:
        await writer.close()
        await jwks.close()
        await keyring.close()
        await pool.close()


def build(made: Services, *, workers: int = 1) -> Guard:
    """The whole service as one ASGI application."""
    framework = Litestar(
        route_handlers=[_route(made, operation, ROUTES[operation]) for operation in operations.ALL],
        openapi_config=None,
        logging_config=None,
        exception_handlers={Exception: _problem},
    )
    return Guard(_Front(made, framework), operations.ALL, made.callers, workers=workers)


def _route(made: Services, operation: Operation, handler: Handler) -> HTTPRouteHandler:
    """The framework's route for an operation. Bodies stay bytes: the framework's decoding is not strict."""

    async def handle(request: Request[Any, Any, Any]) -> Response[bytes]:
        body = await request.body() if operation.body is not None else b""
        credential = cast("auth.Credential", request.scope["state"].get("credential"))  # None where public
        reply = _reply(await handler(made, Call(body, credential, request.headers, request.path_params)), operation)
        return Response(reply.body, media_type=reply.media_type, status_code=reply.status, headers=dict(reply.headers))

    path = operation.path.replace("*}", ":path}").replace("}", ":str}").replace(":path:str}", ":path}")
    return HTTPRouteHandler(path, http_method=HttpMethod(operation.method), name=operation.id)(handle)


def _reply(answer: bytes | Reply | Stream, operation: Operation) -> Reply:
    assert not isinstance(answer, Stream), "streams do not pass the framework"  # noqa: S101 -- see `_Front`
    return answer if isinstance(answer, Reply) else Reply(answer, status=operation.status)


class _Front:
    """Serves the hot operations itself, behind the same guard: the framework would cost more than their own work.

    And those that stream, which it would run in tasks that the guard's deadline does not reach.
    """

    def __init__(self, made: Services, framework: Litestar) -> None:
        self._made = made
        self._framework = cast("Any", framework)
        self._own = {operation.id: ROUTES[operation] for operation in ROUTES if operation in HOT or operation.streams}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        operation: Operation | None = scope.get("state", {}).get("operation")
        handler = None if operation is None else self._own.get(operation.id)
        if operation is None or handler is None:
            await self._framework(scope, receive, send)
            return
        body = (await receive())["body"]
        params = _params(operation.path, scope["path"])
        call = Call(body, scope["state"]["credential"], _Headers(scope["headers"]), params)
        answer = await handler(self._made, call)
        if isinstance(answer, Stream):
            await _stream(answer, operation, scope["state"]["bodiless"], receive, send)
            return
        reply = _reply(answer, operation)
        headers = [(b"content-type", reply.media_type.encode()), (b"content-length", b"%d" % len(reply.body))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


def _params(template: str, path: str) -> dict[str, str]:
    """What stands in an address; of one without parameters nothing."""
    if "{" not in template:
        return {}
    pairs = zip(template.split("/"), path.split("/"), strict=True)
    return {name[1:-1]: value for name, value in pairs if name.startswith("{")}


async def _stream(answer: Stream, operation: Operation, bodiless: bool, receive: Receive, send: Send) -> None:
    """Send an answer piece by piece, each when the one before was taken; stop when nobody is there any more."""
    headers = [(b"content-type", operation.media_type.encode()), *answer.headers]
    gone = asyncio.ensure_future(receive())
    try:
        async with aclosing(answer.pieces) as pieces:
            await send({"type": "http.response.start", "status": operation.status, "headers": headers})
            if not bodiless:
                async for piece in pieces:
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        gone.cancel()


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


def _minimal(headers: Headers) -> bool:
    """Whether the caller asks for no more than it needs: `Prefer: return=minimal` (RFC 7240)."""
    wishes = (headers.get("prefer") or "").lower().replace(" ", "").replace('"', "").split(",")
    return any(wish.partition(";")[0] == "return=minimal" for wish in wishes)


# -- handlers ------------------------------------------------------------------------------------------------------


async def record(made: Services, call: Call) -> bytes:
    """See `consents.Writer.record`."""
    key = call.headers.get("idempotency-key")
    return await made.writer.record(call.body, call.credential, key, minimal=_minimal(call.headers))


async def mint(made: Services, call: Call) -> bytes:
    """See `consents.Writer.begin`."""
    return await made.writer.begin(call.body, call.credential, minimal=_minimal(call.headers))


async def show_receipt(made: Services, call: Call) -> bytes:
    """See `records.Shower.show`."""
    return await made.shower.show(call.body, call.credential)


async def check(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.check`."""
    return await made.checker.check(call.body, call.credential)


async def checks(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.checks`."""
    return await made.checker.checks(call.body, call.credential)


async def _noted(made: Services, call: Call, what: What, read: Awaitable[bytes]) -> bytes:
    """What an officer reads is noted before it is shown."""
    answer = await read
    await made.watch.note(call.credential, what, call.body)
    return answer


async def state(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.state`."""
    return await _noted(made, call, "state", made.checker.state(call.body, call.credential))


async def history(made: Services, call: Call) -> bytes:
    """See `decisions.Checker.history`."""
    return await _noted(made, call, "history", made.checker.history(call.body, call.credential))


async def challenge(made: Services, call: Call) -> bytes:
    """See `links.Linker.challenge`."""
    return await made.linker.challenge(call.body, call.credential)


async def link(made: Services, call: Call) -> bytes:
    """See `links.Linker.link`."""
    return await made.linker.link(call.body, call.credential)


async def end_link(made: Services, call: Call) -> bytes:
    """See `links.Linker.end`."""
    return await made.linker.end(call.body, call.credential, call.params["id"])


async def annul_link(made: Services, call: Call) -> Reply:
    """See `links.Linker.annul`."""
    status, answer = await made.linker.annul(call.body, call.credential, call.params["id"])
    return Reply(answer, status=status)


async def read_links(made: Services, call: Call) -> bytes:
    """See `links.Conflicted.links`."""
    return await _noted(made, call, "links", made.conflicted.links(call.body, call.credential))


async def conflicts(made: Services, call: Call) -> bytes:
    """See `links.Conflicted.conflicts`."""
    return await _noted(made, call, "conflicts", made.conflicted.conflicts(call.body, call.credential))


async def erase(made: Services, call: Call) -> bytes:
    """See `erasures.Eraser.erase`."""
    return await made.eraser.erase(call.body, call.credential)


async def order_export(made: Services, call: Call) -> bytes:
    """See `exports.Exporter.order`."""
    return await made.exporter.order(call.body, call.credential)


async def read_export(made: Services, call: Call) -> bytes:
    """See `exports.Exporter.show`."""
    return await made.exporter.show(call.credential, call.params["id"])


async def export_file(made: Services, call: Call) -> Stream:
    """See `exports.Exporter.file`."""
    pieces, name = await made.exporter.file(call.credential, call.params["id"])
    return Stream(pieces, ((b"content-disposition", f'attachment; filename="{name}"'.encode()),))


async def revoke(made: Services, call: Call) -> bytes:
    """See `callers.Callers.revoke`."""
    return await made.callers.revoke(call.body, call.credential)


async def logout(made: Services, call: Call) -> bytes:
    """See `callers.Callers.logout`."""
    return await made.callers.logout(call.body)


async def checkpoint(made: Services, call: Call) -> Reply:
    """See `ledger.mirror.Mirror.checkpoint`. An address without an epoch is that of the first."""
    shown = await made.mirror.checkpoint(call.params["tenant"], call.params.get("epoch", "1"), call.credential)
    return Reply(shown.body, "text/plain", headers={"cache-control": "no-cache"})


async def tile(made: Services, call: Call) -> Reply:
    """See `ledger.mirror.Mirror.tile`. A tile of an epoch never changes."""
    params = call.params
    shown = await made.mirror.tile(params["tenant"], params.get("epoch", "1"), params["tile"], call.credential)
    whose = "public" if shown.public else "private"
    kept = {"cache-control": f"{whose}, max-age=31536000, immutable"}
    return Reply(shown.body, "application/octet-stream", headers=kept)


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
    return Reply(openapi.page(operations.ALL), "text/html; charset=utf-8")


async def description(_made: Services, _call: Call) -> bytes:
    """The description as a file."""
    return openapi.document(operations.ALL)


ROUTES: dict[Operation, Handler] = {
    operations.RECORD: record,
    operations.DEVICE: mint,
    operations.RECEIPT: show_receipt,
    operations.CHECK: check,
    operations.CHECKS: checks,
    operations.STATE: state,
    operations.HISTORY: history,
    operations.LINKS: read_links,
    operations.CONFLICTS: conflicts,
    operations.CHALLENGE: challenge,
    operations.LINK: link,
    operations.END: end_link,
    operations.ANNUL: annul_link,
    operations.ERASE: erase,
    operations.EXPORT: order_export,
    operations.READ_EXPORT: read_export,
    operations.EXPORT_FILE: export_file,
    operations.REVOKE: revoke,
    operations.LOGOUT: logout,
    operations.CHECKPOINT: checkpoint,
    operations.TILE: tile,
    operations.EPOCH_CHECKPOINT: checkpoint,
    operations.EPOCH_TILE: tile,
    operations.LIVE: live,
    operations.READY: ready,
    operations.METRICS: metrics,
    operations.DOCS: docs,
    operations.DESCRIPTION: description,
}
HOT = frozenset({operations.RECORD, operations.CHECK, operations.CHECKS})
"""Served in front of the framework."""
