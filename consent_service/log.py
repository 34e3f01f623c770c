"""Logs: JSON lines on stderr with an allow-list of fields, because any other field may carry personal data.

Whatever is not on the list is dropped, and only its name is kept. Exceptions are told as class names and lines of our
own code: their messages quote what they failed on. Messages of libraries are told only where they are literals of the
library's code, without arguments.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import structlog

FIELDS = frozenset({
    "event", "level", "timestamp", "source",
    "error", "error_id", "frames", "dropped",
    "operation", "status", "duration_ms", "log_id", "credential",
    "worker", "workers", "pid", "signal", "exit_code", "migration", "migrations", "host", "port", "url", "version",
    "count", "size", "seconds", "attempt", "command", "tenant", "witness", "outcome",
})  # fmt: skip
"""Every field a line may have. Whoever adds one vouches that it never holds what a caller sent."""

WITHHELD = "(text withheld)"
_PACKAGE = Path(__file__).parent
_LONGEST_NAME = 40
_QUIET = ("uvicorn.access",)
"""Loggers that only repeat what callers sent."""

Event = MutableMapping[str, Any]


def configure(level: str = "info") -> None:
    """Send our events and those of every library to stderr as JSON lines, from `level` (`debug` … `critical`) up.

    Servers and frameworks must be told to leave logging alone (`log_config=None`, `logging_config=None`): handlers that
    they install afterwards would write past this.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    _configure_ours(number)
    root = logging.getLogger()
    root.handlers[:] = [_Library()]
    root.setLevel(number)
    for name in [name for name, found in root.manager.loggerDict.items() if isinstance(found, logging.Logger)]:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    for name in _QUIET:
        logging.getLogger(name).disabled = True


def _configure_ours(number: int) -> None:
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_PROCESSORS],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a room: `log.get("guard").error("request failed", operation="check")`.

    The event is a literal, and nothing is ever put into it: a test looks.
    """
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(source=name))


class _Stderr:
    """Where lines end. A log that cannot be written must not fail a request."""

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class _Library(logging.Handler):
    """Takes the records of stdlib logging through the same allow-list, without their arguments."""

    def emit(self, record: logging.LogRecord) -> None:
        event: Event = {
            "event": _literal(record), "level": record.levelname.lower(), "source": record.name,
            "exc_info": record.exc_info,
        }  # fmt: skip
        for process in _PROCESSORS[:-1]:
            event = process(None, "", event)
        _Stderr().msg(_render(None, "", event))


def _literal(record: logging.LogRecord) -> str:
    """The record's text if it stands in the code that logged it; a text put together at run time may quote anything."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- the one way to the code that logs
    while frame is not None:
        if frame.f_lineno == record.lineno and frame.f_code.co_filename == record.pathname:
            is_literal = isinstance(record.msg, str) and record.msg in frame.f_code.co_consts
            return record.msg.strip() if is_literal else WITHHELD
        frame = frame.f_back
    return WITHHELD


def _tell_error(_logger: Any, _method: str, event: Event) -> Event:
    """Replace exception info by class names and lines of our own package."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["error"] = " from ".join(type(one).__name__ for one in _chain(error))
        event["frames"] = [frame for one in _chain(error) for frame in _frames(one)]
    return event


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> Iterator[str]:
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_PACKAGE):
            yield f"{file.relative_to(_PACKAGE).as_posix()}:{line}"


def _allow(_logger: Any, _method: str, event: Event) -> Event:
    """Keep the fields of the list, drop the rest; `dropped` names them."""
    kept: Event = {}
    dropped = []
    for key, value in event.items():
        if key in FIELDS and (key == "frames" or isinstance(value, str | int | float | None)):
            kept[key] = value
        elif key in FIELDS and isinstance(value, BaseException):
            kept[key] = type(value).__name__
        else:
            # A name that is no identifier did not come from our code but from data.
            dropped.append(key if key.isidentifier() and len(key) <= _LONGEST_NAME else "?")
    if dropped:
        kept["dropped"] = sorted(dropped)
    return kept


def _render(_logger: Any, _method: str, event: Event) -> str:
    return json.dumps(event)


_PROCESSORS: list[Callable[[Any, str, Event], Any]] = [
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _tell_error,
    _allow,
    _render,
]

# Before anybody configures anything, too: the library's own default prints exceptions with all local variables.
_configure_ours(logging.INFO)
