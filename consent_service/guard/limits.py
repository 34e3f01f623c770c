"""How many requests a credential may send: a token bucket each, in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from consent_service.auth import Credential
from consent_service.errors import TooMany

BURST_S = 2
"""A bucket holds this many seconds of its rate."""
_MAX_BUCKETS = 10_000
_NEVER_S = 3_600


class Limits:
    """The buckets of one process. Each of `workers` processes gives out its share, so nothing needs to be shared."""

    def __init__(self, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._buckets: dict[tuple[int, str], tuple[float, float]] = {}  # what it held, and when

    def take(self, credential: Credential) -> None:
        """Let one request of the credential through.

        Raises:
            TooMany: its bucket is empty; says after how many seconds it is not.
        """
        if credential.rate is None:
            return
        rate = credential.rate / self._workers
        size = max(1.0, BURST_S * rate)
        now = self._clock()
        key = (credential.log_id, credential.id)
        held, since = self._buckets.get(key, (size, now))
        held = min(size, held + (now - since) * rate)
        if rate <= 0:
            raise TooMany(_NEVER_S)
        if held < 1:
            raise TooMany(max(1, math.ceil((1 - held) / rate)))
        if len(self._buckets) >= _MAX_BUCKETS and key not in self._buckets:
            self._forget(now)
        self._buckets[key] = (held - 1, now)

    def _forget(self, now: float) -> None:
        """Drop the older half: the longer unused, the fuller, and a full bucket is the same as none."""
        oldest = sorted(self._buckets.items(), key=lambda item: now - item[1][1], reverse=True)
        self._buckets = dict(oldest[len(oldest) // 2 :])
