"""Time as the service knows it, passed in wherever a moment matters."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """The current moment, UTC."""
    return datetime.now(UTC)
