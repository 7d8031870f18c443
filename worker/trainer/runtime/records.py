"""The output of the trainer: typed records, one JSON line each."""

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
# Called often during long work, with what is being done, such as "reading the training file". Emits an event only after
# KEEPALIVE_SECONDS without another record.
Keepalive = Callable[[str], None]
Level = Literal["info", "warn", "error"]

KEEPALIVE_SECONDS = 120.0  # one step may take longer than the watchdog waits for a record


class RecordStream:
    """Writes records to a file descriptor as complete lines, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            while line:  # a write to a pipe may be partial
                line = line[os.write(self._descriptor, line) :]

    def restore_standard_output(self) -> None:
        """Make descriptor 1 the record stream again, so that child processes can emit records."""
        os.dup2(self._descriptor, 1)


def claim_standard_output() -> RecordStream:
    """Reserve standard output for records: from now on, what libraries print goes to standard error."""
    sys.stdout.flush()
    record_descriptor = os.dup(1)
    os.dup2(2, 1)
    return RecordStream(record_descriptor)


class RecordWriter:
    """Emits the records of the run. No record may follow the one that ends the run."""

    def __init__(self, emit: Emit, spec: RunSpec) -> None:
        self._emit = emit
        self._spec = spec
        self._emitted_at = time.monotonic()
        self.ending: Reason | None = None  # None until the run has ended

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
        """Emit an event that the run is alive, if nothing was emitted for KEEPALIVE_SECONDS."""
        if time.monotonic() - self._emitted_at >= KEEPALIVE_SECONDS:
            self.message(f"Still {doing}.")

    @contextmanager
    def fail_run_on_error(self) -> Iterator[None]:
        """Turn an exception in the block into a `Failed` record, which ends the run; log the traceback."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            if self.ending is None:
                self(failed(error, self._spec))
