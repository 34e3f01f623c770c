"""What tests share: one real PostgreSQL for the session, the whole application on it, and a new tenant for each test.

Tenants never share a row, so tests need no cleaning up, run in any order, and cost no database of their own.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import httpx
import msgspec
import pytest
import uvicorn

from consent_service import app, auth, db, demo, devices, keys, policies, server, tenants
from consent_service.policies import Policy, store
from consent_service.settings import Settings

pytest.register_assert_rewrite("demos")

from demos import copied, demo_data, new_place  # noqa: E402 -- what it asserts is to be told as in tests

SECRET = "a secret for tests only, thirty-two characters and more"
NOTICE = {"id": "web-banner", "version": 1, "language": "en"}


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a third of the time tests wait for processes to start and to end."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data=str(tmp_path_factory.mktemp("data")),
        database_url=os.environ.get("CONSENT_TEST_DATABASE_URL"),
        postgres_binaries=os.environ.get("CONSENT_TEST_POSTGRES_BINARIES"),
        secret=SECRET,
        port=0,
    )


@pytest.fixture(scope="session")
def database_url(settings: Settings) -> Iterator[str]:
    with server.database(settings) as (url, _):
        yield url


@pytest.fixture(scope="session")
async def services(settings: Settings, database_url: str) -> AsyncIterator[app.Services]:
    await db.migrate(database_url)
    async with app.services(settings, database_url) as made:
        yield made


@pytest.fixture(scope="session")
def demo_policy() -> Policy:
    """Trusting nobody: many tenants have it here, and an issuer and audience lead to one."""
    policy = policies.load(policies.find("demo"))
    return msgspec.structs.replace(policy, tenant=msgspec.structs.replace(policy.tenant, issuers=()))


class Tenant(NamedTuple):
    """A tenant of one test, and the means to call the application as its keys."""

    log_id: int
    slug: str
    keys: dict[str, str]
    http: httpx.AsyncClient
    services: app.Services

    async def post(self, path: str, body: Any, key: str = "service", **headers: str) -> httpx.Response:
        """POST JSON with one of the tenant's keys; bytes are sent as they are."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = {"Authorization": f"Bearer {self.keys[key]}", "Content-Type": "application/json", **headers}
        return await self.http.post(path, content=content, headers=sent)

    def device(self) -> devices.Device:
        """A minted device of this tenant."""
        return self.services.devices.mint(self.log_id)

    async def record(self, *records: dict[str, Any], subject: dict[str, str], **more: Any) -> httpx.Response:
        """Record decisions with everything that a grant needs."""
        body = {"id": uuid.uuid4().hex, "subject": subject, "records": list(records), "method": "form"}
        return await self.post("/v1/consents", {**body, "notice": NOTICE, **more})

    async def check(self, subject: dict[str, str], purpose: str, **more: Any) -> dict[str, Any]:
        """The answer to a check."""
        response = await self.post("/v1/check", {"subject": subject, "purpose": purpose, **more})
        assert response.status_code == 200, response.text
        return response.json()


class Tenants:
    """Makes tenants."""

    def __init__(self, services: app.Services, http: httpx.AsyncClient) -> None:
        self._services = services
        self._http = http

    async def make(self, policy: Policy, credentials: dict[str, auth.Credential] | None = None) -> Tenant:
        """A tenant with `policy` in force and the demo's keys, or those given (their log_id is filled in)."""
        slug = f"t-{uuid.uuid4().hex[:12]}"
        async with db.connection(self._services.pool) as connection:
            log_id = await tenants.ensure(connection, slug)
            await tenants.apply_policy(connection, log_id, store.Policies(), policy)
            wanted = credentials or {
                name: auth.Credential(0, name, kind, name, scopes, frozenset(), None)
                for name, (kind, scopes) in demo.KEYS.items()
            }
            made = {
                name: await keys.add_key(connection, SECRET.encode(), msgspec.structs.replace(key, log_id=log_id))
                for name, key in wanted.items()
            }
        return Tenant(log_id, slug, made, self._http, self._services)


@pytest.fixture(scope="session")
async def make_tenant(services: app.Services) -> AsyncIterator[Tenants]:
    transport = httpx.ASGITransport(app=app.build(services), raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Tenants(services, http)


@pytest.fixture
async def tenant(make_tenant: Tenants, demo_policy: Policy) -> Tenant:
    return await make_tenant.make(demo_policy)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A data folder in which a demo has run."""
    with demo_data() as data:
        yield data


@pytest.fixture
def place(template: Path) -> Iterator[Path]:
    """A folder with a copy of the template as `data`."""
    with new_place() as folder:
        copied(template, folder / "data")
        yield folder


@pytest.fixture
def person() -> dict[str, str]:
    """A subject that nobody else uses."""
    return {"type": "login", "id": uuid.uuid4().hex}


def external(folder: str) -> Path:
    """A folder of external cases; absent: skip with that reason, in CI a failure."""
    root = Path(os.environ.get("CONSENT_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))
    found = root / folder
    if not found.is_dir():
        reason = f"external cases are not here: set CONSENT_VECTORS to a folder with {folder}/"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


Serve: TypeAlias = Callable[[Any], AbstractAsyncContextManager[str]]


@asynccontextmanager
async def _serving(application: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(
        application, port=0, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    async with asyncio.timeout(20):
        while not server.started:  # noqa: ASYNC110 -- it tells by this flag alone
            await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Gives the address of an ASGI application while it is served."""
    return _serving
