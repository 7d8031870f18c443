"""The trainer's process: its records, its commands, and the times by which a watchdog judges it; and the warm
trainer, which is started before there is a job.

Importing torch and transformers takes longer than the rest of a start. A warm trainer has imported everything, has no
CUDA context, and reads a work directory from its standard input; then it trains there as any other trainer. The
slot's thread starts it (the parent-death signal follows that thread), and only when the slot is idle: it never shares
cores or memory with a job, because it becomes the process of the next job.

A warm trainer holds the slot's trainer lock from its start, as every trainer does. While it waits, this process keeps
the lock's descriptor, too, and passes it to the job that gets the trainer. After each job the lock is released and
acquired again: a trainer that cannot be killed keeps its slot, whether it was a warm trainer or not.
"""

from __future__ import annotations

import contextlib
import os
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

from app.domain.jobs.events import AnyRecord, Begin, Command, Control, Done, Failed, Metric, Stopped, parse_record
from app.log import get_logger
from worker.jobs.child_program import LOG_NAME, TEMPORARY, ChildProgram, close_pipes, launch
from worker.node.slot import try_lock

TRAINER_COMMAND = (sys.executable, "-m", "worker.trainer")
MAX_RECORD_BYTES = 1 << 20
MAX_QUEUED_RECORDS = 10_000  # covers minutes of a PostgreSQL restart at 100 steps a second; beyond, the pipe fills
MAX_BAD_LINES_LOGGED = 10
STEP_WINDOW = 101  # steps of which the median duration is taken

log = get_logger(__name__)
WARM_OPTION = "--spare"  # takes the place of the work directory
IDLE_SECONDS = 2.0  # how long a slot is idle before a warm trainer is started: hints come in bursts
RESTART_DELAY_SECONDS = 60.0  # after a warm trainer that failed or died by itself
EXIT_TIMEOUT_SECONDS = 10.0
TAIL_BYTES = 4000


class TrainerProcess(ChildProgram):
    """One running trainer. Threads read its output into a queue, so that it never waits for PostgreSQL."""

    def __init__(self, process: subprocess.Popen[bytes], run_id: str, log_path: Path) -> None:
        self.run_id = run_id
        self.bad_lines = 0
        self.final: Done | Stopped | Failed | None = None  # the final record: after it the trainer only exits
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

    def send_command(self, command: Command) -> None:
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


class WarmTrainer:
    """At most one waiting trainer of one slot. Only the slot's own thread calls its methods."""

    def __init__(self, command: Sequence[str], lock_path: Path, threads: int | None, is_enabled: bool = True) -> None:
        self._command = (*command, WARM_OPTION)
        self._lock_path = lock_path
        self._threads = threads
        self._is_enabled = is_enabled
        self._process: subprocess.Popen[bytes] | None = None
        self._descriptor = -1  # of the lock that the waiting process holds; -1: none
        self._has_job = False  # whether `take` was called since `lock` was entered
        self._not_before = time.monotonic() + IDLE_SECONDS

    @property
    def pid(self) -> int | None:
        """The process id of the waiting trainer."""
        return self._process.pid if self._process else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[int | None]:
        """Hold the slot's trainer lock while the block lasts; yields None when another trainer still holds it."""
        self._close_if_dead()
        self._has_job = False
        try:
            if self._process is None:
                with try_lock(self._lock_path) as lock:
                    yield lock
            else:
                yield self._descriptor
        finally:
            if self._has_job:
                self._not_before = time.monotonic() + IDLE_SECONDS
                self._release_lock()

    def take(self, directory: Path, run_id: str) -> TrainerProcess | None:
        """Send the waiting trainer to `directory`; None if no trainer waits. Call it inside `lock` only."""
        process, self._process, self._has_job = self._process, None, True
        if process is None:
            return None
        (directory / TEMPORARY).mkdir(exist_ok=True)
        try:
            assert process.stdin is not None
            process.stdin.write(Begin(work_directory=directory).model_dump_json().encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it has died in the meantime: the supervisor starts another trainer
            _kill(process)
            return None
        return TrainerProcess(process, run_id, directory / LOG_NAME)

    def ensure(self, lock: int) -> None:
        """Start a warm trainer if none waits. Call it when the slot is idle and holds `lock`."""
        if not self._is_enabled or self._process is not None or time.monotonic() < self._not_before:
            return
        directory = self._lock_path.with_suffix(".spare")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.dup(lock)  # same lock: released when its last descriptor is closed
            self._process = launch(self._command, directory, lock, self._threads)
            log.info("warm trainer started", pid=self._process.pid)
        except OSError:
            log.exception("the warm trainer could not be started")
            self._not_before = time.monotonic() + RESTART_DELAY_SECONDS
            self._release_lock()

    def close(self) -> None:
        """Kill the waiting trainer and release its lock."""
        if self._process is not None:
            _kill(self._process)
            self._process = None
            self._release_lock()

    def _close_if_dead(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        exit_code, stderr_tail = self._process.returncode, _read_stderr_tail(self._process)
        log.warning("the warm trainer died", exit_code=exit_code, log_tail=stderr_tail)
        self._not_before = time.monotonic() + RESTART_DELAY_SECONDS
        self.close()

    def _release_lock(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_stderr_tail(process: subprocess.Popen[bytes]) -> str:
    """What a dead process left in its error pipe, without blocking: its children may still hold the pipe open."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    return (process.stderr.read() or b"")[-TAIL_BYTES:].decode("utf-8", errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(EXIT_TIMEOUT_SECONDS)
    close_pipes(process)
