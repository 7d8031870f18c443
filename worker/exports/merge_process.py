"""The merge program's process as its parent sees it: started clean, watched, made to stop; never torch in here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

from app.domain.jobs.events import Command
from worker.jobs.trainer_log import TrainerLog
from worker.jobs.trainer_process import launch

MERGER = (sys.executable, "-m", "worker.trainer.merge")
LOG_NAME = "trainer.log"  # as workdir knows it: kept for a week
CLOSE_SECONDS = 30.0


class Merge:
    """One running merge. It says nothing before its end, so a sign of life is that it computes, reads or writes."""

    median_step_seconds = 0.0
    final_at: float | None = None

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self._process = process
        self._log = TrainerLog(log_path)
        self._busy = 0.0
        self._busy_at = time.monotonic()
        self._threads = [
            threading.Thread(target=target, args=(pipe,), daemon=True)
            for target, pipe in ((_drop, process.stdout), (self._log.keep, process.stderr))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def silent_seconds(self) -> float:
        """Since it last got any further. Asked for a few times a second by its guard."""
        busy = _work_of(self._process.pid)
        if busy != self._busy:
            self._busy, self._busy_at = busy, time.monotonic()
        return time.monotonic() - self._busy_at

    def tell(self, command: Command) -> None:
        """It takes no commands: it is stopped, or left alone."""

    def drain(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        """Make sure it is gone, whatever happened."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def last_words(self) -> str:
        """What it said on standard error in the end: of a refusal, the sentence."""
        return (self._log.tail().strip().split("\n") or [""])[-1]

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:  # reaped: the number may be somebody else's by now
                os.killpg(self._process.pid, number)


def start_merge(
    command: Sequence[str], base: Path, adapter: Path, merged: Path, lock_descriptor: int, threads: int | None
) -> Merge:
    """From a thread that lives as long as the child: the parent-death signal follows the thread. Raises OSError."""
    directory = merged.parent
    process = launch([*command, str(base), str(adapter), str(merged)], directory, lock_descriptor, threads)
    return Merge(process, directory / LOG_NAME)


def _work_of(pid: int) -> float:
    """Seconds on a CPU and bytes through the kernel: it grows while the process does anything."""
    try:
        process = psutil.Process(pid)
        times, moved = process.cpu_times(), process.io_counters()
        return float(times.user + times.system + moved.read_chars + moved.write_chars)
    except (psutil.Error, OSError, AttributeError):  # it has gone; or a system that does not count
        return time.monotonic()


def _drop(pipe: IO[bytes]) -> None:
    with contextlib.suppress(ValueError):  # closed under us
        while pipe.read(1 << 16):
            pass
