"""What is kept outside the database."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from hypothesis import strategies as some

from consent_service import settings
from consent_service.errors import SetupError, Unavailable
from consent_service.ledger import anchor
from consent_service.ledger.anchor import Anchor, Anchored, FileAnchor, open_anchor
from consent_service.settings import Settings

DYING = Path(__file__).with_name("dying.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "anchor"


@pytest.fixture
def place(folder: Path) -> Anchor:
    return FileAnchor(folder)


# What every anchor does


async def test_the_first_note_needs_nothing_there_and_the_next_one_the_last(place: Anchor) -> None:
    assert await place.read("demo") is None
    assert await place.swap("demo", None, "first\n")
    first = await place.read("demo")
    assert first is not None
    assert first.note == "first\n"
    assert not await place.swap("demo", None, "other\n")
    assert await place.swap("demo", first, "second — ü\n")
    assert not await place.swap("demo", first, "third\n")
    second = await place.read("demo")
    assert second is not None
    assert second.note == "second — ü\n"


async def test_ledgers_do_not_touch_each_other(place: Anchor) -> None:
    assert await place.swap("a", None, "of a")
    await place.note_erasure("a", b"of a")
    for other in ("b", "a.b", "a-", "1"):
        assert await place.read(other) is None
        assert await place.erasures(other) == []


async def test_the_journal_keeps_lines_in_their_order(place: Anchor) -> None:
    assert await place.erasures("demo") == []
    lines = [b'{"n": 1}', b"\r", b"\0\xff", b'{"n": 1}', b"x" * 100_000]
    for line in lines:
        await place.note_erasure("demo", line)
    assert await place.erasures("demo") == lines


@pytest.mark.parametrize("line", [b"", b"\n", b"a\n", b"a\nb"])
async def test_a_line_is_one_line(place: Anchor, line: bytes) -> None:
    with pytest.raises(ValueError, match="line"):
        await place.note_erasure("demo", line)
    assert await place.erasures("demo") == []


@pytest.mark.parametrize("key", ["", ".", "..", "../x", "a/b", ".x", "A", "ä", "a\n", "a" * 101, "a b", "-a"])
def test_a_key_is_safe_in_a_name(place: Anchor, folder: Path, key: str) -> None:
    for work in (
        place.read(key),
        place.swap(key, None, "note"),
        place.note_erasure(key, b"line"),
        place.erasures(key),
    ):
        with pytest.raises(ValueError, match="key"):
            asyncio.run(work)
    assert list(folder.iterdir()) == []


@trying(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=some.lists(
        some.tuples(some.sampled_from("ab"), some.integers(-1, 5), some.text(min_size=1, max_size=5)), max_size=12
    )
)
async def test_it_is_a_compare_and_swap(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    place = FileAnchor(tmp_path_factory.mktemp("anchor"))
    now: dict[str, str | None] = {"a": None, "b": None}
    seen: list[tuple[str, Anchored | None]] = []
    for key, which, note in steps:
        read = await place.read(key)
        assert (read and read.note) == now[key]
        seen.append((key, read))
        old = read if not 0 <= which < len(seen) else seen[which][1]
        passes = (old and old.note) == now[key]
        assert await place.swap(key, old, note) is passes
        if passes:
            now[key] = note


# What a folder does


@pytest.mark.parametrize("what", ["swaps", "lines", "race"])
@pytest.mark.parametrize("kind", ["real", "naive"])
def test_a_writer_may_die_before_any_line_and_race_with_others(folder: Path, kind: str, what: str) -> None:
    done = subprocess.run(
        [sys.executable, DYING, kind, what, folder], capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout == "") is (kind == "real"), done.stdout
    if what != "race":
        assert int(done.stderr.split()[-1]) > 4, "it was killed at many places"


async def test_a_torn_last_line_is_neither_read_nor_joined_to_the_next(folder: Path, place: Anchor) -> None:
    await place.note_erasure("demo", b"first")
    with (folder / "demo.erasures").open("ab") as journal:
        journal.write(b"half of")
    assert await place.erasures("demo") == [b"first"]
    await place.note_erasure("demo", b"second")
    assert await place.erasures("demo") == [b"first", b"second"]


async def test_what_is_damaged_is_given_back_and_can_be_replaced(folder: Path, place: Anchor) -> None:
    for damaged in (b"", b"\xff\0 no note"):
        (folder / "demo.checkpoint").write_bytes(damaged)
        found = await place.read("demo")
        assert found is not None
        assert not await place.swap("demo", None, "new\n")
        assert await place.swap("demo", found, "new\n")


def test_everything_is_for_its_owner_alone_and_what_was_there_stays_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "open").mkdir(mode=0o755)
        place = FileAnchor(tmp_path / "open" / "a" / "b")
        asyncio.run(place.swap("demo", None, "note"))
        asyncio.run(place.note_erasure("demo", b"line"))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "open": 0o755, "a": 0o700, "b": 0o700, "demo.checkpoint": 0o600, "demo.erasures": 0o600, "demo.lock": 0o600,
    }  # fmt: skip


def test_a_folder_that_went_away_is_not_made_again(folder: Path, place: Anchor) -> None:
    folder.rmdir()
    with pytest.raises(Unavailable, match="cannot be used"):
        asyncio.run(place.swap("demo", None, "note"))
    assert not folder.exists()


async def test_a_writer_that_holds_on_is_not_waited_for_without_end(
    folder: Path, place: Anchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor, "LOCK_S", 0.05)
    with (folder / "demo.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process"):
            await place.swap("demo", None, "note")
        with pytest.raises(Unavailable, match="another process"):
            await place.note_erasure("demo", b"line")
        assert await place.read("demo") is None
    assert await place.swap("demo", None, "note")


@pytest.mark.parametrize("where", ["", "http://127.0.0.1/x", "file:///x"])
def test_what_is_no_place_is_refused(where: str) -> None:
    with pytest.raises(SetupError, match="no place"):
        open_anchor(where)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SetupError, match=r"cannot be made: .*\."):
            open_anchor(str(place))
    assert isinstance(open_anchor(str(tmp_path / "made" / "now")), FileAnchor)


def test_with_the_embedded_database_there_is_one_unless_told_otherwise() -> None:
    assert settings.anchor(Settings(data="here")) == "here/anchor"
    assert settings.anchor(Settings(data="here", anchor="there")) == "there"
    assert settings.anchor(Settings(database_url="postgresql://x")) is None
    assert settings.anchor(Settings(database_url="postgresql://x", anchor="s3://b/p")) == "s3://b/p"
