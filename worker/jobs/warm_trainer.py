"""The next job's trainer, started before there is a job: importing torch and transformers takes longer than the rest.

It has everything imported, no CUDA context, and waits for a work directory on its standard input; then it is the
trainer of that directory like any other. It is started by the slot's thread (the parent-death signal follows that) and
only when the slot is idle, so it never shares the cores or the memory with a job: it *is* the next job's process.

A spare holds the slot's trainer lock from its birth, as every trainer does. While it waits, the lock under which it was
started is kept here, too, and is the lock of the job that it gets. After each job the lock is let go and tried for
anew: a trainer that won't die keeps its slot, whether it was a spare or not.
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
from worker.jobs.trainer_process import LOG_NAME, TEMPORARY, Child, launch
from worker.node.locks import try_lock

OPTION = "--spare"  # in the place of a work directory
IDLE_SECONDS = 2.0  # without a job, before the next one is started: hints come in bursts
PATIENCE_SECONDS = 60.0  # before another is tried after one that died by itself
END_SECONDS = 10.0
TAIL_BYTES = 4000

log = get_logger(__name__)


class Spare:
    """At most one waiting trainer of one slot. Everything here is called by the slot's own thread."""

    def __init__(self, command: Sequence[str], lock_path: Path, threads: int | None, is_wanted: bool = True) -> None:
        self._command = (*command, OPTION)
        self._lock_path = lock_path
        self._threads = threads
        self._is_wanted = is_wanted
        self._process: subprocess.Popen[bytes] | None = None
        self._descriptor = -1  # of the lock that the waiting process holds
        self._has_job = False  # while `lock` lasts: whether a trainer was asked for
        self._not_before = time.monotonic() + IDLE_SECONDS

    @property
    def pid(self) -> int | None:
        """Of the one that waits."""
        return self._process.pid if self._process else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[int | None]:
        """Hold the slot's trainer lock while the block lasts; None when a trainer still has it."""
        self._forget_if_dead()
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
                self._let_go()

    def take(self, directory: Path, run_id: str) -> Child | None:
        """The waiting trainer, sent to `directory`; None where there is none. Inside `lock` only."""
        process, self._process, self._has_job = self._process, None, True
        if process is None:
            return None
        (directory / TEMPORARY).mkdir(exist_ok=True)
        try:
            assert process.stdin is not None
            process.stdin.write(Begin(work_directory=directory).model_dump_json().encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it died a moment ago: the job gets a trainer of its own
            _end(process)
            return None
        return Child(process, run_id, directory / LOG_NAME)

    def keep_one(self, lock: int) -> None:
        """The slot has nothing to do and holds `lock`: start a spare, unless one waits or a job has just ended."""
        if not self._is_wanted or self._process is not None or time.monotonic() < self._not_before:
            return
        directory = self._lock_path.with_suffix(".spare")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.dup(lock)  # the same lock: it is free when the last descriptor of it is closed
            self._process = launch(self._command, directory, lock, self._threads)
            log.info("spare trainer started", pid=self._process.pid)
        except OSError:
            log.exception("the spare trainer could not be started")
            self._not_before = time.monotonic() + PATIENCE_SECONDS
            self._let_go()

    def close(self) -> None:
        """End the waiting trainer and let its lock go."""
        if self._process is not None:
            _end(self._process)
            self._process = None
            self._let_go()

    def _forget_if_dead(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        log.warning("the spare trainer died", exit_code=self._process.returncode, log_tail=_tail(self._process))
        self._not_before = time.monotonic() + PATIENCE_SECONDS
        self.close()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _tail(process: subprocess.Popen[bytes]) -> str:
    """What a dead process has left in its error pipe; its own children may hold that open, so without waiting."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    return (process.stderr.read() or b"")[-TAIL_BYTES:].decode("utf-8", errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
