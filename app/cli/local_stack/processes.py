"""Children that do not outlive us: start, stop, and clean up after a parent that was killed with -9.

Two nets, because each has a hole:
- the kernel signals the child when we die (PDEATHSIG): Linux only, and not for what the child itself started;
- every child carries a mark in its environment, which its own children inherit, and the next start on the same
  directory ends whoever still carries it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.cli.local_stack.errors import CannotStart

MARK = "TUNERY_STARTED_IN"
PR_SET_PDEATHSIG = 1
LOG_BYTES_KEPT = 16 << 20

# Loaded here and not in the child: between fork and exec nothing may take the loader's lock.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass
class Child:
    """One process, the leader of its own session, so that a Ctrl-C in the terminal reaches only us."""

    name: str
    command: Sequence[str]
    log: Path
    mark: Path  # the directory it works for
    env: Mapping[str, str]
    cwd: Path
    user: int | None = None
    group: int | None = None
    dies_with: signal.Signals = signal.SIGKILL  # what the kernel sends it when we die
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Call it from the main thread: PDEATHSIG fires when the *thread* that forked ends."""
        with open_log(self.log) as log:
            self.process = subprocess.Popen(
                self.command,
                env={**self.env, MARK: str(self.mark)},
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                user=self.user,
                group=self.group,
                extra_groups=None if self.user is None else [],
                preexec_fn=_tie_to_parent(self.dies_with),
            )

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def ask(self, signal_number: signal.Signals = signal.SIGTERM) -> None:
        """Ask the leader only: what it started it ends itself, in its own order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal_number)

    def wait(self, seconds: float) -> bool:
        """Whether it ended in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.process is not None:
                self.process.wait(seconds)
            return True
        return False

    def kill(self) -> None:
        """End the leader and whatever of its session is left."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self, signal_number: signal.Signals, grace_seconds: float) -> None:
        self.ask(signal_number)
        self.wait(grace_seconds)
        self.kill()


def end_leftovers(mark: Path, signal_number: signal.Signals, grace_seconds: float) -> list[int]:
    """End all that was started for this directory by somebody who is dead. The caller holds the directory's lock."""
    leftovers = [process for process in psutil.process_iter() if _carries(process, mark)]
    for process in leftovers:
        end(process, signal_number, grace_seconds)
    return [process.pid for process in leftovers]


def end(process: psutil.Process, signal_number: signal.Signals, grace_seconds: float) -> None:
    """psutil compares start times before it signals, so a pid that has changed hands is safe."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)
        if not _gone_within(process, grace_seconds):
            process.kill()
            _gone_within(process, grace_seconds)


@contextlib.contextmanager
def exclusive(lock: Path, otherwise: str) -> Iterator[None]:
    """Hold a file lock. The kernel drops it when we die, so a stale lock can't exist."""
    with open(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(otherwise) from None
        yield


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Append to a log; beyond 16 MiB the old one steps aside at the next start (one generation is kept)."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_KEPT:
            path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def tail(path: Path, lines: int = 12) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").strip().split("\n")[-lines:])
    return ""


def _gone_within(process: psutil.Process, seconds: float) -> bool:
    """A zombie counts as gone: in a container nobody may ever reap an orphan, and it holds nothing."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _carries(process: psutil.Process, mark: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == str(mark)
    except (psutil.Error, OSError):  # not ours to look at, so not ours
        return False


def _tie_to_parent(dies_with: signal.Signals) -> Callable[[], None]:
    parent = os.getpid()

    def in_the_child() -> None:
        # Runs after setuid, as it must: a change of credentials clears PDEATHSIG.
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(dies_with))
            if os.getppid() != parent:  # it died between fork and prctl: nobody will signal us any more
                os._exit(1)

    return in_the_child
