"""Run as a program: writers of an anchor that die with kill -9 before every single line of it, and ones that race.

It prints what was found wrong, a line each. `naive` in the place of `real` writes as one would without care.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

from consent_service.ledger import anchor
from consent_service.ledger.anchor import Anchored, FileAnchor

KEY = "demo"
WIDE = 20_000
"""Bytes of a note, or of a line of the journal."""


class Naive(FileAnchor):
    """In the same files: no lock, no draft, no torn line cut off."""

    def _swap(self, key: str, old: Anchored | None, raw: bytes) -> bool:
        file = self._file(key, "checkpoint")
        found = self._read(file)
        if (found and found.version) != (old and old.version):
            return False
        time.sleep(0.001)
        self._put(file, raw, "wb")
        return True

    def _append(self, key: str, raw: bytes) -> None:
        self._put(self._file(key, "erasures"), raw, "ab")

    @staticmethod
    def _put(file: Path, raw: bytes, mode: str) -> None:
        with file.open(mode, buffering=0) as to:
            to.write(raw[: len(raw) // 2])
            to.write(raw[len(raw) // 2 :])


def say(wrong: str) -> None:
    sys.stdout.write(wrong + "\n")


def dies(work: Coroutine[Any, Any, Any], at: int) -> bool:
    """Do it in a child that kills itself before the line with that number; False: it had no such line, and ended."""
    child = os.fork()
    if child == 0:
        lines = 0

        def count(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename not in (anchor.__file__, __file__):
                return None
            lines += event == "line"
            if lines == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return count

        threading.settrace(count)  # the work is done in a thread
        asyncio.run(work)
        os._exit(0)
    work.close()
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def swaps(place: FileAnchor) -> None:
    at, killed = 0, True
    while killed:
        at += 1
        old = asyncio.run(place.read(KEY))
        note = chr(ord("a") + at % 26) * WIDE
        killed = dies(place.swap(KEY, old, note), at)
        new = asyncio.run(place.read(KEY))
        if new not in (old, Anchored(note, "" if new is None else new.version)):
            say(f"killed at {at}: neither the old note nor the new one")
        elif not asyncio.run(place.swap(KEY, new, f"after {at}")):
            say(f"killed at {at}: nobody can write any more")
    sys.stderr.write(f"lines {at}")


def lines(place: FileAnchor) -> None:
    at, killed, known = 0, True, list[bytes]()
    while killed:
        at += 1
        killed = dies(place.note_erasure(KEY, b"%d" % at * WIDE), at)
        asyncio.run(place.note_erasure(KEY, b"after %d" % at))
        found = asyncio.run(place.erasures(KEY))
        if found not in ([*known, b"after %d" % at], [*known, b"%d" % at * WIDE, b"after %d" % at]):
            say(f"killed at {at}: a line is lost or torn")
        known = found
    sys.stderr.write(f"lines {at}")


def race(place: FileAnchor, writers: int = 4, each: int = 25) -> None:
    """Each writer adds one to a number, so many times."""

    async def add() -> None:
        done = 0
        while done < each:
            old = await place.read(KEY)
            number = 0 if old is None or not old.note else int(old.note)
            done += await place.swap(KEY, old, str(number + 1))
            await place.note_erasure(KEY, b"%d" % number * 1_000)

    children = []
    for _ in range(writers):
        child = os.fork()
        if child == 0:
            asyncio.run(add())
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            say("a writer failed")
    last = asyncio.run(place.read(KEY))
    if last is None or last.note != str(writers * each):
        say(f"{writers * each} were added, and {last and last.note} are there")
    if any(line != line[: len(line) // 1_000] * 1_000 for line in asyncio.run(place.erasures(KEY))):
        say("a line is torn")


if __name__ == "__main__":
    kind, what, folder = sys.argv[1:]
    made = {"real": FileAnchor, "naive": Naive}[kind](Path(folder))
    {"swaps": swaps, "lines": lines, "race": race}[what](made)
