"""SQL as a room: queries prepare and match their Structs, migrations give schema.sql, keys begin with log_id."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from conftest import Tenant

from consent_service import app, bench, cli, data, db, errors, tenants
from consent_service.ledger import lock_head

ROOMS = (app, bench, cli, tenants)
"""Imported, so that every room has declared its queries."""

EXEMPT = {"migration", "deployment", "tenant"}
"""Tables about the deployment itself: which migrations ran, and the reference table that maps slugs to ledgers."""
BENCH = {"bench.plain_insert", "bench.plain_table"}
"""Run against a table that only the benchmark's database has."""


@asynccontextmanager
async def fresh_database(url: str) -> AsyncIterator[str]:
    """An empty database beside the one of the session; its owner may make databases where tests run."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    maker = await asyncpg.connect(as_maker(url))
    try:
        await maker.execute(f'CREATE DATABASE "{name}" OWNER {await maker.fetchval("SELECT current_user")}')
        yield urlunsplit(urlsplit(as_maker(url))._replace(path=f"/{name}"))
        await maker.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await maker.close()


def as_maker(url: str) -> str:
    """The embedded server's superuser instead of the service's ordinary role; other servers as they are given."""
    return url.replace("postgresql://consent@/", "postgresql://postgres@/")


async def catalogue(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Everything that a schema consists of, in a form that two databases can be compared by."""
    connection = await asyncpg.connect(url)
    try:
        found = {}
        for name, sql in CATALOGUE.items():
            found[name] = [tuple(row) for row in await connection.fetch(sql)]
        return found
    finally:
        await connection.close()


