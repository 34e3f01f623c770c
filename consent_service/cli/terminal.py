"""What commands show: text or JSON, tables, progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import msgspec

from consent_service.errors import SetupError


def tell(as_json: bool, facts: Any, text: str) -> None:
    """Print what was done: the facts as one JSON object, or the text."""
    if sys.stdout is None:
        raise SetupError("There is no output to write to. What was done stays done.")
    try:
        click.echo(msgspec.json.encode(facts).decode() if as_json else text)
        sys.stdout.flush()
    except UnicodeError:
        raise SetupError("The output takes no UTF-8: set PYTHONIOENCODING=utf-8. What was done stays done.") from None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it is tried, and fails, once more at exit
        raise SetupError(f"The output cannot be written ({error.strerror}). What was done stays done.") from None


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns; what is empty is a dash."""
    cells = [[str(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


@contextmanager
def progress(length: int | None, label: str) -> Iterator[Callable[[int], None]]:
    """A bar that is told of each step, where a terminal is attached and the end is known."""
    if length is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update
