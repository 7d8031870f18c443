"""One attempt of a program: an export, an evaluation or the registration of a base model, from its claim to its end.

What a kind does are three functions of its `ProgramRunner`: claim, work, fail. Programs of the attempt have limits and
run under a watchdog.
"""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Generic, TypeVar

import psutil
from sqlalchemy.orm import Session

from app.db import files
from app.db.jobs import leases
from app.db.jobs.leases import FencedError, Retries
from app.db.tables import BaseModelRegistration, Evaluation, Export, File
from app.domain.artifacts.exports import ExportErrorCode
from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.states import ExitCode, Reason, WorkState
from app.log import get_logger
from app.storage import StorageError
from worker.jobs import stored_files
from worker.jobs.base_and_adapter import AttemptFailed
from worker.jobs.child_program import LOG_NAME, ChildProgram, Watchdog, launch
from worker.jobs.lease import ID_NAMES, AttemptInterrupted, LeaseKeeper, Runner
from worker.node.device import oom_kill_count

RETRIED_EXIT_CODES = (ExitCode.DISK_FULL, ExitCode.STORAGE)
Row = TypeVar("Row", bound=Evaluation | Export | BaseModelRegistration)

log = get_logger(__name__)


@dataclass(frozen=True)
class ProgramLimits:
    """Limits of a program whose work a client's input decides. The kernel refuses memory beyond `memory_bytes`."""

    memory_bytes: int
    seconds: float


class ProgramProcess(ChildProgram):
    """One running program. It writes no records, so its progress is that it computes, reads or writes."""

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


@dataclass(frozen=True)
class ProgramEnd:
    """How a program ended that was not stopped; after a refusal `reason` says why."""

    name: str
    exit_code: int
    reason: str

    def check(self, errors: Mapping[int, str]) -> None:
        """Raise AttemptFailed unless it succeeded; `errors` are the codes of errors by exit code."""
        if code := errors.get(self.exit_code):
            raise AttemptFailed(code, self.reason, is_final=self.exit_code not in RETRIED_EXIT_CODES)
        if self.exit_code != ExitCode.DONE:
            how = f"ended with exit code {self.exit_code}"
            if self.exit_code < 0:
                how = f"was ended by signal {-self.exit_code}"
            raise AttemptFailed("server_error", f"The {self.name} {how}")


