"""The trainer's output: typed records, one JSON line each."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from app.domain.jobs.events import Done, Failed, Message, Record, Stopped
from app.domain.jobs.spec import RunSpec
from app.domain.jobs.states import Reason
from worker.trainer.runtime.failures import failed

Emit = Callable[[Record], None]
Keepalive = Callable[[str], None]  # called often during long work, with what is being done
Level = Literal["info", "warn", "error"]

SILENCE_SECONDS = 120.0  # a parent takes ten minutes of silence for a hang, and one step may take longer than that


class RecordStream:
    """Writes records to a file descriptor, whole lines only, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            while line:  # a pipe may take less than all of it
                line = line[os.write(self._descriptor, line) :]

    def pass_on(self) -> None:
        """Use descriptor 1 for records again, so that a program started from here on can emit some."""
        os.dup2(self._descriptor, 1)


def claim_standard_output() -> RecordStream:
    """Keep descriptor 1 for records alone: whatever a library prints from now on lands on standard error."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    return RecordStream(private)


class RecordWriter:
    """Emits the records of the run, and keeps the reason of its last one: nothing may follow that."""

    def __init__(self, emit: Emit, spec: RunSpec) -> None:
        self._emit = emit
        self._spec = spec
        self._emitted_at = time.monotonic()
        self.ending: Reason | None = None  # how the run ended; None while it goes on

    def __call__(self, record: Record) -> None:
        assert self.ending is None, f"{record.run_id} has ended, but emits {record}"
        self._emit(record)
        self._emitted_at = time.monotonic()
        if isinstance(record, Done):
            self.ending = Reason.DONE
        elif isinstance(record, Stopped | Failed):
            self.ending = record.reason

    def message(self, text: str, level: Level = "info", **data: Any) -> None:
        """Emit an event of the run."""
        self(Message(run_id=self._spec.run_id, level=level, message=text, data=data))

    def keepalive(self, doing: str) -> None:
        """Emit that the run is alive, but only if nothing was emitted for a while."""
        if time.monotonic() - self._emitted_at >= SILENCE_SECONDS:
            self.message(f"Still {doing}.")

    @contextmanager
    def fail_run_on_error(self) -> Iterator[None]:
        """End the run with a `Failed` record where an exception leaves the block; the traceback goes to the log."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            if self.ending is None:
                self(failed(error, self._spec))
