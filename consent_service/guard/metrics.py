"""What is counted about requests. Labels are operation ids and statuses, never anything that was sent.

With several workers each process writes its numbers to a file in PROMETHEUS_MULTIPROC_DIR, and whichever worker is
asked adds them up. The variable must be set before this module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

METRICS_TYPE = CONTENT_TYPE_LATEST
"""The content type of `render_metrics`."""

UNMATCHED = "none"
"""The operation of requests that found none."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUESTS = Counter("consent_requests", "Answers given.", ["operation", "status"])
_SECONDS = Histogram(
    "consent_request_seconds", "From the request's head to the answer's end.", ["operation"], buckets=_BUCKETS
)

_Bound = tuple[Callable[[], None], Callable[[float], None]]
# Finding the child of a label set costs several times what adding to it does: find each once.
_bound: dict[tuple[str, int], _Bound] = {}


def record(operation: str, status: int, seconds: float) -> None:
    """Count one answer."""
    count, observe = _bound.get((operation, status)) or _bind(operation, status)
    count()
    observe(seconds)


def render_metrics() -> bytes:
    """All metrics of this service, over all its processes, in Prometheus's text format."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _bind(operation: str, status: int) -> _Bound:
    bound = (_REQUESTS.labels(operation, str(status)).inc, _SECONDS.labels(operation).observe)
    return _bound.setdefault((operation, status), bound)
