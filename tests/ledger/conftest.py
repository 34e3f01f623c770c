"""What these tests share: servers of others, on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import pytest
import uvicorn

Serve: TypeAlias = Callable[[Any], AbstractAsyncContextManager[str]]


@asynccontextmanager
async def _serving(application: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(
        application, port=0, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    async with asyncio.timeout(20):
        while not server.started:  # noqa: ASYNC110 -- it tells by this flag alone
            await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Gives the address of an ASGI application while it is served."""
    return _serving
