"""The trainer's process: its control input and the requests to stop the run, its parent, its working time.

The loop checks requests between steps; they never raise an exception.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import IO

from pydantic import ValidationError

from app.domain.jobs.events import Command, Control
from app.domain.jobs.states import ExitCode
from app.system import host
from worker.trainer import PROCESS_STARTED_AT

_work_started_at: float | None = None  # by time.monotonic(); only in a warm trainer
# If there are several requests, a user's takes precedence over an operator's, and a cancel over all others.
STRONGEST_FIRST = (Command.CANCEL, Command.PAUSE, Command.DRAIN)


def control_lines() -> IO[bytes]:
    """Return standard input, unbuffered, because Python cannot exit while a thread reads a buffered one.

    A closed standard input counts as empty.
    """
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # gets the lowest free descriptor, which is 0
    return os.fdopen(os.dup(0), "rb", buffering=0)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: an orphaned trainer would occupy the GPU.

    The signal works from this call on, so the process exits here if the parent is dead already.
    """
    parent_pid = os.environ.get(host.PARENT_PID_VARIABLE)
    if parent_pid is None:
        return
    if not host.die_with_parent(int(parent_pid)):
        print(f"the parent process {parent_pid} has ended", file=sys.stderr)
        sys.exit(ExitCode.INTERNAL)


def start_working_time() -> None:
    """Start to count `working_seconds`: the time in which a warm trainer waits does not belong to the job."""
    global _work_started_at
    _work_started_at = time.monotonic()


def working_seconds() -> float:
    """Return the seconds since the process, or the work of a warm trainer, started."""
    return time.monotonic() - (_work_started_at or PROCESS_STARTED_AT)


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
