"""The warm trainer: a trainer process that is started before there is a job.

Importing torch and transformers takes longer than the rest of a start. The process has imported everything, has no CUDA
context, and reads a work directory from its standard input; then it trains there as any other trainer. The slot's
thread starts it (the parent-death signal follows that thread), and only when the slot is idle: it never shares cores or
memory with a job, because it becomes the process of the next job.

A warm trainer holds the slot's trainer lock from its start, as every trainer does. While it waits, this process keeps
the lock's descriptor, too, and passes it to the job that gets the trainer. After each job the lock is released and
acquired again: a trainer that cannot be killed keeps its slot, whether it was a warm trainer or not.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.domain.jobs.events import Begin
from app.log import get_logger
from worker.jobs.child_program import LOG_NAME, TEMPORARY, launch
from worker.jobs.trainer_process import TrainerProcess
from worker.node.slot import try_lock

WARM_OPTION = "--spare"  # takes the place of the work directory
IDLE_SECONDS = 2.0  # how long a slot is idle before a warm trainer is started: hints come in bursts
RESTART_DELAY_SECONDS = 60.0  # after a warm trainer that failed or died by itself
EXIT_TIMEOUT_SECONDS = 10.0
TAIL_BYTES = 4000

log = get_logger(__name__)


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
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
