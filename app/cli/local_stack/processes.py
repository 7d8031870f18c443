"""Child processes that end with their parent: start, stop, and cleanup after a parent that was killed with -9.

Two mechanisms, because neither covers all cases:
- the kernel signals the child when the parent dies (PDEATHSIG): Linux only, and not for the child's own children;
- every child has a marker in its environment, which its own children inherit; the next start on the same directory
  terminates all processes that have it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.cli.local_stack.machine import CannotStart
from app.system.host import die_with_parent

MARKER_VARIABLE = "TUNERY_STARTED_IN"
MAX_LOG_BYTES = 16 << 20
TAIL_LINES = 12
POLL_SECONDS = 0.02
MIN_RESTART_DELAY_SECONDS = 1.0


@dataclass
class ChildProcess:
    """A program in a session of its own, so that a Ctrl-C in the terminal signals only the parent: what is started, how
    it stops, and when a crash lets it start again.
    """

    name: str
    command: Sequence[str]
    log: Path
    marker: Path  # the data directory that the process belongs to
    env: Mapping[str, str]
    cwd: Path | None = None  # None: `marker`
    description: str = ""
    user: int | None = None
    group: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0  # that it may take to stop
    stop_group: int = 0  # lower ones stop first
    parent_death_signal: signal.Signals = signal.SIGKILL  # sent by the kernel when the parent dies
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started_at: float = field(default=0.0, init=False)
    restart_delay_seconds: float = field(default=MIN_RESTART_DELAY_SECONDS, init=False)
    restart_at: float | None = field(default=None, init=False)  # None: no restart is scheduled

    def start(self) -> None:
        """Start the process. Call this in the main thread: PDEATHSIG is sent when the *thread* that forked ends."""
        self.started_at = time.monotonic()
        with open_log(self.log) as log:
            self.process = subprocess.Popen(
                self.command,
                env={**self.env, MARKER_VARIABLE: str(self.marker)},
                cwd=self.cwd or self.marker,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                user=self.user,
                group=self.group,
                extra_groups=None if self.user is None else [],
                preexec_fn=_set_parent_death_signal(self.parent_death_signal),
            )

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    @property
    def exit_text(self) -> str:
        code = self.exit_code
        return f"exit code {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"

    @property
    def end_of_log(self) -> str:
        """For messages: where the log is, and its last lines."""
        lines = ""
        with contextlib.suppress(OSError):
            lines = "\n".join(self.log.read_text(errors="replace").strip().split("\n")[-TAIL_LINES:])
        return f"The end of {self.log}:\n{lines}"

    def wait_until(self, is_ready: Callable[[], object], deadline: float) -> bool:
        """Wait for a condition. False if the process ends before, or at the deadline, a time of the monotonic clock."""
        while not is_ready():
            if self.exit_code is not None or time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def request_stop(self) -> None:
        """Signal the process only; it stops its own children in its own order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)

    def wait(self, seconds: float) -> bool:
        """Whether the process ended within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.process is not None:
                self.process.wait(seconds)
            return True
        return False

    def kill(self) -> None:
        """Kill the process and all others of its session."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        self.request_stop()
        self.wait(self.stop_seconds)
        self.kill()


def terminate_leftovers(marker: Path, signal_number: signal.Signals, grace_seconds: float) -> list[int]:
    """Terminate the processes that a dead parent started for this directory. The caller holds the directory's lock."""
    leftovers = [process for process in psutil.process_iter() if _has_marker(process, marker)]
    for process in leftovers:
        terminate(process, signal_number, grace_seconds)
    return [process.pid for process in leftovers]


def terminate(process: psutil.Process, signal_number: signal.Signals, grace_seconds: float) -> None:
    """Signal a process, then kill it. psutil compares start times first, so a reused pid is not signalled."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)
        if not _wait_for_exit(process, grace_seconds):
            process.kill()
            _wait_for_exit(process, grace_seconds)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Create files for this account alone within the block."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def exclusive_lock(lock: Path, held_message: str) -> Iterator[None]:
    """Hold a file lock, which the kernel releases when the process dies. Raises CannotStart if it is held."""
    with open(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(held_message) from None
        yield


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[int]:
    """A file descriptor that appends to a log. A log above MAX_LOG_BYTES is rotated first; one old log is kept."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _wait_for_exit(process: psutil.Process, seconds: float) -> bool:
    """Whether the process ended in time. A zombie has ended: a container may have no process that reaps it."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _has_marker(process: psutil.Process, marker: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARKER_VARIABLE) == str(marker)
    except (psutil.Error, OSError):  # the environment of another user's process is not readable
        return False


def _set_parent_death_signal(parent_death_signal: signal.Signals) -> Callable[[], None]:
    parent = os.getpid()

    def run_in_child() -> None:
        # Runs after setuid, because a change of credentials clears PDEATHSIG.
        if not die_with_parent(parent, parent_death_signal):  # it died before, so no signal will come
            os._exit(1)

    return run_in_child
