"""What is kept outside the database."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import itertools
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from conftest import Serve
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from hypothesis import strategies as some

from consent_service import settings
from consent_service.errors import SetupError, Unavailable
from consent_service.ledger import anchor
from consent_service.ledger.anchor import Anchor, Anchored, FileAnchor, open_anchor
from consent_service.settings import Settings

_COUNT = itertools.count()
DYING = Path(__file__).with_name("dying.py")


MISSING = 404, dict[str, str](), b"<Error><Code>NoSuchKey</Code></Error>"


class Store:
    """An object store in small: conditional writes, reads and lists as Amazon S3 documents them, and one bucket."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.url = ""
        self.fault: str | None = None
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=key/")
        self.asked += 1
        _, bucket, *rest = scope["path"].split("/", 2)
        if self.fault == "silent":
            await receive()
            return
        told = dict[str, str]()
        status, answer = 404, b"<Error><Code>NoSuchBucket</Code></Error>"
        if bucket == "bucket":
            status, told, answer = self.answer(scope["method"], "".join(rest), scope["query_string"], headers, body)
        if self.fault is not None:
            status, told, answer = int(self.fault), {}, b""
        told |= {"content-length": str(len(answer))}
        raw = [(name.encode(), value.encode()) for name, value in told.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": answer})

    def answer(
        self, method: str, name: str, query: bytes, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        asked = dict(parse_qsl(query.decode()))
        if asked.get("list-type") == "2":
            return 200, {}, self.listed(asked["prefix"], asked.get("continuation-token", ""))
        if method == "POST" and query == b"delete":
            return 200, {}, self.deleted(re.findall("<Key>(.*?)</Key>", body.decode()))
        found = self.objects.get(name)
        if method == "PUT":
            wanted, unwanted = headers.get("if-match"), headers.get("if-none-match")
            if wanted is not None and found is None:
                return MISSING
            if (wanted or tag(found)) != tag(found) or (unwanted == "*" and found is not None):
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
            self.objects[name] = found = body
            return 200, {"etag": tag(found) or ""}, b""
        return (
            MISSING
            if found is None
            else (200, {"etag": tag(found) or "", "last-modified": "Wed, 25 Nov 2026 00:00:00 GMT"}, found)
        )

    def deleted(self, names: list[str]) -> bytes:
        for name in names:
            del self.objects[name]
        told = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
        return f"<DeleteResult>{told}</DeleteResult>".encode()

    def listed(self, prefix: str, after: str) -> bytes:
        """Two at a time, and not in their order."""
        names = sorted((name for name in self.objects if name.startswith(prefix)), reverse=True)
        rest = names[int(after or 0) :]
        some_of_them = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-11-25T00:00:00.000Z</LastModified>"
            f"<ETag>{tag(self.objects[name])}</ETag><Size>{len(self.objects[name])}</Size></Contents>"
            for name in rest[:2]
        )
        more = f"<NextContinuationToken>{int(after or 0) + 2}</NextContinuationToken>" if len(rest) > 2 else ""
        return f"<ListBucketResult>{some_of_them}{more}</ListBucketResult>".encode()


def tag(content: bytes | None) -> str | None:
    return None if content is None else f'"{hashlib.md5(content).hexdigest()}"'


@pytest.fixture(scope="session")
async def served(serve: Serve) -> AsyncIterator[Store]:
    made = Store()
    async with serve(made) as made.url:
        yield made


@pytest.fixture
def store(served: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    served.fault = None
    served.objects.clear()
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("ENDPOINT_URL", served.url)):
        monkeypatch.setenv(f"AWS_{name}", value)
    return served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "anchor"


@pytest.fixture(params=["folder", "store"])
def where(request: pytest.FixtureRequest, folder: Path, store: Store) -> str:  # noqa: ARG001 -- the store must be there
    return str(folder) if request.param == "folder" else "s3://bucket/pre/fix"


@pytest.fixture
def place(where: str) -> Anchor:
    return open_anchor(where)


@pytest.fixture
def disk(folder: Path) -> FileAnchor:
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


async def test_the_journal_forgets_the_lines_that_it_is_told_to(place: Anchor) -> None:
    await place.forget_erasures("demo", [b"nothing"])
    lines = [b"%d" % number for number in range(5)]
    for line in lines:
        await place.note_erasure("demo", line)
        await place.note_erasure("other", line)
    await place.forget_erasures("demo", {lines[0], lines[3], b"nothing"})
    assert await place.erasures("demo") == [lines[1], lines[2], lines[4]]
    await place.note_erasure("demo", b"new")
    assert await place.erasures("demo") == [lines[1], lines[2], lines[4], b"new"]
    assert await place.erasures("other") == lines


@pytest.mark.parametrize("line", [b"", b"\n", b"a\n", b"a\nb"])
async def test_a_line_is_one_line(place: Anchor, line: bytes) -> None:
    with pytest.raises(ValueError, match="line"):
        await place.note_erasure("demo", line)
    assert await place.erasures("demo") == []


@pytest.mark.parametrize("key", ["", ".", "..", "../x", "a/b", ".x", "A", "ä", "a\n", "a" * 101, "a b", "-a"])
def test_a_key_is_safe_in_a_name(place: Anchor, folder: Path, store: Store, key: str) -> None:
    for work in (
        place.read(key),
        place.swap(key, None, "note"),
        place.note_erasure(key, b"line"),
        place.erasures(key),
        place.forget_erasures(key, [b"line"]),
    ):
        with pytest.raises(ValueError, match="key"):
            asyncio.run(work)
    assert not folder.exists() or list(folder.iterdir()) == []
    assert store.objects == {}


@trying(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=some.lists(
        some.tuples(some.sampled_from("ab"), some.integers(-1, 5), some.text(min_size=1, max_size=5)), max_size=12
    )
)
async def test_it_is_a_compare_and_swap(place: Anchor, steps: list) -> None:
    again = next(_COUNT)
    now: dict[str, str | None] = {"a": None, "b": None}
    seen: list[tuple[str, Anchored | None]] = []
    for key, which, note in steps:
        read = await place.read(f"{key}{again}")
        assert (read and read.note) == now[key]
        seen.append((key, read))
        old = read if not 0 <= which < len(seen) else seen[which][1]
        passes = (old and old.note) == now[key]
        assert await place.swap(f"{key}{again}", old, note) is passes
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


async def test_a_torn_last_line_is_neither_read_nor_joined_to_the_next(folder: Path, disk: FileAnchor) -> None:
    await disk.note_erasure("demo", b"first")
    with (folder / "demo.erasures").open("ab") as journal:
        journal.write(b"half of")
    assert await disk.erasures("demo") == [b"first"]
    await disk.note_erasure("demo", b"second")
    assert await disk.erasures("demo") == [b"first", b"second"]


async def test_what_is_damaged_is_given_back_and_can_be_replaced(folder: Path, disk: FileAnchor) -> None:
    for damaged in (b"", b"\xff\0 no note"):
        (folder / "demo.checkpoint").write_bytes(damaged)
        found = await disk.read("demo")
        assert found is not None
        assert not await disk.swap("demo", None, "new\n")
        assert await disk.swap("demo", found, "new\n")


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


def test_a_folder_that_went_away_is_not_an_empty_one_and_not_made_again(folder: Path, disk: FileAnchor) -> None:
    folder.rmdir()
    for work in (
        disk.read("demo"),
        disk.swap("demo", None, "note"),
        disk.note_erasure("demo", b"line"),
        disk.erasures("demo"),
    ):
        with pytest.raises(Unavailable, match="cannot be used"):
            asyncio.run(work)
    assert not folder.exists()


async def test_a_writer_that_holds_on_is_not_waited_for_without_end(
    folder: Path, disk: FileAnchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor, "LOCK_S", 0.05)
    with (folder / "demo.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process"):
            await disk.swap("demo", None, "note")
        with pytest.raises(Unavailable, match="another process"):
            await disk.note_erasure("demo", b"line")
        assert await disk.read("demo") is None
    assert await disk.swap("demo", None, "note")


# What an object store does


async def test_names_are_those_that_are_documented(store: Store) -> None:
    place = open_anchor("s3://bucket/pre/fix")
    await place.swap("demo", None, "note")
    await place.note_erasure("demo", b"line")
    first, second = sorted(store.objects)
    assert first == "pre/fix/demo.checkpoint"
    assert re.fullmatch(r"pre/fix/erasures/demo/[0-9]{20}-[0-9a-f]{16}", second)
    await open_anchor("s3://bucket").swap("demo", None, "note")
    assert "demo.checkpoint" in store.objects


async def test_many_writers_lose_nothing(store: Store) -> None:
    async def add() -> None:
        place, done = open_anchor("s3://bucket/pre"), 0
        while done < 10:
            old = await place.read("demo")
            done += await place.swap("demo", old, str(int(old.note if old else 0) + 1))

    await asyncio.gather(*(add() for _ in range(4)))
    assert store.objects["pre/demo.checkpoint"] == b"40"


@pytest.mark.parametrize("fault", ["500", "503", "403", "301", "silent"])
async def test_a_store_that_fails_is_told_and_asked_once(
    store: Store, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor, "CALL_S", 0.2 if fault == "silent" else anchor.CALL_S)
    place = open_anchor("s3://bucket/pre")
    assert await place.swap("demo", None, "first")
    first = await place.read("demo")
    store.fault, store.asked = fault, 0
    for work in (
        place.read("demo"),
        place.swap("demo", first, "second"),
        place.swap("other", None, "second"),
        place.note_erasure("demo", b"line"),
        place.erasures("demo"),
        place.forget_erasures("demo", [b"line"]),
    ):
        with pytest.raises(Unavailable, match="s3://bucket/pre cannot be used"):
            await work
    assert store.asked == 6


async def test_another_writer_at_the_same_moment_was_quicker(store: Store) -> None:
    place = open_anchor("s3://bucket/pre")
    assert await place.swap("demo", None, "first")
    first = await place.read("demo")
    store.fault = "409"  # ConditionalRequestConflict
    assert not await place.swap("demo", first, "second")
    assert not await place.swap("demo", None, "second")


async def test_what_was_removed_can_be_put_again(store: Store) -> None:
    place = open_anchor("s3://bucket/pre")
    assert await place.swap("demo", None, "first")
    first = await place.read("demo")
    store.objects.clear()
    assert not await place.swap("demo", first, "second")
    assert await place.swap("demo", await place.read("demo"), "second")


async def test_a_bucket_that_is_not_there_is_told(store: Store) -> None:
    place = open_anchor("s3://no-bucket/pre")
    for work in (place.swap("demo", None, "note"), place.note_erasure("demo", b"line"), place.erasures("demo")):
        with pytest.raises(Unavailable):
            await work
    assert store.objects == {}


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://b", "s3://Bucket/x", "s3://bucket/a b", "s3://bucket//x", "s3://bucket/x?y", "s3://u@bucket/x"],
)
def test_what_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="no place"):
        open_anchor(url)


@pytest.mark.parametrize("endpoint", ["http://store.example", "ftp://127.0.0.1", "https://a:b@store.example"])
def test_a_store_is_reached_safely(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(SetupError, match="by https"):
        open_anchor("s3://bucket/pre")


def test_the_extra_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SetupError, match=r"consent-service\[objects\]"):
        open_anchor("s3://bucket/pre")


# Which one it is


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
