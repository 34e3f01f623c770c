"""PostgreSQL: the pool, the named queries, the migrations. No SQL text stands in any other Python file.

A room writes `READ = many("decisions", "read_subject", Row)` and awaits `READ(connection, …)`. Each statement's text
is constant, because asyncpg prepares once per text. A test prepares every query and compares its columns with `Row`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any, Generic, TypeAlias, TypeVar

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from consent_service import data
from consent_service.errors import SetupError, Unavailable

Row = TypeVar("Row", bound=msgspec.Struct)
Head = TypeVar("Head", bound=msgspec.Struct)
Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"
Pool: TypeAlias = "asyncpg.Pool[Any]"

LOST = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError,
        asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError,
        asyncpg.TooManyConnectionsError, asyncpg.LockNotAvailableError)  # fmt: skip
"""What is raised when the database cannot be asked; everything else it raises is an answer."""

COLLISION = asyncpg.UniqueViolationError
"""Somebody else made the same row a moment ago."""


class Query:
    """One named statement and the columns that it gives."""

    all: list[Query] = []  # noqa: RUF012 -- the one registry, for the test that prepares them all

    def __init__(self, room: str, name: str, *rows: type[msgspec.Struct]) -> None:
        self.name = f"{room}.{name}"
        self.sql = _queries(room)[name]
        self.columns = [field.name for row in rows for field in msgspec.structs.fields(row)]
        Query.all.append(self)


class many(Query, Generic[Row]):  # noqa: N801 -- reads as a verb where a query is declared
    """A query for any number of rows."""

    def __init__(self, room: str, name: str, row: type[Row]) -> None:
        super().__init__(room, name, row)
        self.row = row

    async def __call__(self, connection: Connection, *args: Any) -> list[Row]:
        """Run it."""
        row = self.row
        return [row(*record) for record in await connection.fetch(self.sql, *args)]


class one(Query, Generic[Row]):  # noqa: N801
    """A query for one row or none."""

    def __init__(self, room: str, name: str, row: type[Row]) -> None:
        super().__init__(room, name, row)
        self.row = row

    async def __call__(self, connection: Connection, *args: Any) -> Row | None:
        """Run it."""
        record = await connection.fetchrow(self.sql, *args)
        return None if record is None else self.row(*record)


class headed(Query, Generic[Head, Row]):  # noqa: N801
    """A query whose rows each begin with the same head; what follows is all null where the head stands alone."""

    def __init__(self, room: str, name: str, head: type[Head], row: type[Row]) -> None:
        super().__init__(room, name, head, row)
        self.head = head
        self.row = row
        self.width = len(msgspec.structs.fields(head))

    async def __call__(self, connection: Connection, *args: Any) -> tuple[Head, list[Row]] | None:
        """Run it; None where there is no head."""
        records = await connection.fetch(self.sql, *args)
        if not records:
            return None
        width, row = self.width, self.row
        head = self.head(*records[0][:width])
        return head, [row(*record[width:]) for record in records if record[width] is not None]


class execute(Query):  # noqa: N801
    """A statement without an answer."""

    async def __call__(self, connection: Connection, *args: Any) -> None:
        """Run it."""
        # fetch, not execute: it uses the prepared statement and tells of any error alike.
        await connection.fetch(self.sql, *args)


@cache
def _queries(room: str) -> dict[str, str]:
    """The `-- name: x` blocks of `sql/queries/<room>.sql`."""
    text = (data.folder("sql") / "queries" / f"{room}.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)[^\n]*\n", text, flags=re.MULTILINE)
    return {name: sql.strip().rstrip(";") for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


async def connect(url: str, *, size: int = 4) -> Pool:
    """A pool of at most `size` connections; the first is made at once, so that a wrong address is told at start.

    Raises:
        SetupError: the database cannot be reached or refuses the log-in.
    """
    settings = {
        "application_name": "consent",
        "jit": "off",
        # Every statement looks rows up by key, so one plan fits all values; planning anew costs more than running.
        # The plan may be made while tables are empty, and must not read them whole when they have grown.
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "timezone": "UTC",
        "statement_timeout": "10s",
        # Whoever stops while holding a ledger's head must not hold up everybody else.
        "idle_in_transaction_session_timeout": "1s",
        "lock_timeout": "5s",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "2",
    }
    try:
        return await asyncpg.create_pool(
            url, min_size=1, max_size=size, timeout=5, command_timeout=10, max_inactive_connection_lifetime=0,
            max_cached_statement_lifetime=0, server_settings=settings, reset=_keep,
        )  # fmt: skip
    except (*LOST, asyncpg.PostgresError, ValueError) as error:
        said = (
            "its address cannot be read" if isinstance(error, ValueError) else error
        )  # which would quote the password
        raise SetupError(
            f"The database cannot be used: {said}. Check DATABASE_URL (postgresql://user:password@host:port/database)."
        ) from error


PING = execute("db", "ping")


async def _keep(_connection: Connection) -> None:
    """Nothing to reset: no statement of ours leaves a session changed, and asking costs two thirds of a check."""


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool for a few statements; raises Unavailable when the database cannot be asked."""
    with told():
        async with pool.acquire(timeout=5) as acquired:
            yield acquired


@contextmanager
def told() -> Iterator[None]:
    """Turns a lost database into the domain error that callers understand."""
    try:
        yield
    except LOST as error:
        raise Unavailable from error


_FIRST = """CREATE TABLE IF NOT EXISTS migration (
    version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"""


async def migrate(url: str) -> list[str]:
    """Bring the database forward; returns the names of the migrations applied now. Safe to run twice at once.

    Raises:
        SetupError: the database is unreachable, or newer than this code.
    """
    async with await connect(url, size=1) as pool, connection(pool) as session:
        await _make_migration_table(session)
        async with session.transaction():
            await session.execute("LOCK TABLE migration IN ACCESS EXCLUSIVE MODE")
            done = {row[0] for row in await session.fetch("SELECT version FROM migration")}
            known = migrations()
            if done - known.keys():
                raise SetupError(
                    f"The database was migrated by a newer version (to {max(done)}, this one knows {max(known)}). "
                    "Install that version or use another database."
                )
            new = {version: known[version] for version in sorted(known.keys() - done)}
            for version, (name, sql) in new.items():
                await session.execute(sql)
                await session.execute("INSERT INTO migration (version, name) VALUES ($1, $2)", version, name)
            return [name for name, _ in new.values()]


async def _make_migration_table(session: Connection) -> None:
    """Two starters at once: IF NOT EXISTS looks before the other has committed, and then collides."""
    for attempt in range(5):
        try:
            await session.execute(_FIRST)
        except (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError):
            await asyncio.sleep(0.05 * 2**attempt)
        else:
            return
    raise SetupError("The table of migrations could not be made. Start again.")


def migrations() -> dict[int, tuple[str, str]]:
    """Every migration of this code: version → (name, SQL), in order."""
    files = sorted((data.folder("sql") / "migrations").glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return {int(file.name[:4]): (file.stem, file.read_text(encoding="utf-8")) for file in files}
