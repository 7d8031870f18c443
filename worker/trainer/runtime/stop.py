"""Requests to stop the run. The loop checks them between steps; they never raise an exception."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable

from pydantic import ValidationError

from app.domain.jobs.events import Command, Control

# If there are several requests, a user's takes precedence over an operator's, and a cancel over all others.
STRONGEST_FIRST = (Command.CANCEL, Command.PAUSE, Command.DRAIN)


class StopRequests:
    """A set of requests that only grows, so signal handlers and threads may add to it."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._requested: set[Command] = set()

    def add(self, command: Command) -> None:
        self._requested.add(command)

    @property
    def strongest(self) -> Command | None:
        """Return the strongest request; None if there is none."""
        return next((command for command in STRONGEST_FIRST if command in self._requested), None)

    def handle_signals(self) -> None:
        """Drain on SIGTERM and SIGINT. Call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self.add(Command.DRAIN))

    def listen(self, lines: Iterable[bytes]) -> threading.Thread:
        """Read control lines in a background thread. The end of the input is not a request: a parent may close it."""
        thread = threading.Thread(target=self._read, args=(lines,), name="control", daemon=True)
        thread.start()
        return thread

    def _read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                control = Control.model_validate_json(line)
            except ValidationError as error:
                print(f"ignored an invalid control line: {error}", file=sys.stderr)
                continue
            if control.run_id == self._run_id:
                self.add(control.command)
            else:
                print(f"ignored {control.command} for the unknown run {control.run_id!r}", file=sys.stderr)
