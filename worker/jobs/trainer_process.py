"""The trainer's process: start it with a clean environment, read its records, send commands, drain, kill."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError

import worker
from app.domain.jobs.events import AnyRecord, Command, Control, Done, Failed, Metric, Stopped, parse_record
from app.log import get_logger
from app.system.parent_death import PARENT_PID_VARIABLE
from worker.jobs.trainer_log import TrainerLog

TRAINER_COMMAND = (sys.executable, "-m", "worker.trainer")
MAX_RECORD_BYTES = 1 << 20
MAX_QUEUED_RECORDS = 10_000  # covers minutes of a PostgreSQL restart at 100 steps a second; beyond, the pipe fills
MAX_BAD_LINES_LOGGED = 10
LOG_NAME = "trainer.log"
TEMPORARY = "tmp"  # the temporary directory in a work directory; a warm trainer uses the same name
STEP_WINDOW = 101  # steps of which the median duration is taken

# The trainer inherits the variables that describe the machine, never a URL, a key or a password.
INHERITED_VARIABLES = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "USER"}
)
INHERITED_PREFIXES = (
    "LC_",
    "CUDA",
    "NVIDIA_",
    "NCCL_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "BNB_",
)

log = get_logger(__name__)


class TrainerProcess:
    """One running trainer. Threads read its output into a queue, so that it never waits for PostgreSQL."""

    def __init__(self, process: subprocess.Popen[bytes], run_id: str, log_path: Path) -> None:
        self.run_id = run_id
        self.bad_lines = 0
        self.final: Done | Stopped | Failed | None = None  # the final record: after it the trainer only exits
        self.final_at: float | None = None
        self._process = process
        self._last_record_at = time.monotonic()  # not CLOCK_BOOTTIME: the trainer, too, stops while the machine sleeps
        self._is_queue_full = False  # the trainer waits for this process, so its silence does not count
        self._closed = threading.Event()
        self._step_seconds: deque[float] = deque(maxlen=STEP_WINDOW)
        self._last_step_at: float | None = None
        self._records: queue.Queue[AnyRecord | None] = queue.Queue(MAX_QUEUED_RECORDS)
        self._log = TrainerLog(log_path)
        self._threads = [
            threading.Thread(target=target, args=(pipe,), name=f"{name}-{run_id}", daemon=True)
            for name, target, pipe in (
                ("records", self._read_records, process.stdout),
                ("stderr", self._log.copy_from, process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

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
        """Write one control line. A trainer that has closed its input is about to exit: the error is ignored."""
        line = Control(command=command, run_id=self.run_id).model_dump_json().encode() + b"\n"
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def drain(self) -> None:
        """Send SIGTERM: the trainer writes a snapshot at the next step boundary and exits with 75.

        Before it has installed its handler, the signal kills it.
        """
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the exit code, negative for a signal; None if the process still runs after the timeout."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def close(self, timeout_seconds: float = 30.0) -> int | None:
        """Kill the process if it still runs, release threads and pipes, and return the exit code."""
        self._closed.set()
        self.kill()
        exit_code = self.wait(timeout_seconds)
        for thread in self._threads:
            thread.join(timeout_seconds)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return exit_code

    def log_tail(self) -> str:
        return self._log.tail()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, whose leader is the trainer."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:  # the kernel may reuse the pid of a reaped process
                os.killpg(self._process.pid, number)

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


def launch(
    command: Sequence[str], directory: Path, lock_descriptor: int, threads: int | None
) -> subprocess.Popen[bytes]:
    """Start a process in `directory` with its own pipes, session and environment. Raises OSError."""
    (directory / TEMPORARY).mkdir(exist_ok=True)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=directory,
        env=clean_environment(os.environ, directory / TEMPORARY, threads),
        start_new_session=True,
        pass_fds=(lock_descriptor,),
    )


def clean_environment(parent: Mapping[str, str], temporary: Path, threads: int | None) -> dict[str, str]:
    """The environment of a child: the inherited variables of `parent`, and what the child needs."""
    environment = {
        name: value
        for name, value in parent.items()
        if name in INHERITED_VARIABLES or name.startswith(INHERITED_PREFIXES)
    }
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return environment | {
        PARENT_PID_VARIABLE: str(os.getpid()),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # the work directory holds a user's files: import nothing from there
        "PYTHONPATH": str(Path(worker.__file__).resolve().parents[2]),
        "TMPDIR": str(temporary),
    }
