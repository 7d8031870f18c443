"""A child process of the worker: start it with a clean environment, read its output, send lines, drain, kill.

A program that makes an export, generates answers or grades them also has limits, and reports its progress and the
reason of its end.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

import worker
from app.domain.jobs.events import Command
from app.domain.jobs.states import ExitCode
from app.log import get_logger
from app.system.host import PARENT_PID_VARIABLE
from worker.jobs.lease import LeaseKeeper
from worker.jobs.leased_rows import AttemptFailed, AttemptInterrupted
from worker.jobs.trainer_log import TrainerLog
from worker.jobs.watchdog import Watchdog
from worker.node.device import oom_kill_count
from worker.node.resources import Resources

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
log = get_logger(__name__)


class ChildProgram:
    """One running program in a session of its own. Threads read its output and its log."""

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
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError, ValueError):
                if pipe is not None:
                    pipe.close()
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
