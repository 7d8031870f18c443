"""Base class of the local servers: one directory, one lock, one child process."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from app.cli.local_stack.processes import ChildProcess, exclusive_lock


class LocalServer:
    name: str
    stop_signal: signal.Signals
    stop_seconds: float

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.log = self.directory / f"{self.name}.log"
        self._resources = contextlib.ExitStack()
        self._server: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        return None if self._server is None else self._server.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._server is None else self._server.exit_code

    def stop(self) -> None:
        self.request_stop()
        self.wait(self.stop_seconds)
        self.kill()

    def request_stop(self) -> None:
        if self._server is not None:
            self._server.request_stop(self.stop_signal)

    def wait(self, seconds: float) -> bool:
        return self._server is None or self._server.wait(seconds)

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server = None
        self._resources.close()

    def _lock(self) -> None:
        self._resources.enter_context(
            exclusive_lock(
                self.directory / "lock",
                f"Another {self.name} of Tunery runs in {self.directory}. Stop it, or choose another directory.",
            )
        )
