"""Random ids."""

from __future__ import annotations

import os
import time
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as FastUUID  # noqa: N811 -- a class


def random() -> bytes:
    """16 random bytes."""
    return os.urandom(16)


def event_id() -> UUID:
    """A time-ordered UUID (version 7, RFC 9562): new rows stay together in the index."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    found: UUID = FastUUID((value & ~(0x3 << 62) | 2 << 62).to_bytes(16, "big"))
    return found
