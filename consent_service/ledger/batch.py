"""Natural batching: while one batch is under way, the next one gathers. And the group commit that is built on it.

What goes wrong with a commit is told to the callers it concerns:

- an item that the database refuses (SQLSTATE class 22, 23), or that cannot be worked on at all, is found by halving the
  batch; the others still commit;
- a serialisation failure or deadlock (class 40), or a head that somebody else holds too long, is tried again;
- a lost connection leaves the outcome unknown. The same batch is committed once more: what had been committed is found
  by its idempotency key, and what is still under way holds the head. Only if that fails too do callers hear of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar, cast

import asyncpg

from consent_service import db
from consent_service.errors import ConsentError, Invalid, Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Work: TypeAlias = Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]
"""Does a batch: an answer or an error for each item."""

_BUSY = (
    asyncpg.TransactionRollbackError,
    asyncpg.IdleInTransactionSessionTimeoutError,  # we held the head, and stood still
)

MAX_BATCH = 256
_TRIES = 4
_FIRST_PAUSE_S = 0.05


class Batcher(Generic[Item, Answer]):
    """Does items in the order they came, many at a time, with at most `parallel` batches under way."""

    def __init__(self, work: Work[Item, Answer], *, parallel: int = 1) -> None:
        self._work = work
        self._parallel = parallel
        self._queue: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Answer:
        """Wait until a batch that begins after this call has done the item; going away does not undo it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if len(self._running) < self._parallel:
            task = asyncio.create_task(self._run())
            self._running.add(task)
        return await future

    async def close(self) -> None:
        """Wait until everything queued is done."""
        while self._running:
            await asyncio.wait(self._running)

    async def _run(self) -> None:
        try:
            await self._empty()
        finally:
            # In the same turn as the last look at the queue: a done callback comes a turn later, and whatever was
            # submitted in between would wait for nobody.
            self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _empty(self) -> None:
        # One turn of the loop lets requests that arrived together share a batch.
        await asyncio.sleep(0)
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            answers: Sequence[Answer | Exception]
            try:
                answers = await self._work([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 -- whatever it is, the callers must hear of it
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # the caller has gone
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


def group_commit(commit: Work[Item, Answer]) -> Work[Item, Answer]:
    """The work of a batcher whose `commit` writes a batch in one transaction."""

    async def settle(items: Sequence[Item]) -> Sequence[Answer | Exception]:
        for attempt in range(_TRIES):
            try:
                return await commit(items)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                if len(items) == 1:
                    refused = Invalid("The database refuses this record.")
                    refused.__cause__ = error
                    return [refused]
                return await halves(items)
            except (*db.LOST, *_BUSY, Unavailable):
                await asyncio.sleep(_FIRST_PAUSE_S * 4**attempt)
            except ConsentError:  # about the ledger, and so about all of them
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it is, the others have nothing to do with it
                if len(items) == 1:
                    return [error]
                return await halves(items)
        return [Unavailable()] * len(items)

    async def halves(items: Sequence[Item]) -> Sequence[Answer | Exception]:
        middle = len(items) // 2
        return [*await settle(items[:middle]), *await settle(items[middle:])]

    return settle
