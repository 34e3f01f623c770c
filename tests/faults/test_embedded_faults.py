"""What the embedded server survives. Each fault has a control which shows that it bites where it is not handled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demos import alive, copied, postmaster, processes, within

from consent_service import embedded
from consent_service.embedded import Embedded
from consent_service.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(embedded.__file__).parent.parent

# A user of the server in a process of its own: says the URL and the postmaster, then does what it is told line by line.
USER = """
import sys
from pathlib import Path
from consent_service import embedded
exec(sys.argv[2])
user = embedded.Embedded(Path(sys.argv[1]))
url = user.start()
print(url, user._live().pid, flush=True)
for line in sys.stdin:
    print(getattr(user, line.strip())(), flush=True)
"""
NO_DEATH_SIGNAL = """
spawn = embedded.Embedded._spawn
embedded.Embedded._spawn = lambda self, log, lock, death, *rest: spawn(self, log, lock, 0, *rest)
"""
NO_LOCKS = "embedded._lock = lambda fd, how: True"


class User:
    """A process that uses the server under `data`."""

    def __init__(self, data: Path, patch: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data), patch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        )

    def started(self) -> tuple[str, int]:
        """The URL and the number of the postmaster; nothing and 0 where it could not start."""
        said = self.process.stdout.readline().split()
        return (said[0], int(said[1])) if said else ("", 0)

    def does(self, what: str) -> str:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    data = Path(tempfile.mkdtemp(prefix="cs-"), "data")
    data.parent.chmod(0o755)
    server = Embedded(data)
    url = server.start()
    ask(url, "CREATE TABLE kept AS SELECT 7 AS a")
    server.stop()
    yield data
    shutil.rmtree(data.parent)


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cs-"))
    folder.chmod(0o755)
    yield folder
    for pid in processes(folder):  # only where a test has failed
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


@pytest.fixture
def data(place: Path, template: Path) -> Iterator[Path]:
    """A data folder with a cluster whose table `kept` holds a 7."""
    yield copied(template, place / "data")
    assert within(10, lambda: not processes(place))


@pytest.fixture
def user(data: Path, server: Embedded) -> Iterator[Callable[..., User]]:
    # After `server`, so that these are gone before it stops as the last user.
    assert server
    made: list[User] = []

    def make(folder: Path = data, patch: str = "") -> User:
        made.append(User(folder, patch))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def server(data: Path) -> Iterator[Embedded]:
    """A user of the server in this process."""
    one = Embedded(data)
    yield one
    one.stop()


def psql(url: str, sql: str) -> subprocess.Popen[str]:
    program = Embedded(Path())._binaries / "psql"
    return subprocess.Popen(
        [program, "-XAt", "-c", sql, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ask(url: str, sql: str) -> str:
    with psql(url, sql) as asked:
        said, complaint = asked.communicate(timeout=30)
    assert asked.returncode == 0, complaint
    return said.strip()


def by_hand(server: Embedded) -> str:
    """Starts PostgreSQL as it is, with none of our care; what it complains of. A start that works is a failed test."""
    order = embedded._Order(server._identity, os.getpid(), command=server._command(server._pg))
    done = subprocess.run(
        embedded._launcher(order),
        check=False,
        capture_output=True,
        text=True,
        env=embedded._environment(),
        cwd="/",
        timeout=10,
    )
    assert done.returncode != 0
    return done.stderr


# Six at once


def test_six_that_start_at_once_share_one_server(place):
    users = [User(place / "new") for _ in range(6)]
    try:
        started = [one.started() for one in users]
        assert len(set(started)) == 1
        assert started[0][1] == postmaster(place / "new")
        # The starter takes the server with it where it leaves early, so the test lets it leave last.
        starter = next(one for one in users if one.process.pid == parent(started[0][1]))
        for one in users:
            if one is not starter:
                assert one.does("stop") == "None"
                assert alive(started[0][1])
        starter.does("stop")
        assert processes(place) == []
    finally:
        for one in users:
            one.kill()


def test_control_six_without_locks_do_not(place):
    users = [User(place / "new", NO_LOCKS) for _ in range(6)]
    try:
        started = {one.started() for one in users}
        assert len(started) > 1 or started == {("", 0)}
    finally:
        for one in users:
            one.kill()
        assert within(10, lambda: not processes(place))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# The starter is killed


def test_the_server_goes_with_its_killed_starter_and_the_next_start_finds_the_data(user, data):
    starter = user()
    url, pid = starter.started()
    ask(url, "INSERT INTO kept VALUES (8)")
    starter.kill()
    assert within(5, lambda: not alive(pid))
    assert within(5, lambda: not processes(data))
    second, _ = user().started()
    assert ask(second, "SELECT sum(a) FROM kept") == "15"


def test_a_start_right_after_the_kill_waits_for_the_old_server(user):
    starter = user()
    _, pid = starter.started()
    starter.kill()
    url, new = user().started()
    assert new != pid
    assert ask(url, "SELECT a FROM kept") == "7"


def test_control_without_the_death_signal_the_server_is_an_orphan_which_the_next_user_takes_over(user, server, data):
    starter = user(patch=NO_DEATH_SIGNAL)
    url, pid = starter.started()
    starter.kill()
    assert not within(1, lambda: not alive(pid))
    assert server.start() == url
    assert postmaster(data) == pid
    server.stop()
    assert processes(data) == []


@pytest.mark.parametrize("how", ["killed", "leaves"])
def test_the_others_bring_the_server_back_when_its_starter_is_gone(user, server, how):
    starter = user()
    url, pid = starter.started()
    assert server.start() == url
    if how == "leaves":
        starter.does("stop")
        assert alive(pid)
    starter.kill()
    assert within(5, server.ensure)
    assert not alive(pid)
    assert ask(url, "SELECT a FROM kept") == "7"


def test_a_starter_that_is_killed_at_any_moment_leaves_a_folder_that_starts(place):
    for moment in (0.3, 0.6, 0.8, 1.0, 1.3):
        victim = User(place / "new")
        time.sleep(moment)
        victim.kill()
    survivor = User(place / "new")
    try:
        assert ask(survivor.started()[0], "SELECT 1") == "1"
        assert not (place / "new" / "pg.new").exists()
        survivor.does("stop")
        assert processes(place) == []
    finally:
        survivor.kill()


@pytest.mark.parametrize("step", ["global/pg_control", "base/5"])
def test_a_kill_while_the_cluster_is_made_leaves_none_and_the_next_start_makes_it(place, step):
    data = place / "new"
    victim = User(data)
    assert within(10, (data / "pg.new" / step).exists)
    victim.kill()
    assert not (data / "pg").exists()
    assert within(5, lambda: not processes(place))

    half = copied(data, place / "half")
    (half / "pg.new").rename(half / "pg")  # the control: in its place it starts without its database, or not at all
    broken = Embedded(half)
    with pytest.raises((SetupError, AssertionError)):
        ask(broken.start(), "SELECT 1")
    broken.stop()

    server = Embedded(data)
    assert ask(server.start(), "SELECT current_user") == "consent"
    server.stop()


def test_a_launcher_whose_parent_is_already_dead_starts_nothing(tmp_path):
    def launch(parent: int) -> bool:
        mark = tmp_path / str(parent)
        order = embedded._Order(embedded._Identity(), parent, command=("/bin/sh", "-c", f"echo > {mark}"))
        subprocess.run(embedded._launcher(order), check=True, env=embedded._environment(), cwd="/")
        return mark.exists()

    assert not launch(2**22)
    assert launch(os.getpid())  # the control


# The postmaster is killed


def test_ensure_brings_a_killed_postmaster_back_with_what_was_committed(server, data):
    url = server.start()
    ask(url, "INSERT INTO kept VALUES (8)")
    pid = postmaster(data)
    os.kill(pid, signal.SIGKILL)
    assert within(5, lambda: not alive(pid))
    with pytest.raises(AssertionError):  # the control: it is gone
        ask(url, "SELECT 1")
    assert server.ensure() is True
    assert server.ensure() is False
    assert ask(url, "SELECT sum(a) FROM kept") == "15"


def test_ensure_gets_past_a_backend_that_is_too_busy_to_notice(server, data, monkeypatch):
    monkeypatch.setattr(embedded, "STRAY_LIMIT", 0.5)
    url = server.start()
    pid = postmaster(data)
    with psql(url, "DO 'BEGIN LOOP END LOOP; END'") as busy:
        assert within(
            5, lambda: "loop" in ask(url, "SELECT query FROM pg_stat_activity WHERE state = 'active'").lower()
        )
        os.kill(pid, signal.SIGKILL)
        assert within(5, lambda: not alive(pid))
        time.sleep(0.3)
        assert processes(data)
        (data / "pg" / "postmaster.pid").unlink()
        assert "pre-existing shared memory block" in by_hand(server)  # the control
        assert server.ensure() is True
        busy.communicate()
    assert ask(url, "SELECT a FROM kept") == "7"


def test_everything_killed_at_once_is_made_good(user, data):
    starter = user()
    url, _ = starter.started()
    ask(url, "INSERT INTO kept VALUES (8)")
    for pid in [*processes(data), starter.process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    starter.kill()
    assert ask(user().started()[0], "SELECT sum(a) FROM kept") == "15"


def test_two_users_that_find_it_dead_start_it_once(user, server):
    url = server.start()
    other = user()
    _, pid = other.started()
    os.kill(pid, signal.SIGKILL)
    assert within(5, lambda: not alive(pid))
    other.process.stdin.write("ensure\n")
    other.process.stdin.flush()
    mine = server.ensure()
    theirs = other.process.stdout.readline().strip() == "True"
    assert mine != theirs
    assert ask(url, "SELECT a FROM kept") == "7"


def test_a_number_that_another_process_bears_now_is_not_the_postmaster(server, data):
    server.start()
    pid_file = data / "pg" / "postmaster.pid"
    stale = pid_file.read_text()
    os.kill(postmaster(data), signal.SIGKILL)
    assert within(5, lambda: not processes(data))
    owner = data.stat().st_uid
    who = owner if owner != os.geteuid() else None
    with subprocess.Popen(["/bin/sleep", "60"], user=who) as stranger:
        try:
            pid_file.write_text(stale.replace(stale.split()[0], str(stranger.pid), 1))
            assert "already exists" in by_hand(server)  # the control
            assert server.ensure() is True
            assert postmaster(data) != stranger.pid
            server.stop()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_server_on_its_way_out_is_waited_for(server, data):
    url = server.start()
    pid = postmaster(data)
    with psql(url, "SELECT pg_sleep(1)") as last:
        assert within(
            5, lambda: "pg_sleep" in ask(url, "SELECT query FROM pg_stat_activity WHERE pid != pg_backend_pid()")
        )
        os.kill(pid, signal.SIGTERM)  # ends once its last client has gone
        assert within(5, lambda: "stopping" in (data / "pg" / "postmaster.pid").read_text())
        assert "already exists" in by_hand(server)  # the control
        assert server.ensure() is True
        assert last.poll() is not None
        last.communicate()
    assert postmaster(data) != pid
    assert ask(url, "SELECT a FROM kept") == "7"


def test_a_server_that_never_gets_to_its_end_is_helped(server, data, monkeypatch):
    monkeypatch.setattr(embedded, "STOP_LIMITS", (0.5, 10.0, 10.0))
    url = server.start()
    pid = postmaster(data)
    with psql(url, "SELECT pg_sleep(60)") as client:
        assert within(
            5, lambda: "pg_sleep" in ask(url, "SELECT query FROM pg_stat_activity WHERE pid != pg_backend_pid()")
        )
        os.kill(pid, signal.SIGTERM)  # waits for its client, who stays
        assert not within(1, lambda: not alive(pid))  # the control
        assert server.ensure() is True
        client.communicate()
    assert ask(url, "SELECT a FROM kept") == "7"


def kill_a_part(data: Path) -> None:
    part = next(pid for pid in processes(data) if parent(pid) == postmaster(data))
    os.kill(part, signal.SIGKILL)


def test_ensure_brings_the_server_back_after_a_part_of_it_was_killed(server, data):
    url = server.start()
    kill_a_part(data)
    assert within(5, server.ensure)
    assert ask(url, "SELECT a FROM kept") == "7"


def test_a_stop_amid_a_crash_is_quick(server, data, monkeypatch):
    monkeypatch.setattr(embedded, "STOP_LIMITS", (1.0, 10.0, 10.0))

    def slowest() -> float:
        took = []
        for _ in range(2):
            server.start()
            kill_a_part(data)
            time.sleep(0.01)
            began = time.monotonic()
            server.stop()
            took.append(time.monotonic() - began)
        return max(took)

    assert slowest() < 1
    command = Embedded._command
    monkeypatch.setattr(Embedded, "_command", lambda *which: (*command(*which), "-c", "restart_after_crash=on"))
    assert slowest() > 1  # the control: PostgreSQL's own recovery does not hear the shutdown


def test_a_server_that_ignores_the_polite_signals_is_stopped_all_the_same(server, data, monkeypatch):
    monkeypatch.setattr(embedded, "STOP_LIMITS", (0.3, 0.3, 10.0))
    server.start()
    for pid in processes(data):
        os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert processes(data) == []
    assert ask(server.start(), "SELECT a FROM kept") == "7"


def test_a_start_that_hangs_is_not_waited_for_for_ever(server, data, monkeypatch):
    monkeypatch.setattr(embedded, "START_LIMIT", 0.3)
    other = Embedded(data)
    with other._starting(), pytest.raises(SetupError, match="too long"):
        server.start()
