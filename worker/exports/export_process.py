"""The process of an export program: start it with a clean environment, watch its progress, stop it. No torch here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from app.domain.artifacts.exports import ExportType
from app.domain.jobs.events import Command
from worker.jobs.trainer_log import TrainerLog
from worker.jobs.trainer_process import launch

# Programs by type; their arguments are the base's, the adapter's and the new directory, for GGUF also its weights.
COMMANDS: Mapping[ExportType, Sequence[str]] = {
    ExportType.MERGED: (sys.executable, "-m", "worker.trainer.merge"),
    ExportType.GGUF: (sys.executable, "-m", "worker.trainer.gguf"),
    ExportType.GGUF_ADAPTER: (sys.executable, "-m", "worker.trainer.gguf"),
}
LOG_NAME = "trainer.log"  # one of `workdir.LOG_NAMES`: kept for a week
EXIT_TIMEOUT_SECONDS = 30.0


class ExportProcess:
    """One running export program. It writes no records, so its progress is that it computes, reads or writes."""

    median_step_seconds = 0.0
    final_at: float | None = None

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self._process = process
        self._log = TrainerLog(log_path)
        self._work_done = 0.0
        self._progress_at = time.monotonic()
        self._threads = [
            threading.Thread(target=target, args=(pipe,), daemon=True)
            for target, pipe in ((_discard, process.stdout), (self._log.copy_from, process.stderr))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def silent_seconds(self) -> float:
        """Time since its last progress. The watchdog reads it a few times a second."""
        work_done = _read_work_done(self._process.pid)
        if work_done != self._work_done:
            self._work_done, self._progress_at = work_done, time.monotonic()
        return time.monotonic() - self._progress_at

    def send(self, command: Command) -> None:
        """Do nothing: an export program has no commands."""

    def drain(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        """Kill the process if it still runs, and release threads and pipes."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_SECONDS)
        for thread in self._threads:
            thread.join(EXIT_TIMEOUT_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def last_stderr_line(self) -> str:
        """The last line of standard error; after a refusal it is the reason."""
        return (self._log.tail().strip().split("\n") or [""])[-1]

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:  # the kernel may reuse the pid of a reaped process
                os.killpg(self._process.pid, number)


def start_export(
    command: Sequence[str], arguments: Sequence[str], directory: Path, lock_descriptor: int, threads: int | None
) -> ExportProcess:
    """Start a program in `directory` from a thread that outlives it: the parent-death signal follows the thread.

    Raises OSError.
    """
    process = launch([*command, *arguments], directory, lock_descriptor, threads)
    return ExportProcess(process, directory / LOG_NAME)


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
