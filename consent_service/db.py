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
from typing import Any, Generic, TypeAlias, TypeVar, cast

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
        asyncpg.TooManyConnectionsError, asyncpg.LockNotAvailableError,
        asyncpg.ReadOnlySQLTransactionError)  # fmt: skip
"""What is raised when the database cannot be asked; everything else it raises is an answer."""

COLLISION = asyncpg.UniqueViolationError
"""Somebody else made the same row a moment ago."""

APP = "consent_app"
"""The role that the service works as: it owns nothing, and row-level security shows it one tenant at a time."""
ERASE = "consent_erase"
"""The role that may remove what was recorded of a person, by transaction."""


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


class headed(Query, Generic[Head]):  # noqa: N801
    """A query whose rows each begin with the same head, and go on with one or more Structs.

    A Struct whose first column is null is not there: None stands in its place.
    """

    def __init__(self, room: str, name: str, head: type[Head], *rows: type[msgspec.Struct]) -> None:
        super().__init__(room, name, head, *rows)
        self.head = head
        ends = [len(msgspec.structs.fields(head))]
        for row in rows:
            ends.append(ends[-1] + len(msgspec.structs.fields(row)))
        self.width = ends[0]
        self.parts = list(zip(rows, ends, ends[1:], strict=False))

    async def __call__(self, connection: Connection, *args: Any) -> tuple[Head, list[tuple[Any, ...]]] | None:
        """Run it; None where there is no head."""
        records = await connection.fetch(self.sql, *args)
        if not records:
            return None
        parts = self.parts
        return self.head(*records[0][: self.width]), [
            tuple([None if record[start] is None else row(*record[start:end]) for row, start, end in parts])
            for record in records
        ]


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


class Session(asyncpg.Connection):
    """A connection that acts for one tenant at a time; it stays that tenant's until it is told otherwise."""

    log_id: int | None = None
    """The tenant as the server knows it."""

    async def act_for(self, log_id: int) -> None:
        """From now on see and touch this tenant's rows only. Not within a transaction, whose end might take it back."""
        if self.log_id != log_id:
            self.log_id = None
            await ACT_FOR(self, str(log_id))
            self.log_id = log_id


async def connect(url: str, *, size: int = 4, role: str | None = APP) -> Pool:
    """A pool of at most `size` connections; the first is made at once, so that a wrong address is told at start.

    `role` is who the statements run as; None: whoever logs in.

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
        **({} if role is None else {"role": role}),
    }
    try:
        return await asyncpg.create_pool(
            url, min_size=1, max_size=size, timeout=5, command_timeout=10, max_inactive_connection_lifetime=0,
            max_cached_statement_lifetime=0, server_settings=settings, reset=_keep, connection_class=Session,
        )  # fmt: skip
    except (*LOST, asyncpg.PostgresError, ValueError, OverflowError) as error:
        # What is wrong with an address would be told with the password in it.
        said = "its address cannot be read" if isinstance(error, (ValueError, OverflowError)) else error
        raise SetupError(
            f"The database cannot be used: {said}. Check DATABASE_URL (postgresql://user:password@host:port/database)."
        ) from error


PING = execute("db", "ping")
ACT_FOR = execute("db", "act_for")


async def _keep(_connection: Connection) -> None:
    """Nothing to reset: no statement of ours leaves a session changed, and asking costs two thirds of a check."""


@asynccontextmanager
async def connection(pool: Pool, log_id: int | None = None) -> AsyncIterator[Connection]:
    """A connection of the pool for a few statements, acting for the tenant `log_id`.

    Without a tenant only the tables about the deployment itself may be touched.

    Raises:
        Unavailable: the database cannot be asked.
    """
    with told():
        async with pool.acquire(timeout=5) as acquired:
            if log_id is not None:
                await act_for(acquired, log_id)
            yield acquired


async def act_for(connection: Connection, log_id: int) -> None:
    """Let a connection act for a tenant from now on; see `Session`."""
    await cast("Session", connection).act_for(log_id)


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
    async with await connect(url, size=1, role=None) as pool, connection(pool) as session:
        if not _missing(await _applied(session)):  # whoever may not change the schema may still serve
            return []
        await _make_roles(session)
        await _make_migration_table(session)
        async with session.transaction():
            await session.execute("LOCK TABLE migration IN ACCESS EXCLUSIVE MODE")
            new = _missing(await _applied(session))
            for version, (name, sql) in new.items():
                await session.execute(sql)
                await session.execute("INSERT INTO migration (version, name) VALUES ($1, $2)", version, name)
            return [name for name, _ in new.values()]


async def _applied(session: Connection) -> dict[int, str]:
    """The migrations that were applied, by version; none where there is no table of them."""
    if await session.fetchval("SELECT to_regclass('migration')") is None:
        return {}
    return dict(await session.fetch("SELECT version, name FROM migration"))


def _missing(done: dict[int, str]) -> dict[int, tuple[str, str]]:
    """The migrations that are still to be applied.

    Raises:
        SetupError: the database is not one of this version's past.
    """
    known = migrations()
    if done.keys() - known.keys():
        raise SetupError(
            f"The database was migrated by a newer version (to {max(done)}, this one knows {max(known)}). "
            "Install that version or use another database."
        )
    if strange := [name for version, name in done.items() if known[version][0] != name]:
        raise SetupError(
            f"The database was made by a version before the first release ({strange[0]}), whose data cannot "
            "be taken over. Use another database or another folder (--data)."
        )
    return {version: known[version] for version in sorted(known.keys() - done)}


async def _make_roles(session: Connection) -> None:
    """The roles of the service, and the right to work as them. They belong to the server, migrations to one database.

    Raises:
        SetupError: we may not make it; says what an administrator has to run.
    """
    user = await session.fetchval("SELECT current_user")
    try:
        for _ in range(5):
            try:
                for role in (APP, ERASE):
                    if not await session.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
                        await session.execute(f"CREATE ROLE {role} NOLOGIN")
                    if not await session.fetchval("SELECT pg_has_role($1, 'MEMBER')", role):
                        await session.execute(f"GRANT {role} TO CURRENT_USER")
            except (asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError, asyncpg.InternalServerError):
                await asyncio.sleep(0.05)  # another starter makes it at this moment
            else:
                return
    except asyncpg.InsufficientPrivilegeError:
        raise SetupError(
            f'The roles {APP} and {ERASE} are missing, or "{user}" may not work as them. An administrator of the '
            f"database server runs once: CREATE ROLE {APP} NOLOGIN; CREATE ROLE {ERASE} NOLOGIN; "
            f'GRANT {APP}, {ERASE} TO "{user}";'
        ) from None
    raise SetupError(f"The roles {APP} and {ERASE} could not be made. Start again.")


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
