"""When an answer leaves, where the time it took could tell the caller something: at the next whole tick of the clock.

Answers about known and unknown identifiers run through the same code and the same statement, but a row that exists is
read and one that does not is not: some microseconds, which many calls would show. Leaving at ticks, both take the same
time, whether they were answered from memory or from the database.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

EVERY_S = 0.002
"""Well above what an answer takes, well below what a browser's network adds."""


class Pace:
    """The ticks of one event loop, counted only while somebody waits.

    A thread sleeps, because timers of event loops count whole milliseconds from when they were set: what is to be
    hidden would be added to them.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pace")
        self._next: asyncio.Future[None] | None = None

    async def tick(self) -> None:
        """Wait for the next tick, together with everybody who does."""
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().run_in_executor(self._thread, _sleep)
        await asyncio.shield(self._next)


def _sleep() -> None:
    time.sleep(EVERY_S - time.monotonic() % EVERY_S)
