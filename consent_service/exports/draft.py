"""Keeping an export as a file, where it was ordered by command."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from consent_service.errors import SetupError
from consent_service.vault import private


@contextmanager
def saving(output: Path) -> Iterator[Callable[[bytes], None]]:
    """What takes the pieces of a file, which is there when all were taken: whole, or not at all.

    Everybody in it can be read: nobody but its owner may.

    Raises:
        SetupError: the file cannot be written. What else goes wrong meanwhile is not the file's, and goes through.
    """
    draft = output.with_name(f".{output.name}.{secrets.token_hex(8)}")
    with _told(output):
        if output.is_symlink() or (output.exists() and not output.is_file()):
            raise SetupError(f"{output} is no file of its own, which could be replaced. Name another one.")
        file = open(draft, "xb", opener=private)  # noqa: SIM115 -- closed below, where closing may fail once more

    def take(piece: bytes) -> None:
        with _told(output):
            file.write(piece)

    try:
        yield take
        with _told(output):
            file.flush()
            os.fsync(file.fileno())
            draft.replace(output)
    finally:
        with suppress(OSError):  # it was told
            file.close()
        draft.unlink(missing_ok=True)


@contextmanager
def _told(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(f"The file {output} cannot be written: {error.strerror}.") from None
