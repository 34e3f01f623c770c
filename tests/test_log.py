"""Logs never carry what a caller sent."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import consent_service
from consent_service import decode, errors, log

CANARY = "erika.mustermann@example.org"
PACKAGE = Path(consent_service.__file__).parent


@pytest.fixture
def lines(capsys) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure("info")
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    log._configure_ours(logging.INFO)
    root.handlers[:], root.level = handlers, level


def test_a_line_is_json_with_the_listed_fields(lines):
    log.get("room").info("started", port=8080, url="http://127.0.0.1:8080", version="1", duration_ms=1.5, worker=None)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "started", "level": "info", "source": "room", "port": 8080, "url": "http://127.0.0.1:8080",
        "version": "1", "duration_ms": 1.5, "worker": None,
    }  # fmt: skip


def test_other_fields_leave_their_names_only(lines):
    log.get("room").warning("odd", subject=CANARY, body={"x": CANARY}, count=[CANARY], **{CANARY: 1, "x" * 50: 2})
    (line,) = lines()
    assert line["dropped"] == ["?", "?", "body", "count", "subject"]
    assert CANARY not in json.dumps(line)


def test_levels(lines):
    log.get("room").debug("not told")
    logging.getLogger("library").debug("not told")
    assert lines() == []
    log.configure("debug")
    log.get("room").debug("told")
    assert [line["event"] for line in lines()] == ["told"]


def _fail() -> None:
    try:
        decode.body(b"nothing", int)
    except errors.Malformed as error:
        raise ValueError(CANARY) from error


@pytest.mark.parametrize("how", ["exc_info", "exception", "field", "library"])
def test_exceptions_are_classes_and_lines_of_our_own_code(lines, how):
    try:
        _fail()
    except ValueError as error:
        match how:
            case "exc_info":
                log.get("room").error("failed", exc_info=error)
            case "exception":
                log.get("room").exception("failed")
            case "field":
                log.get("room").error("failed", error=error)
            case _:
                logging.getLogger("library").exception("failed")
    (line,) = lines()
    assert CANARY not in json.dumps(line)
    if how == "field":
        assert line["error"] == "ValueError"
    else:
        assert line["error"] == "ValueError from Malformed"
        assert all(frame.startswith("decode.py:") for frame in line["frames"])
        assert line["frames"]


def test_a_cycle_of_causes_ends(lines):
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    log.get("room").error("failed", exc_info=first)
    assert lines()[0]["error"] == "ValueError from KeyError"


class TestLibraries:
    def test_literals_are_told_without_their_arguments(self, lines):
        logging.getLogger("uvicorn.error").info("Started server process [%d]", 4711)
        logging.getLogger("library").warning("Cannot read %s", CANARY, extra={"path": CANARY})
        first, second = lines()
        assert (first["event"], first["source"]) == ("Started server process [%d]", "uvicorn.error")
        assert (second["event"], second["level"]) == ("Cannot read %s", "warning")
        assert CANARY not in json.dumps(second)

    @pytest.mark.parametrize("text", [f"Cannot read {CANARY}", ValueError(CANARY), 7])
    def test_texts_made_at_run_time_are_withheld(self, lines, text):
        logging.getLogger("library").error(text)
        logging.getLogger("library").error("Cannot read " + str(text))  # noqa: G003 -- as libraries do
        assert [line["event"] for line in lines()] == [log.WITHHELD] * 2

    def test_a_record_from_nowhere_is_withheld(self, lines):
        logging.getLogger("x").handle(logging.LogRecord("x", logging.ERROR, "nowhere.py", 1, CANARY, (), None))
        assert lines()[0]["event"] == log.WITHHELD

    def test_what_asyncio_says_of_lost_exceptions(self, lines):
        async def lose() -> None:
            asyncio.get_running_loop().call_exception_handler({"message": CANARY, "exception": ValueError(CANARY)})

        asyncio.run(lose())
        (line,) = lines()
        assert (line["error"], line["source"]) == ("ValueError", "asyncio")
        assert CANARY not in json.dumps(line)

    def test_handlers_that_libraries_installed_are_taken_away(self, lines):
        library = logging.getLogger("uvicorn.test")
        elsewhere = io.StringIO()
        library.addHandler(logging.StreamHandler(elsewhere))
        library.propagate = False
        log.configure("info")
        library.error("told once")
        assert elsewhere.getvalue() == ""
        assert [line["event"] for line in lines()] == ["told once"]

    def test_access_lines_are_off(self, lines):
        logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', CANARY, "GET", CANARY, "1.1", 200)
        assert lines() == []


@pytest.mark.usefixtures("lines")
def test_a_log_that_cannot_be_written_fails_nobody(monkeypatch):
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    log.get("room").error("lost")
    logging.getLogger("library").error("lost")


def test_an_unknown_level_is_refused():
    with pytest.raises(KeyError):
        log.configure("loud")


def test_every_event_of_ours_is_a_literal_and_every_field_is_listed():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match call:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"))):
                    is_literal = len(call.args) == 1 and isinstance(call.args[0], ast.Constant)
                    fields = {word.arg for word in call.keywords}
                    if not is_literal or not fields <= log.FIELDS | {"exc_info"}:
                        wrong.append(f"{file.name}:{call.lineno}")
    assert wrong == []
