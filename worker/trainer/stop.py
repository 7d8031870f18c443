"""What the trainer is told: a reason per run, which the loop asks for at every step boundary. Never an exception."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable

from pydantic import ValidationError

from app.domain.events import Command, Control

# When several were asked for, the user's word outranks the operator's, and a cancel outranks everything.
STRONGEST_FIRST = (Command.CANCEL, Command.PAUSE, Command.DRAIN)


class Stops:
    """Requests to stop, by run. Safe from a signal handler and from any thread: it only ever adds to a set."""

    def __init__(self, run_ids: Iterable[str]) -> None:
        self._run_ids = frozenset(run_ids)
        self._asked: set[tuple[str, Command]] = set()

    def ask(self, run_id: str, command: Command) -> None:
        self._asked.add((run_id, command))

    def drain_all(self) -> None:
        for run_id in self._run_ids:
            self.ask(run_id, Command.DRAIN)

    def wanted(self, run_id: str) -> Command | None:
        """The strongest request for this run, or None: go on."""
        return next((command for command in STRONGEST_FIRST if (run_id, command) in self._asked), None)

    def obey_signals(self) -> None:
        """SIGTERM and SIGINT drain every run; to be called in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self.drain_all())

    def listen(self, lines: Iterable[bytes]) -> threading.Thread:
        """Read control lines in the background. The end of the input is not a request: a parent may close it."""
        thread = threading.Thread(target=self._read, args=(lines,), name="control", daemon=True)
        thread.start()
        return thread

    def _read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._obey(line)

    def _obey(self, line: bytes) -> None:
        try:
            control = Control.model_validate_json(line)
        except ValidationError as error:
            print(f"ignored a control line that is not one: {error}", file=sys.stderr)
            return
        if control.run_id in self._run_ids:
            self.ask(control.run_id, control.command)
        else:
            print(f"ignored {control.command} for the unknown run {control.run_id!r}", file=sys.stderr)
