"""Group commit: while one transaction commits, the next batch gathers.

A batch is committed by one call of `commit`, in one transaction. What goes wrong is told to the callers it concerns:

- an item that the database refuses (SQLSTATE class 22, 23) is found by halving the batch; the others still commit;
- a serialisation failure or deadlock (class 40) is tried again;
- a lost connection leaves the outcome unknown. The same batch is committed once more: `commit` takes the head's lock
  and finds, by idempotency key, whatever had been committed before. Only if that fails too do callers hear of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import asyncpg

from consent_service import db
from consent_service.errors import Invalid, Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_BATCH = 256
_TRIES = 4
_FIRST_PAUSE_S = 0.05

Commit = Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]


class Batcher(Generic[Item, Answer]):
    """Commits items in the order they came, many at a time. One per process and ledger."""

    def __init__(self, commit: Commit[Item, Answer]) -> None:
        self._commit = commit
        self._queue: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        """Wait until the item is committed; the caller's going away does not undo it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Wait until everything queued is committed."""
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while self._queue:
            # One turn of the loop lets requests that arrived together share the commit.
            await asyncio.sleep(0)
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            answers = await self._settle([item for item, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # the caller has gone
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _settle(self, items: Sequence[Item]) -> Sequence[Answer | Exception]:
        """An answer or an error for each item; never raises."""
        for attempt in range(_TRIES):
            try:
                return await self._commit(items)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                if len(items) == 1:
                    refused = Invalid("The database refuses this record.")
                    refused.__cause__ = error
                    return [refused]
                middle = len(items) // 2
                return [*await self._settle(items[:middle]), *await self._settle(items[middle:])]
            except (*db.LOST, asyncpg.TransactionRollbackError, Unavailable):
                await asyncio.sleep(_FIRST_PAUSE_S * 4**attempt)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the callers must hear of it
                return [error] * len(items)
        return [Unavailable()] * len(items)
