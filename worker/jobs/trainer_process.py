"""The trainer's process: its records, its commands, and the times by which a watchdog judges it."""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from app.domain.jobs.events import AnyRecord, Command, Control, Done, Failed, Metric, Stopped, parse_record
from app.log import get_logger
from worker.jobs.child_program import LOG_NAME, ChildProgram, launch

TRAINER_COMMAND = (sys.executable, "-m", "worker.trainer")
MAX_RECORD_BYTES = 1 << 20
MAX_QUEUED_RECORDS = 10_000  # covers minutes of a PostgreSQL restart at 100 steps a second; beyond, the pipe fills
MAX_BAD_LINES_LOGGED = 10
STEP_WINDOW = 101  # steps of which the median duration is taken

log = get_logger(__name__)


class TrainerProcess(ChildProgram):
    """One running trainer. Threads read its output into a queue, so that it never waits for PostgreSQL."""

    def __init__(self, process: subprocess.Popen[bytes], run_id: str, log_path: Path) -> None:
        self.run_id = run_id
        self.bad_lines = 0
        self.final: Done | Stopped | Failed | None = None  # the final record: after it the trainer only exits
        self.final_at: float | None = None
        self._last_record_at = time.monotonic()  # not CLOCK_BOOTTIME: the trainer, too, stops while the machine sleeps
        self._is_queue_full = False  # the trainer waits for this process, so its silence does not count
        self._closed = threading.Event()
        self._step_seconds: deque[float] = deque(maxlen=STEP_WINDOW)
        self._last_step_at: float | None = None
        self._records: queue.Queue[AnyRecord | None] = queue.Queue(MAX_QUEUED_RECORDS)
        super().__init__(process, log_path, self._read_records)

    def records(self) -> Iterator[AnyRecord]:
        """Yield every record in order, until the trainer closes its output."""
        while (record := self._records.get()) is not None:
            yield record

    @property
    def silent_seconds(self) -> float:
        """Time since the last record; 0 while the queue is full."""
        return 0.0 if self._is_queue_full else time.monotonic() - self._last_record_at

    @property
    def median_step_seconds(self) -> float:
        return statistics.median(self._step_seconds or [0.0])

    def send(self, command: Command) -> None:
        self.send_line(Control(command=command, run_id=self.run_id).model_dump_json())

    def close(self, timeout_seconds: float = 30.0) -> int | None:
        self._closed.set()
        return super().close(timeout_seconds)

    def _read_records(self, pipe: IO[bytes]) -> None:
        try:
            while line := pipe.readline(MAX_RECORD_BYTES + 1):
                record = self._parse(line, pipe)
                if record is not None:
                    self._record_time(record)
                    self._enqueue(record)
        except (OSError, ValueError):  # `close` closed the pipe while this thread was reading
            log.debug("record pipe closed", run=self.run_id)
        finally:
            self._enqueue(None)

    def _parse(self, line: bytes, pipe: IO[bytes]) -> AnyRecord | None:
        """Parse an untrusted line. A line that is no record of this run is counted and logged, never fatal."""
        if not line.endswith(b"\n") and len(line) > MAX_RECORD_BYTES:
            while (rest := pipe.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
            self._reject(line, f"longer than {MAX_RECORD_BYTES} bytes")
            return None
        try:
            record = parse_record(line)
        except ValidationError as error:
            self._reject(line, f"{error.error_count()} errors, the first: {error.errors()[0]['msg']}")
            return None
        if record.run_id != self.run_id:
            self._reject(line, f"it names another run, {record.run_id[:80]}")
            return None
        return record

    def _reject(self, line: bytes, why: str) -> None:
        self.bad_lines += 1
        if self.bad_lines <= MAX_BAD_LINES_LOGGED:
            log.warning("bad line from the trainer", run=self.run_id, why=why, line=repr(line[:200]))

    def _record_time(self, record: AnyRecord) -> None:
        now = self._last_record_at = time.monotonic()
        if isinstance(record, Metric):
            if self._last_step_at is not None:
                self._step_seconds.append(now - self._last_step_at)
            self._last_step_at = now
        if isinstance(record, Done | Stopped | Failed):
            self.final, self.final_at = record, now

    def _enqueue(self, record: AnyRecord | None) -> None:
        while not self._closed.is_set():
            try:
                self._records.put(record, timeout=0.5)
                break
            except queue.Full:
                self._is_queue_full = True
        if self._is_queue_full:
            self._is_queue_full, self._last_record_at = False, time.monotonic()


def start_trainer(
    command: Sequence[str], directory: Path, run_id: str, lock_descriptor: int, threads: int | None = None
) -> TrainerProcess:
    """Start the trainer with `directory`/spec.json. Raises OSError.

    Call it from a thread that outlives the child: the parent-death signal follows the parent *thread*. The child
    inherits the lock's descriptor: the kernel releases the lock when the last process that holds it has exited.
    """
    process = launch([*command, str(directory)], directory, lock_descriptor, threads)
    return TrainerProcess(process, run_id, directory / LOG_NAME)
