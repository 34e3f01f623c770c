"""The least that could do the same job, served by the same server: what the service is compared with.

`plain`: a Litestar route that decodes strictly and stores the whole call as one row in one autocommitted INSERT; no
idempotency, no states, no ledger. `bare`: an ASGI function that decodes the same check, looks into a dict and encodes
the same answer; no framework, no credential, no database.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
import uvicorn
import uvloop
from litestar import Litestar, Request, Response, post

from consent_service import db, decode
from consent_service.consents import ConsentBody
from consent_service.decisions import Answer, Check

ORDERS = "CONSENT_BENCH_ORDERS"
insert = db.execute("bench", "plain_insert")
"""The plain handler's one row."""
_TABLE = db.execute("bench", "plain_table")


async def make_table(connection: db.Connection) -> None:
    """The plain handler's table."""
    await _TABLE(connection)


class Orders(msgspec.Struct, frozen=True):
    """What a contender's process is told."""

    name: str
    database_url: str
    socket: int
    pool: int


def plain(pool: db.Pool) -> Litestar:
    """One Litestar route, one INSERT."""

    @post("/v1/consents")
    async def record(request: Request[Any, Any, Any]) -> Response[bytes]:
        raw = await request.body()
        body = decode.body(raw, ConsentBody)
        event = uuid.uuid4()
        async with db.connection(pool) as connection:
            await insert(connection, event, body.subject.type, body.subject.id, raw)
        answer = msgspec.json.encode({"event": event, "recorded_at": datetime.now(UTC)})
        return Response(answer, status_code=201, media_type="application/json")

    return Litestar([record], openapi_config=None, logging_config=None)


async def bare(_scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The JSON work of a check and nothing else."""
    message = await receive()
    check = decode.body(message["body"], Check)
    now = datetime.now(UTC)
    answer = Answer(
        allow=_KNOWN.get((check.subject.id, check.purpose), False), reason="no_record", basis="no_record",
        valid_until=None, reuse_ms=0, rev="1.1", policy=1, record=None, as_of=now, age_ms=0,
    )  # fmt: skip
    body = msgspec.json.encode(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_KNOWN: dict[tuple[str, str], bool] = {}


async def _serve(orders: Orders) -> None:
    pool = await db.connect(orders.database_url, size=orders.pool, role=None)
    app: Any = plain(pool) if orders.name == "plain" else bare
    config = uvicorn.Config(app, lifespan="off", http="httptools", ws="none", access_log=False, log_config=None)
    await uvicorn.Server(config).serve([socket.socket(fileno=orders.socket)])


if __name__ == "__main__":
    given = msgspec.json.decode(os.environ[ORDERS], type=Orders)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(given))
