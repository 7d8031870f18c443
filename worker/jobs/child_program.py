"""A child process of the worker: start it with a clean environment, read its output, send lines, drain, kill; and the
watchdog that stops it.

The watchdog is a thread that checks every reason to stop and never uses the database: the thread that writes records
may hang in a statement for half a minute, so the decision to stop a trainer depends on clocks and flags only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import worker
from app.domain.jobs.events import Command
from app.domain.jobs.states import Desired
from app.log import get_logger
from app.settings import Settings
from app.system.host import PARENT_PID_VARIABLE
from worker.jobs.lease import LeaseKeeper
from worker.jobs.trainer_log import TrainerLog
from worker.node.resources import Background

LOG_NAME = "trainer.log"  # one of `workdir.LOG_NAMES`: kept for a week
TEMPORARY = "tmp"  # the temporary directory in a work directory; a warm trainer uses the same name

# A child inherits the variables that describe the machine, never a URL, a key or a password.
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
STALL_STEPS = 20  # a trainer with slow steps is hanging after this many median steps without a record
TICK_SECONDS = 0.25

log = get_logger(__name__)


class ChildProgram:
    """One running program in a session of its own. Threads read its output and its log; a watchdog may stop it."""

    final_at: float | None = None  # when it sent its last record, after which it only exits

    def __init__(
        self, process: subprocess.Popen[bytes], log_path: Path, read_output: Callable[[IO[bytes]], object]
    ) -> None:
        """Starts the threads: `read_output` may use everything that a subclass has set before."""
        self._process = process
        self._log = TrainerLog(log_path)
        self._threads = [
            threading.Thread(target=target, args=(pipe,), name=f"{name}-{process.pid}", daemon=True)
            for name, target, pipe in (
                ("output", read_output, process.stdout),
                ("stderr", self._log.copy_from, process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def silent_seconds(self) -> float:
        """Time since its last sign of progress."""
        return 0.0

    @property
    def median_step_seconds(self) -> float:
        return 0.0

    def send_command(self, command: Command) -> None:
        """Send a command to a trainer; other programs have none."""

    def send_line(self, line: str) -> None:
        """Write a line to its input. A program that has closed its input is about to exit: the error is ignored."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def drain(self) -> None:
        """Send SIGTERM: a trainer writes a snapshot at the next step boundary and exits with 75.

        Before a program has installed its handler, the signal kills it.
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
        """Kill the process if it still runs, and return the exit code; None if it cannot be killed.

        Threads and pipes are released once it has ended: closing a pipe waits for the thread that reads it.
        """
        self.kill()
        exit_code = self.wait(timeout_seconds)
        if exit_code is None:
            return None
        for thread in self._threads:
            thread.join(timeout_seconds)
        close_pipes(self._process)
        return exit_code

    def log_tail(self) -> str:
        return self._log.tail()

    def last_stderr_line(self) -> str:
        """The last line of standard error; after a refusal it is the reason."""
        return (self._log.tail().strip().split("\n") or [""])[-1]

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, whose leader is the program."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:  # the kernel may reuse the pid of a reaped process
                os.killpg(self._process.pid, number)


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError, ValueError):
            if pipe is not None:
                pipe.close()


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


class Watchdog(Background):
    """Stops one child process when it must stop; the attributes record what was requested of it.

    As a context manager it runs its thread while the block lasts.
    """

    def __init__(
        self, program: ChildProgram, keeper: LeaseKeeper[Any], stop: threading.Event, settings: Settings
    ) -> None:
        super().__init__("watchdog")
        self.stalled = False
        self.drain_requested_at: float | None = None
        self.self_fenced = False  # the drain was requested because no renewal of the lease was confirmed
        self.pause_requested = False
        self.preempt_requested = False
        self._program = program
        self._keeper = keeper
        self._stop = stop
        self._settings = settings

    def _run(self) -> None:
        tick_seconds = min(TICK_SECONDS, self._settings.watch_seconds / 2)
        while not self._ended.wait(tick_seconds):
            try:
                self.check()
            except Exception:  # a trainer must not run without a watchdog
                log.exception("watchdog failed; killing the trainer")
                self._program.kill()

    def check(self) -> None:
        """Check every reason to stop, the most urgent first."""
        unconfirmed_seconds = self._keeper.unconfirmed_seconds
        stall_limit_seconds = max(self._settings.stall_seconds, STALL_STEPS * self._program.median_step_seconds)
        if self._keeper.fenced:
            self._program.kill()
        elif unconfirmed_seconds > self._settings.self_fence_kill_seconds:
            self._keeper.mark_lost(f"no renewal was confirmed for {unconfirmed_seconds:.0f} s", "self_fenced")
            self._program.kill()
        elif self._program.silent_seconds > stall_limit_seconds:
            self.stalled = True
            self._program.kill()
        elif self._is_overdue():
            self._program.kill()
        elif self._stop.is_set() or unconfirmed_seconds > self._settings.self_fence_seconds:
            if self.drain_requested_at is None:
                self.drain_requested_at = time.monotonic()
                self.self_fenced = not self._stop.is_set()
                self._program.drain()
        # Pause and preemption have no deadline: a step may be long, and losing it costs more than a late stop.
        elif self._keeper.desired == Desired.PAUSE:
            if not self.pause_requested:
                self.pause_requested = True
                self._program.send_command(Command.PAUSE)
        elif self._keeper.preempt_requested and not self.preempt_requested:
            self.preempt_requested = True
            self._program.send_command(Command.DRAIN)

    def _is_overdue(self) -> bool:
        """Whether it still runs after the grace period of a drain, or long after its final record."""
        now = time.monotonic()
        if self.drain_requested_at is not None and now - self.drain_requested_at > self._settings.drain_grace_seconds:
            return True
        final_at = self._program.final_at
        return final_at is not None and now - final_at > self._settings.stop_grace_seconds
