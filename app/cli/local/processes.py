"""Children that do not outlive us: start, watch, stop, and clean up after a `tunery up` that was killed with -9.

Two nets, because each has a hole:
- the kernel signals the child when we die (PDEATHSIG; Linux only, and only for our direct children);
- a record (pid and start time) lies beside the child's files, and the next start ends whoever it still names.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.cli.local.errors import Occupied

PR_SET_PDEATHSIG = 1
LOG_BYTES_KEPT = 16 * 2**20
START_TIME_TOLERANCE_SECONDS = 2.0  # psutil adds the boot time, which a clock correction moves

# Loaded here and not in the child: between fork and exec nothing may take the loader's lock.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass
class Child:
    """One process, the leader of its own session, so that a Ctrl-C in the terminal reaches only us."""

    name: str
    command: Sequence[str]
    log: Path
    record: Path
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    user: int | None = None
    group: int | None = None
    dies_with: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Call it from the main thread: PDEATHSIG fires when the *thread* that forked ends."""
        with open_log(self.log) as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_tie_to_parent(self.dies_with), umask=0o077,
                user=self.user, group=self.group, extra_groups=None if self.user is None else [],
            )  # fmt: skip
        write_record(self.record, self.process.pid)

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def stop(self, ask: signal.Signals = signal.SIGTERM, grace_seconds: float = 10.0) -> None:
        if self.process is None:
            return
        self.ask(ask)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
        self.kill()

    def ask(self, ask: signal.Signals) -> None:
        """Ask the leader only: what it started it ends itself, in its own order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(ask)

    def kill(self) -> None:
        """End the leader and whatever of its session is left."""
        assert self.process is not None, f"{self.name} was not started"
        _signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.record.unlink(missing_ok=True)


def end_leftover(record: Path, ask: signal.Signals = signal.SIGTERM, grace_seconds: float = 10.0) -> bool:
    """End the process that a killed `tunery up` left behind, if the record still names a living one."""
    leftover = recorded_process(record)
    if leftover is not None:
        end_process(leftover, ask, grace_seconds)
    record.unlink(missing_ok=True)
    return leftover is not None


def end_process(process: psutil.Process, ask: signal.Signals, grace_seconds: float) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        process.send_signal(ask)
        _, alive = psutil.wait_procs(family, timeout=grace_seconds)
        for survivor in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(alive, timeout=grace_seconds)


def write_record(record: Path, pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).create_time()
        record.write_text(json.dumps({"pid": pid, "started": started}))


def recorded_process(record: Path) -> psutil.Process | None:
    """The process a record names, unless its pid belongs to somebody else by now."""
    try:
        seen = json.loads(record.read_text())
        process = psutil.Process(int(seen["pid"]))
        same = abs(process.create_time() - float(seen["started"])) <= START_TIME_TOLERANCE_SECONDS
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return process if same and process.status() != psutil.STATUS_ZOMBIE else None


@contextlib.contextmanager
def exclusive(lock: Path, otherwise: str) -> Iterator[None]:
    """Hold a file lock. The kernel drops it when we die, so a stale lock can't exist."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Occupied(otherwise) from None
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


def _tie_to_parent(dies_with: signal.Signals) -> Callable[[], None]:
    parent = os.getpid()

    def in_the_child() -> None:
        # Runs after setuid, on purpose: a change of credentials clears PDEATHSIG.
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(dies_with))
            if os.getppid() != parent:  # it died between fork and prctl: nobody will signal us any more
                os._exit(1)

    return in_the_child


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
