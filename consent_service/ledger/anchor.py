"""Where the last published checkpoint is kept outside the database, which forgets it when an older copy is restored.

An anchor knows one note per ledger, replaced by compare-and-swap, and beside it a journal of erasures, which a restored
database must do again. It is not trusted: what it gives back is verified by whoever reads it.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from consent_service import outbound
from consent_service.errors import SetupError, Unavailable
from consent_service.vault import sync

LOCK_S = 5.0
"""Seconds that a writer waits for another one."""
CALL_S = 5.0
"""Seconds for a call to an object store."""
_AT_ONCE = 16
_ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*/?", re.ASCII)
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII)
_PAUSE_S = 0.01
T = TypeVar("T")


class Anchored(NamedTuple):
    """What an anchor holds for a ledger."""

    note: str
    """As it was found: nobody has verified it."""
    version: str
    """What the anchor calls this content; only `swap` reads it."""


class Anchor(Protocol):
    """A place outside the database. `key` names a ledger: lower-case letters, digits, `.`, `_` and `-`, at most 100.

    Every method raises Unavailable where the place cannot be reached, read or written. A write may then have happened
    or not: read again.
    """

    async def read(self, key: str) -> Anchored | None:
        """The last note; None before the first."""

    async def swap(self, key: str, old: Anchored | None, note: str) -> bool:
        """Put `note` in the place of `old` (None: nothing is there yet), durably and all of it.

        False: somebody else was quicker, and nothing was changed; read again.
        """

    async def note_erasure(self, key: str, line: bytes) -> None:
        """Add a line to the journal, durably. It has no line break. After Unavailable it may be there twice."""

    async def erasures(self, key: str) -> list[bytes]:
        """The lines of the journal, the oldest first."""

    async def forget_erasures(self, key: str, lines: Collection[bytes]) -> None:
        """Take lines out of the journal. After Unavailable some may be there still."""


def open_anchor(where: str | None) -> Anchor | None:
    """The anchor in a folder, which is made if need be, or in an object store, `s3://bucket/prefix`; None: nowhere.

    Raises:
        SetupError: there can be none.
    """
    if where is None:
        return None
    if where.startswith("s3://"):
        return ObjectAnchor(where)
    if not where or "://" in where:
        raise SetupError(f"`{where}` is no place for an anchor. Name a folder, or s3://bucket/prefix.")
    return FileAnchor(Path(where))


class FileAnchor:
    """An anchor in a folder on a disk that is not the database's: a file and a journal for each ledger.

    Any number of processes may use it. Whenever one of them dies, the old note is there or the new one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            _make(folder)
        except OSError as error:
            raise SetupError(f"The folder {folder} of the anchor cannot be made: {error.strerror}.") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SetupError(f"The folder {folder} of the anchor cannot be written. Give it to the service's user.")

    async def read(self, key: str) -> Anchored | None:
        """See `Anchor`."""
        return await self._tried(lambda: self._read(self._file(key, "checkpoint")))

    async def swap(self, key: str, old: Anchored | None, note: str) -> bool:
        """See `Anchor`."""
        return await self._tried(lambda: self._swap(key, old, note.encode()))

    async def note_erasure(self, key: str, line: bytes) -> None:
        """See `Anchor`."""
        demand_line(line)
        await self._tried(lambda: self._append(key, line + b"\n"))

    async def erasures(self, key: str) -> list[bytes]:
        """See `Anchor`."""
        return await self._tried(lambda: self._lines(self._file(key, "erasures")))

    async def forget_erasures(self, key: str, lines: Collection[bytes]) -> None:
        """See `Anchor`."""
        await self._tried(lambda: self._forget(key, lines))

    async def _tried(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise Unavailable(f"The anchor in {self._folder} cannot be used: {error.strerror or error}.") from error

    def _file(self, key: str, kind: str) -> Path:
        demand_key(key)
        return self._folder / f"{key}.{kind}"

    def _read(self, file: Path) -> Anchored | None:
        raw = self._bytes(file)
        return None if raw is None else Anchored(raw.decode(errors="replace"), hashlib.sha256(raw).hexdigest())

    def _swap(self, key: str, old: Anchored | None, raw: bytes) -> bool:
        file = self._file(key, "checkpoint")
        with self._locked(key):
            found = self._read(file)
            if (found and found.version) != (old and old.version):
                return False
            self._replace(file, raw)
        return True

    def _replace(self, file: Path, raw: bytes) -> None:
        draft = file.with_name(f".{file.name}")  # one name, because who writes it holds the lock
        _write(draft, raw, os.O_TRUNC)
        draft.replace(file)
        sync(self._folder)

    def _append(self, key: str, raw: bytes) -> None:
        file = self._file(key, "erasures")
        with self._locked(key):
            _untear(file)
            _write(file, raw, os.O_APPEND)
            sync(self._folder)

    def _forget(self, key: str, lines: Collection[bytes]) -> None:
        file = self._file(key, "erasures")
        with self._locked(key):
            found = self._lines(file)
            left = [line for line in found if line not in lines]
            if len(left) < len(found):
                self._replace(file, b"".join(line + b"\n" for line in left))

    def _lines(self, file: Path) -> list[bytes]:
        return (self._bytes(file) or b"").split(b"\n")[:-1]  # what follows the last line break was never acknowledged

    def _bytes(self, file: Path) -> bytes | None:
        try:
            return file.read_bytes()
        except FileNotFoundError:
            self._folder.stat()  # a folder that is not there is no empty one
            return None

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Alone with a ledger's files, until the end or until this process dies."""
        file = os.open(self._file(key, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        last = time.monotonic() + LOCK_S
        try:
            while not _took(file):
                if time.monotonic() > last:
                    raise TimeoutError("another process holds its lock")
                time.sleep(_PAUSE_S)
            yield
        finally:
            os.close(file)


class ObjectAnchor:
    """An anchor in an S3-compatible store that does conditional writes (If-None-Match, If-Match). The extra `objects`.

    A ledger has the object `<prefix>/<key>.checkpoint`, and one `<prefix>/erasures/<key>/<time>-<random>` for each line
    of the journal, whose order is that of the writers' clocks. Credentials, region and endpoint come from the usual
    variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL … Nothing is tried twice: after an
    attempt of which nobody knows how it ended, a second one would not tell either.
    """

    def __init__(self, url: str) -> None:
        if _S3.fullmatch(url) is None:
            raise SetupError(f"`{url}` is no place for an anchor. Write s3://bucket/prefix.")
        try:
            import obstore  # noqa: PLC0415 -- an extra
            from obstore.store import S3Store  # noqa: PLC0415
        except ImportError:
            raise SetupError("An anchor in an object store needs: pip install 'consent-service[objects]'.") from None
        self._url = url
        self._errors = obstore.exceptions
        endpoint = next((os.environ[name] for name in _ENDPOINT if os.environ.get(name)), "")
        try:
            if endpoint:
                outbound.demand_safe(endpoint)
            self._store = S3Store.from_url(
                url,
                client_options={"timeout": timedelta(seconds=CALL_S), "allow_http": endpoint.startswith("http:")},
                retry_config={"max_retries": 0},
            )
        except (ValueError, self._errors.BaseError) as error:
            raise SetupError(f"The anchor {url} cannot be used: {_first_line(error)}.") from None

    async def read(self, key: str) -> Anchored | None:
        """See `Anchor`."""
        demand_key(key)
        return await self._tried(lambda: self._read(f"{key}.checkpoint"))

    async def swap(self, key: str, old: Anchored | None, note: str) -> bool:
        """See `Anchor`."""
        demand_key(key)
        return await self._tried(lambda: self._swap(f"{key}.checkpoint", old, note.encode()))

    async def note_erasure(self, key: str, line: bytes) -> None:
        """See `Anchor`."""
        demand_key(key)
        demand_line(line)
        name = f"erasures/{key}/{time.time_ns():020d}-{secrets.token_hex(8)}"
        await self._tried(lambda: self._store.put(name, line, mode="create"))

    async def erasures(self, key: str) -> list[bytes]:
        """See `Anchor`."""
        demand_key(key)
        return await self._tried(lambda: self._lines(f"erasures/{key}"))

    async def forget_erasures(self, key: str, lines: Collection[bytes]) -> None:
        """See `Anchor`."""
        demand_key(key)
        await self._tried(lambda: self._forget(f"erasures/{key}", lines))

    async def _tried(self, work: Callable[[], T]) -> T:
        """Do it in a thread: the library's own coroutines can abort a process that ends soon after."""
        try:
            return await asyncio.to_thread(work)
        except (self._errors.BaseError, OSError) as error:
            raise Unavailable(f"The anchor {self._url} cannot be used: {_first_line(error)}.") from error

    def _read(self, name: str) -> Anchored | None:
        try:
            found = self._store.get(name)
        except FileNotFoundError:
            return None
        return Anchored(bytes(found.bytes()).decode(errors="replace"), found.meta["e_tag"] or "")

    def _swap(self, name: str, old: Anchored | None, raw: bytes) -> bool:
        try:
            self._store.put(name, raw, mode="create" if old is None else {"e_tag": old.version})
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            return False
        except FileNotFoundError:  # the object to replace is gone; where there was to be none, the bucket is
            if old is None:
                raise
            return False
        return True

    def _lines(self, folder: str) -> list[bytes]:
        return list(self._journal(folder).values())

    def _journal(self, folder: str) -> dict[str, bytes]:
        """The lines by the names of their objects."""
        names = sorted(one["path"] for one in self._store.list(folder).collect())
        with ThreadPoolExecutor(_AT_ONCE) as several:
            lines = several.map(lambda name: bytes(self._store.get(name).bytes()), names)
            return dict(zip(names, lines, strict=True))

    def _forget(self, folder: str, lines: Collection[bytes]) -> None:
        gone = [name for name, line in self._journal(folder).items() if line in lines]
        if gone:
            self._store.delete(gone)


def _first_line(error: Exception) -> str:
    """What a library says went wrong, without what it quotes below."""
    return str(error).partition("\n")[0].rstrip(".")


def demand_key(key: str) -> None:
    """Let a key pass that is safe in the name of a file or an object.

    Raises:
        ValueError: it is not.
    """
    if _KEY.fullmatch(key) is None:
        raise ValueError("the key of an anchor is lower-case letters, digits, `.`, `_` and `-`, at most 100")


def demand_line(line: bytes) -> None:
    """Let a line of the journal pass.

    Raises:
        ValueError: it is empty or more than one.
    """
    if not line or b"\n" in line:
        raise ValueError("a line of the journal is not empty and has no line break")


def _make(folder: Path) -> None:
    """Make a folder, and those above it, for its owner alone. One that is there stays as it is."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make(folder.parent)
    with suppress(FileExistsError):  # of two that make it
        folder.mkdir(mode=0o700)
        sync(folder.parent)
    if not folder.is_dir():
        raise NotADirectoryError(None, "it is a file")


def _took(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(file: Path, raw: bytes, how: int) -> None:
    """Write all of it and wait until the disk has it."""
    with open(
        file, "wb", buffering=0, opener=lambda path, _: os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
    ) as to:
        rest = memoryview(raw)
        while rest:
            rest = rest[to.write(rest) :]
        os.fsync(to.fileno())


def _untear(file: Path) -> None:
    """Cut off the line that a writer left half-written when it died: the next one would be joined to it."""
    with suppress(FileNotFoundError), file.open("rb+") as journal:
        size = journal.seek(0, os.SEEK_END)
        journal.seek(max(0, size - 1))
        if journal.read() not in (b"", b"\n"):
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)
