"""What the trainer says: typed records, one JSON line each, to whom it does not know."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.domain.events import Done, Failed, Message, Record, Stopped
from app.domain.spec import RunSpec
from app.domain.states import Reason
from worker.trainer.failures import failed

Emit = Callable[[Record], None]
Pulse = Callable[[str], None]  # called all the time during long work with what is being done

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
        """Descriptor 1 is for records again: a program that is started from here on may say some."""
        os.dup2(self._descriptor, 1)


def claim_standard_output() -> RecordStream:
    """Keep descriptor 1 for records alone: whatever a library prints from now on lands on standard error."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    return RecordStream(private)


class Ledger:
    """Passes records on and remembers how each run ended: with one last record, and nothing after it."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._said_at = time.monotonic()
        self.endings: dict[str, Reason] = {}

    def __call__(self, record: Record) -> None:
        assert record.run_id not in self.endings, f"{record.run_id} has ended, but says {record}"
        self._emit(record)
        self._said_at = time.monotonic()
        if isinstance(record, Done):
            self.endings[record.run_id] = Reason.DONE
        elif isinstance(record, Stopped | Failed):
            self.endings[record.run_id] = record.reason

    def pulse(self, run_id: str) -> Pulse:
        """Says that this run is alive, but only where nothing else has been said for a while."""

        def beat(doing: str) -> None:
            if time.monotonic() - self._said_at >= SILENCE_SECONDS:
                self(Message(run_id=run_id, message=f"Still {doing}."))

        return beat

    @contextmanager
    def blaming(self, run: RunSpec) -> Iterator[None]:
        """What goes wrong in here ends this run and no other: a sentence in its record, the traceback in the log."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self(failed(error, run))
