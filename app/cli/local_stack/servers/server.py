"""What our PostgreSQL and our Valkey have in common: one directory, one lock, one child."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from app.cli.local_stack.processes import Child, exclusive


class LocalServer:
    name: str
    stop_signal: signal.Signals
    stop_seconds: float

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.log = self.directory / f"{self.name}.log"
        self._held = contextlib.ExitStack()
        self._server: Child | None = None

    @property
    def pid(self) -> int | None:
        return None if self._server is None else self._server.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._server is None else self._server.exit_code

    def stop(self) -> None:
        self.ask()
        self.wait(self.stop_seconds)
        self.kill()

    def ask(self) -> None:
        if self._server is not None:
            self._server.ask(self.stop_signal)

    def wait(self, seconds: float) -> bool:
        return self._server is None or self._server.wait(seconds)

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server = None
        self._held.close()

    def _lock(self) -> None:
        self._held.enter_context(
            exclusive(
                self.directory / "lock",
                f"Another {self.name} of Tunery runs in {self.directory}. Stop it, or choose another directory.",
            )
        )