CATALOGUE = {
    "columns": """SELECT table_name, column_name, ordinal_position, data_type, udt_name, is_nullable, column_default,
                         collation_name
                  FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 3""",
    "constraints": """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
                      WHERE connamespace = 'public'::regnamespace AND contype <> 'n' ORDER BY 1, 2""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "options": """SELECT relname, reloptions, relrowsecurity, relforcerowsecurity FROM pg_class
                  WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1""",
    "policies": "SELECT tablename, policyname, roles::text, cmd, qual, with_check FROM pg_policies ORDER BY 1, 2",
    "grants": """SELECT table_name, grantee, privilege_type FROM information_schema.role_table_grants
                 WHERE table_schema = 'public' ORDER BY 1, 2, 3""",
}


async def test_migrations_give_the_schema(database_url: str) -> None:
    async with fresh_database(database_url) as migrated, fresh_database(database_url) as written:
        await db.migrate(migrated)
        connection = await asyncpg.connect(written)
        await connection.execute((data.folder("sql") / "schema.sql").read_text())
        await connection.close()
        assert await catalogue(migrated) == await catalogue(written)


async def test_migrating_twice_applies_nothing_the_second_time(database_url: str) -> None:
    async with fresh_database(database_url) as url:
        assert await db.migrate(url) == [name for name, _ in db.migrations().values()]
        assert await db.migrate(url) == []


async def test_six_starters_at_once_do_not_collide(database_url: str) -> None:
    async with fresh_database(database_url) as url:
        applied = await asyncio.gather(*(db.migrate(url) for _ in range(6)))
    assert sum(map(len, applied)) == len(db.migrations())


async def test_a_newer_database_is_refused(database_url: str) -> None:
    async with fresh_database(database_url) as url:
        await db.migrate(url)
        connection = await asyncpg.connect(url)
        await connection.execute("INSERT INTO migration (version, name) VALUES (9999, '9999_from_the_future')")
        await connection.close()
        with pytest.raises(errors.SetupError, match="newer version"):
            await db.migrate(url)


async def test_a_database_from_before_the_first_release_is_refused(database_url: str) -> None:
    async with fresh_database(database_url) as url:
        await db.migrate(url)
        connection = await asyncpg.connect(url)
        await connection.execute("UPDATE migration SET name = '0001_core'")
        await connection.close()
        with pytest.raises(errors.SetupError, match="before the first release"):
            await db.migrate(url)


async def test_whoever_may_not_change_the_schema_may_serve(database_url: str) -> None:
    """A log-in that is nothing but a member of the service's role."""
    name = f"visitor_{uuid.uuid4().hex[:8]}"
    async with fresh_database(database_url) as url:
        await db.migrate(url)
        maker = await asyncpg.connect(url)
        await maker.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'for tests only'; GRANT consent_app TO {name}")
        try:
            parts = urlsplit(url)
            visitor = urlunsplit(parts._replace(netloc=f"{name}:for%20tests%20only@{parts.netloc.rpartition('@')[2]}"))
            assert await db.migrate(visitor) == []
            async with await db.connect(visitor, size=1) as pool, db.connection(pool) as connection:
                await tenants.ensure(connection, "visited")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute("DELETE FROM event")
        finally:
            await maker.execute(f"DROP ROLE {name}")
            await maker.close()


def test_migrations_are_numbered_without_gaps() -> None:
    assert list(db.migrations()) == list(range(1, len(db.migrations()) + 1))


@pytest.mark.parametrize("query", [q for q in db.Query.all if q.name not in BENCH], ids=lambda query: query.name)
async def test_query_prepares_and_gives_its_columns(query: db.Query, services: app.Services) -> None:
    async with services.pool.acquire() as connection:
        attributes = (await connection.prepare(query.sql)).get_attributes()
    assert [attribute.name for attribute in attributes] == query.columns


def test_every_named_block_is_used() -> None:
    folder = data.folder("sql") / "queries"
    named = {
        f"{file.stem}.{name}"
        for file in folder.glob("*.sql")
        for name in re.findall(r"^-- name: (\w+)", file.read_text(), re.MULTILINE)
    }
    assert named == {query.name for query in db.Query.all}


async def test_every_key_begins_with_log_id(services: app.Services) -> None:
    async with services.pool.acquire() as connection:
        keys = await connection.fetch(
            """SELECT c.conrelid::regclass::text AS tab, a.attname
               FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
               WHERE c.contype IN ('p', 'u') AND c.connamespace = 'public'::regnamespace"""
        )
        indexes = await connection.fetch(
            """SELECT i.indrelid::regclass::text AS tab, a.attname
               FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               JOIN pg_class t ON t.oid = i.indrelid
               WHERE i.indisunique AND t.relnamespace = 'public'::regnamespace"""
        )
    wrong = {(row["tab"], row["attname"]) for row in [*keys, *indexes] if row["attname"] != "log_id"}
    assert {table for table, _ in wrong} <= EXEMPT
    assert len(keys) > 10, "the query found the keys"


def test_queries_bind_log_id() -> None:
    """A statement that touches a tenant's table names its ledger."""
    tables = re.findall(r"CREATE TABLE (\w+)", (data.folder("sql") / "schema.sql").read_text())
    owned = [table for table in tables if table not in EXEMPT]
    unbound = [
        query.name
        for query in db.Query.all
        if any(re.search(rf"\b(FROM|JOIN|INTO|UPDATE)\s+{table}\b", query.sql) for table in owned)
        and "log_id" not in query.sql
    ]
    assert unbound == []


def test_no_sql_stands_outside_its_room() -> None:
    package = Path(db.__file__).parent
    statement = re.compile(r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM)\b")
    outside = {str(file.relative_to(package)) for file in package.rglob("*.py") if statement.search(file.read_text())}
    assert outside <= {"db.py", "embedded.py"}, "migrations' bookkeeping and the making of a cluster are their own"


async def test_a_stopped_holder_of_the_head_does_not_hold_the_ledger(tenant: Tenant, services: app.Services) -> None:
    """Whoever locks the head and then stands still loses it within about a second."""
    holder = await services.pool.acquire()
    try:
        await db.act_for(holder, tenant.log_id)
        await holder.execute("BEGIN")
        await lock_head(holder, tenant.log_id)
        async with asyncio.timeout(4), db.connection(services.pool, tenant.log_id) as other, other.transaction():
            await lock_head(other, tenant.log_id)
    finally:
        with suppress(asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError):
            await services.pool.release(holder)  # the server may have ended it, or be about to
