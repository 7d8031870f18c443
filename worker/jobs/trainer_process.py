"""The trainer's process as its parent sees it: started clean, heard line by line, asked to stop, made to stop."""

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
from worker.jobs.trainer_log import TrainerLog

TRAINER = (sys.executable, "-m", "worker.trainer")
MAX_RECORD_BYTES = 1 << 20
MAX_WAITING_RECORDS = 10_000  # minutes of a restarting PostgreSQL at a hundred steps a second; beyond, the pipe fills
BAD_LINES_LOGGED = 10
LOG_NAME = "trainer.log"
TEMPORARY = "tmp"  # of a work directory; the trainer of a spare knows the name, too
STEPS_REMEMBERED = 101

# Of our own environment the trainer gets what names the machine, never a URL, a key or a password.
PASSED_ON = frozenset({"PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "USER"})
PASSED_ON_PREFIXES = (
    "LC_", "CUDA", "NVIDIA_", "NCCL_", "PYTORCH_", "TORCH", "TRITON_", "OMP_", "MKL_", "KMP_", "GOMP_", "BNB_",
)  # fmt: skip

log = get_logger(__name__)


class Child:
    """One running trainer. Threads read its output all the time, so that it never waits for PostgreSQL."""

    def __init__(self, process: subprocess.Popen[bytes], run_id: str, log_path: Path) -> None:
        self.run_id = run_id
        self.bad_lines = 0
        self.final: Done | Stopped | Failed | None = None  # the last word; after it the trainer has only to exit
        self.final_at: float | None = None
        self._process = process
        self._heard_at = time.monotonic()  # not CLOCK_BOOTTIME: while the machine sleeps, the trainer does too
        self._is_held_up = False  # by us: records wait to be written
        self._is_given_up = threading.Event()
        self._step_seconds: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._last_step_at: float | None = None
        self._records: queue.Queue[AnyRecord | None] = queue.Queue(MAX_WAITING_RECORDS)
        self._log = TrainerLog(log_path)
        self._threads = [
            threading.Thread(target=target, args=(pipe,), name=f"{name}-{run_id}", daemon=True)
            for name, target, pipe in (
                ("records", self._hear, process.stdout),
                ("stderr", self._log.keep, process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def records(self) -> Iterator[AnyRecord]:
        """Every record in order, until the trainer has closed its output."""
        while (record := self._records.get()) is not None:
            yield record

    @property
    def silent_seconds(self) -> float:
        return 0.0 if self._is_held_up else time.monotonic() - self._heard_at

    @property
    def median_step_seconds(self) -> float:
        return statistics.median(self._step_seconds or [0.0])

    def tell(self, command: Command) -> None:
        """One control line. A trainer that has closed its input is about to end anyway."""
        line = Control(command=command, run_id=self.run_id).model_dump_json().encode() + b"\n"
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def drain(self) -> None:
        """SIGTERM: snapshot at the next step boundary, then exit 75. Before its handler is set, it just ends."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self, timeout_seconds: float) -> int | None:
        """The exit code, negative for a signal; None if the process is still there."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def close(self, timeout_seconds: float = 30.0) -> int | None:
        """Make sure it is gone, whatever happened, and give everything back. The exit code."""
        self._is_given_up.set()
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
        """To the whole process group, of which the trainer is the leader."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:  # reaped: the number may be somebody else's by now
                os.killpg(self._process.pid, number)

    def _hear(self, pipe: IO[bytes]) -> None:
        try:
            while line := pipe.readline(MAX_RECORD_BYTES + 1):
                record = self._parse(line, pipe)
                if record is not None:
                    self._note_time(record)
                    self._put(record)
        except (OSError, ValueError):  # closed under us
            log.debug("record pipe closed", run=self.run_id)
        finally:
            self._put(None)

    def _parse(self, line: bytes, pipe: IO[bytes]) -> AnyRecord | None:
        """What a child prints is untrusted: a line that is no record of this run is counted, never fatal."""
        if not line.endswith(b"\n") and len(line) > MAX_RECORD_BYTES:
            while (rest := pipe.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
            self._refuse(line, f"longer than {MAX_RECORD_BYTES} bytes")
            return None
        try:
            record = parse_record(line)
        except ValidationError as error:
            self._refuse(line, f"{error.error_count()} problems, the first: {error.errors()[0]['msg']}")
            return None
        if record.run_id != self.run_id:
            self._refuse(line, f"of another run, {record.run_id[:80]}")
            return None
        return record

    def _refuse(self, line: bytes, why: str) -> None:
        self.bad_lines += 1
        if self.bad_lines <= BAD_LINES_LOGGED:
            log.warning("bad line from the trainer", run=self.run_id, why=why, line=repr(line[:200]))

    def _note_time(self, record: AnyRecord) -> None:
        now = self._heard_at = time.monotonic()
        if isinstance(record, Metric):
            if self._last_step_at is not None:
                self._step_seconds.append(now - self._last_step_at)
            self._last_step_at = now
        if isinstance(record, Done | Stopped | Failed):
            self.final, self.final_at = record, now

    def _put(self, record: AnyRecord | None) -> None:
        while not self._is_given_up.is_set():
            try:
                self._records.put(record, timeout=0.5)
                break
            except queue.Full:
                self._is_held_up = True
        if self._is_held_up:
            self._is_held_up, self._heard_at = False, time.monotonic()


def start_trainer(
    command: Sequence[str], directory: Path, run_id: str, lock_descriptor: int, threads: int | None = None
) -> Child:
    """Start the trainer on `directory`/spec.json.

    From a thread that lives as long as the child: the parent-death signal follows the parent *thread*. The lock's
    descriptor is inherited: the kernel frees the lock when the last of its holders is really gone.
    """
    process = launch([*command, str(directory)], directory, lock_descriptor, threads)
    return Child(process, run_id, directory / LOG_NAME)


def launch(
    command: Sequence[str], directory: Path, lock_descriptor: int, threads: int | None
) -> subprocess.Popen[bytes]:
    """A process with pipes, a group and an environment of its own, in `directory`. Raises OSError."""
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


def clean_environment(ours: Mapping[str, str], temporary: Path, threads: int | None) -> dict[str, str]:
    passed_on = {
        name: value for name, value in ours.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    if threads is not None:
        passed_on |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return passed_on | {
        "TUNERY_PARENT_PID": str(os.getpid()),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # the work directory holds a user's files: nothing is ever imported from there
        "PYTHONPATH": str(Path(worker.__file__).resolve().parents[2]),
        "TMPDIR": str(temporary),
    }
