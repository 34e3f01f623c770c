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
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    found: UUID = FastUUID(bytes(raw))
    return found