class ProgramAttempt(LeaseKeeper[Row], Generic[Row]):
    """One attempt, and what its work needs: programs, waits, and the publication of its result."""

    def wait(self, seconds: float) -> None:
        """Wait, and end the wait with an error after a cancel or at a shutdown."""
        deadline = time.monotonic() + seconds
        self.check_running()
        while (rest := deadline - time.monotonic()) > 0:
            self.resources.stop.wait(min(rest, self.resources.settings.watch_seconds))
            self.check_running()

    def run_program(
        self,
        name: str,
        command: Sequence[str],
        threads: int | None = None,
        limits: ProgramLimits | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> ProgramEnd:
        """Run a program in the directory, and stop it when it must stop. `on_wait` is called now and then.

        Call it from a thread that outlives the program: the parent-death signal follows the thread. `name` is its name
        in messages. Raises AttemptFailed if it stalled or took too much memory or time, AttemptInterrupted,
        FencedError, OSError.
        """
        settings, is_late, kills_before = self.resources.settings, False, oom_kill_count()
        process = launch(command, self.directory, self.lock, threads or settings.threads)
        if limits is not None and sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
        program = ProgramProcess(process, self.directory / LOG_NAME, limits)
        try:
            with Watchdog(program, self, self.resources.stop, settings) as watchdog:
                while (exit_code := program.wait(settings.watch_seconds)) is None:
                    on_wait()
                    if time.monotonic() > program.deadline and not is_late:
                        is_late = True
                        program.kill()
        finally:
            program.close()
        self.check()
        reason = program.last_stderr_line()
        if exit_code != ExitCode.DONE:
            log.warning(f"{name} ended", exit_code=exit_code, stderr_line=reason)
            if watchdog.drain_requested_at is not None:
                raise AttemptInterrupted
            if is_late:
                text = f"The {name} reached its limit of time and was stopped; fewer rows and shorter texts take less"
                raise AttemptFailed("server_error", text, is_final=True)
            if watchdog.stalled:
                raise AttemptFailed("server_error", f"The {name} made no progress for too long and was stopped")
            if exit_code == -signal.SIGKILL and oom_kill_count() > kills_before:
                text = f"The kernel killed the {name} because the machine ran out of memory"
                raise AttemptFailed("out_of_memory", text)
        return ProgramEnd(name, exit_code, reason)

    def publish(self, directory: Path, prefix: str, succeed: Callable[[Session, list[File]], object]) -> None:
        """Store the files of a result below a prefix of their own, and end the attempt by `succeed`.

        It gets the inserted rows of the files, which make them visible. If it raises, nothing is stored.
        """
        row = self.row
        assert isinstance(row, Evaluation | Export), "they have results"

        def write(session: Session) -> None:
            succeed(session, [files.insert(session, file.row(row.project_id, row.job_id)) for file in stored])

        def has_succeeded(session: Session) -> bool:
            found = session.get(type(row), row.id)
            return found is not None and found.state == WorkState.SUCCEEDED and found.attempt == row.attempt

        with stored_files.deleted_unless_committed(self.resources.storage) as keys:
            stored = stored_files.put_directory(self, directory, stored_files.unique(prefix), keys)
            self.finish(write, has_succeeded)


class ProgramRunner(Runner[Row, ProgramAttempt[Row]], Generic[Row]):
    """Runs exports, evaluations or registrations; what its kind does are three functions: claim, work, fail."""

    attempt: type[ProgramAttempt[Row]] = ProgramAttempt
    is_retried = True  # after a failure that another attempt may not have

    @abstractmethod
    def work(self, attempt: ProgramAttempt[Row]) -> None:
        """Do the work and end the attempt. Raises AttemptFailed, AttemptInterrupted, FencedError, OSError."""

    def fail(self, session: Session, row: Row, error: AttemptFailed, retries: Retries | None) -> object:
        """End a failed attempt of a locked row; without `retries` the failure is final."""
        return leases.end_attempt(session, row, error.code, error.message, retries)

    def run(self, attempt: ProgramAttempt[Row]) -> None:
        """End every attempt that `work` has not ended."""
        name = ID_NAMES[self.kind]
        log.info(f"{name} started")
        try:
            self.work(attempt)
            attempt.outcome = Reason.DONE
            log.info(f"{name} succeeded")
        except FencedError:
            raise
        except AttemptInterrupted:
            self._end(attempt, Reason.DRAINED, leases.release)
        except AttemptFailed as error:
            self._end_failed(attempt, error)
        except OSError as error:
            log.exception("files or storage failed")
            self._end_failed(attempt, _storage_failure(error))
        except Exception:
            log.exception(f"internal error of the {name}")
            text = "The worker had an internal error; its log has the details"
            self._end_failed(attempt, AttemptFailed("server_error", text))

    def _end_failed(self, attempt: ProgramAttempt[Row], error: AttemptFailed) -> None:
        log.warning(f"{ID_NAMES[self.kind]} failed", code=error.code, why=error.message)
        retries = None if error.is_final or not self.is_retried else self.resources.retries
        self._end(attempt, error.code, lambda session, row: self.fail(session, row, error, retries))

    def _end(self, attempt: ProgramAttempt[Row], outcome: str, work: Callable[[Session, Row], object]) -> None:
        """End the attempt. After a COMMIT without an answer the retry is fenced: then the first try was committed."""
        attempt.finish(lambda session: work(session, leases.lock_held(session, self.table, attempt.lease)))
        attempt.outcome = outcome


def _storage_failure(error: OSError) -> AttemptFailed:
    """The codes of an export's error; those of an evaluation are the same."""
    code = ExportErrorCode.STORAGE_FULL if is_disk_full(error) else ExportErrorCode.STORAGE_UNAVAILABLE
    if is_disk_full(error) and not isinstance(error, StorageError):
        return AttemptFailed(code, "The disk is full: there is no space for the files.")
    why = f": {error.strerror}" if error.strerror else ""
    return AttemptFailed(code, f"Files could not be read or written{why}")


def _read_work_done(pid: int) -> float:
    """CPU seconds plus bytes read and written: a sum that changes while the process or a child of it does anything."""
    try:
        process, work_done = psutil.Process(pid), 0.0
        for each in (process, *process.children(recursive=True)):
            times, transferred = each.cpu_times(), each.io_counters()
            work_done += times.user + times.system + transferred.read_chars + transferred.write_chars
        return work_done
    except (psutil.Error, OSError, AttributeError):  # it has exited, or the system has no such counters
        return time.monotonic()


def _discard(pipe: IO[bytes]) -> None:
    with contextlib.suppress(ValueError):  # the pipe was closed during the read
        while pipe.read(1 << 16):
            pass
