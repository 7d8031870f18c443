"""The process of a program that makes an export, generates answers or grades them: its progress, its limits, and the
reason of its end."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from app.domain.jobs.events import Command
from app.domain.jobs.states import ExitCode
from app.log import get_logger
from worker.jobs.child_program import LOG_NAME, ChildProgram, launch
from worker.jobs.lease import LeaseKeeper
from worker.jobs.leased_rows import AttemptFailed, AttemptInterrupted
from worker.jobs.watchdog import Watchdog
from worker.node.device import oom_kill_count
from worker.node.resources import Resources

log = get_logger(__name__)


@dataclass(frozen=True)
class ProgramLimits:
    """Limits of a program whose work a client's input decides. The kernel refuses memory beyond `memory_bytes`."""

    memory_bytes: int
    seconds: float


class ProgramProcess(ChildProgram):
    """One running program. It writes no records, so its progress is that it computes, reads or writes."""

    median_step_seconds = 0.0
    final_at: float | None = None

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path, limits: ProgramLimits | None) -> None:
        self.deadline = time.monotonic() + limits.seconds if limits else math.inf
        self._work_done = 0.0
        self._progress_at = time.monotonic()
        super().__init__(process, log_path, _discard)

    @property
    def silent_seconds(self) -> float:
        """Time since its last progress. The watchdog reads it a few times a second."""
        work_done = _read_work_done(self._process.pid)
        if work_done != self._work_done:
            self._work_done, self._progress_at = work_done, time.monotonic()
        return time.monotonic() - self._progress_at

    def send(self, command: Command) -> None:
        """Do nothing: the program has no commands."""


def start_program(
    command: Sequence[str],
    directory: Path,
    lock_descriptor: int,
    threads: int | None,
    limits: ProgramLimits | None = None,
) -> ProgramProcess:
    """Start a program in `directory` from a thread that outlives it: the parent-death signal follows the thread.

    Raises OSError.
    """
    process = launch(command, directory, lock_descriptor, threads)
    if limits is not None and sys.platform == "linux":
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    return ProgramProcess(process, directory / LOG_NAME, limits)


def supervise(
    program: ProgramProcess,
    keeper: LeaseKeeper,
    resources: Resources,
    name: str,
    on_wait: Callable[[], None] = lambda: None,
) -> int:
    """Wait for the program and stop it when it must stop; return its exit code. `on_wait` is called now and then.

    `name` is its name in messages. Raises AttemptFailed if it stalled or took too much memory or time,
    AttemptInterrupted, FencedError.
    """
    is_late = False
    kills_before = oom_kill_count()
    try:
        with Watchdog(program, keeper, resources.stop, resources.settings) as watchdog:
            while (exit_code := program.wait(resources.settings.watch_seconds)) is None:
                on_wait()
                if time.monotonic() > program.deadline and not is_late:
                    is_late = True
                    program.kill()
    finally:
        program.close()
    keeper.check()
    if exit_code != ExitCode.DONE:
        log.warning(f"{name} ended", exit_code=exit_code, stderr_line=program.last_stderr_line())
        if watchdog.drain_requested_at is not None:
            raise AttemptInterrupted
        if is_late:
            text = f"The {name} reached its limit of time and was stopped; fewer rows and shorter texts take less"
            raise AttemptFailed("server_error", text, is_final=True)
        if watchdog.stalled:
            raise AttemptFailed("server_error", f"The {name} made no progress for too long and was stopped")
        if exit_code == -signal.SIGKILL and oom_kill_count() > kills_before:
            raise AttemptFailed("out_of_memory", f"The kernel killed the {name} because the machine ran out of memory")
    return exit_code


def unexpected_exit(name: str, exit_code: int) -> AttemptFailed:
    how = f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
    return AttemptFailed("server_error", f"The {name} {how}")


def _read_work_done(pid: int) -> float:
    """CPU seconds plus bytes read and written: a sum that changes while the process or a child of it does anything."""
    try:
        process = psutil.Process(pid)
        return sum(map(_work_of, [process, *process.children(recursive=True)]))
    except (psutil.Error, OSError, AttributeError):  # it has exited, or the system has no such counters
        return time.monotonic()


def _work_of(process: psutil.Process) -> float:
    times, transferred = process.cpu_times(), process.io_counters()
    return float(times.user + times.system + transferred.read_chars + transferred.write_chars)


def _discard(pipe: IO[bytes]) -> None:
    with contextlib.suppress(ValueError):  # the pipe was closed during the read
        while pipe.read(1 << 16):
            pass
