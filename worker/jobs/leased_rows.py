"""Claims and leases of exports, evaluations and registrations, which are kept as those of jobs are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic

from sqlalchemy.orm import Session

from app.db import files
from app.db.engine import DATABASE_UNAVAILABLE, transaction
from app.db.jobs import leased_rows
from app.db.jobs.claims import FencedError, Lease
from app.db.jobs.leased_rows import Row
from app.db.tables import Evaluation, Export, File, Job
from app.domain.artifacts.exports import ExportErrorCode
from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.states import Reason
from app.log import get_logger
from app.storage import StorageError
from app.system.host import boottime_seconds
from worker.jobs import stored_files, workdir
from worker.jobs.lease import ID_NAMES, AttemptKind, LeaseKeeper, observed_attempt
from worker.jobs.sanitize import clean_text
from worker.node.resources import Resources

log = get_logger(__name__)


class AttemptFailed(Exception):
    """The attempt failed; `is_final`: another attempt would fail in the same way. `code` is of the row's error codes,
    which share `server_error`."""

    def __init__(self, code: str, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = clean_text(message)
        self.is_final = is_final


class AttemptInterrupted(Exception):
    """The worker shuts down; another worker runs the row."""


class RowLeaseKeeper(LeaseKeeper, Generic[Row]):
    """One held lease of such a row. `job` is that of an export or evaluation."""

    def __init__(
        self, resources: Resources, table: type[Row], lease: Lease, claimed_at: float, job: Job | None = None
    ) -> None:
        super().__init__(resources, lease, claimed_at)
        self.job = job
        self._table: type[Row] = table

    def append_event(self, message: str, **_: Any) -> None:
        """The row has no events of its own: the message is logged."""
        log.warning(message)

    def run(self, name: str, work: Callable[[], None], fail: Callable[[Session, Lease, AttemptFailed], object]) -> None:
        """Run `work`, which ends a successful attempt itself; end any other attempt, a failed one by `fail`.

        `name` is the row's name in the log.
        """
        try:
            work()
            self.outcome = Reason.DONE
            log.info(f"{name} succeeded")
        except FencedError:
            log.info(f"lease lost: the {name} is dropped")
        except AttemptInterrupted:
            self._end(Reason.DRAINED, lambda session: leased_rows.requeue(session, self._table, self.lease))
        except AttemptFailed as error:
            self._end_failed(name, error, fail)
        except OSError as error:
            log.exception("files or storage failed")
            self._end_failed(name, _storage_failure(error), fail)
        except Exception:
            log.exception(f"internal error of the {name}")
            text = "The worker had an internal error; its log has the details"
            self._end_failed(name, AttemptFailed("server_error", text), fail)

    def publish(
        self,
        row: Export | Evaluation,
        directory: Path,
        prefix: str,
        succeed: Callable[[Session, list[File]], object],
    ) -> None:
        """Store the files of a result below a prefix of their own, and end the attempt by `succeed`.

        It gets the inserted rows of the files, which make them visible. If it raises, nothing is stored.
        """

        def write(session: Session) -> None:
            succeed(session, [files.insert(session, file.row(row.project_id, row.job_id)) for file in stored])

        def has_succeeded(session: Session) -> bool:
            found = session.get(self._table, row.id)
            return found is not None and found.state == leased_rows.SUCCEEDED and found.attempt == row.attempt

        with stored_files.delete_unless_committed() as undo:
            stored = stored_files.put_directory(self._resources, self, directory, stored_files.unique(prefix))
            undo.callback(stored_files.discard, self._resources.storage, [file.key for file in stored])
            self.finish(write, has_succeeded)

    def check_running(self) -> None:
        """Call between the steps of long work. Raises FencedError after a cancel, AttemptInterrupted at a shutdown."""
        self.check()
        if self._resources.stop.is_set():
            raise AttemptInterrupted

    def _end_failed(
        self, name: str, error: AttemptFailed, fail: Callable[[Session, Lease, AttemptFailed], object]
    ) -> None:
        log.warning(f"{name} failed", code=error.code, why=error.message)
        self._end(error.code, lambda session: fail(session, self.lease, error))

    def _end(self, outcome: str, work: Callable[[Session], Any]) -> None:
        """End the attempt. After a COMMIT without an answer the retry is fenced: then the first try was committed."""
        try:
            self.finish(work)
            self.outcome = outcome
        except FencedError:
            log.info("lease lost: the row has ended already, or another worker has it")

    def _poll(self) -> None:
        sent_at = boottime_seconds()
        is_due = sent_at - self._confirmed_at >= self._settings.lease_renew_seconds
        with transaction(self._resources.sessions) as session:
            if is_due:
                leased_rows.renew_lease(session, self._table, self.lease, self._settings.lease_ttl_seconds)
            leased_rows.check_lease(session, self._table, self.lease)
        if is_due:
            self._confirm_renewal(sent_at)


class RowClaimer(Generic[Row]):
    """Claims the rows of one table for one slot, one at a time."""

    def __init__(self, resources: Resources, table: type[Row], owner: str) -> None:
        self._resources = resources
        self._table: type[Row] = table
        self._owner = owner
        self._commit_unknown = False  # the last claim's COMMIT was not confirmed: it may have claimed a row

    def claim_next(self, claim: Callable[[Session], Row | None]) -> tuple[Row, RowLeaseKeeper[Row]] | None:
        """The next row by `claim`, and its lease; None if none is due. Raises DATABASE_UNAVAILABLE."""
        claimed_at = boottime_seconds()
        try:
            with transaction(self._resources.sessions) as session:
                row = self._recover_claim(session) or claim(session)
                job = session.get(Job, row.job_id) if isinstance(row, Export | Evaluation) else None
        except DATABASE_UNAVAILABLE:
            self._commit_unknown = True
            raise
        self._commit_unknown = False
        if row is None:
            return None
        return row, RowLeaseKeeper(self._resources, self._table, self._lease_of(row), claimed_at, job)

    def run_next(
        self,
        kind: AttemptKind,
        claim: Callable[[Session], Row | None],
        lock: AbstractContextManager[int | None],
        work: Callable[[Row, RowLeaseKeeper[Row], Path, int], None],
        fail: Callable[[Session, Lease, AttemptFailed], object],
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> bool:
        """Run one row from its claim to its end, in a directory of its attempt; False if none is due, or no lock free.

        `work` ends a successful attempt itself, `fail` a failed one. `alone` ends what else the slot does meanwhile.
        """
        with lock as held:
            claimed = self.claim_next(claim) if held is not None else None
            if held is None or claimed is None:
                return False
            row, keeper = claimed
            directory = workdir.attempt_directory(self._resources.settings.work_dir, row.id, row.attempt)

            def run() -> None:
                workdir.create_empty(directory)
                work(row, keeper, directory, held)

            with observed_attempt(kind, keeper, keeper.job), keeper, alone():
                log.info(f"{ID_NAMES[kind]} started")
                try:
                    keeper.run(ID_NAMES[kind], run, fail)
                finally:
                    workdir.remove_all_but_logs(directory)
        return True

    def _recover_claim(self, session: Session) -> Row | None:
        """The row that an unconfirmed claim did claim, with its lease renewed."""
        row = leased_rows.find_held(session, self._table, self._owner) if self._commit_unknown else None
        if row is not None:
            ttl_seconds = self._resources.settings.lease_ttl_seconds
            leased_rows.renew_lease(session, self._table, self._lease_of(row), ttl_seconds)
        return row

    def _lease_of(self, row: Row) -> Lease:
        return Lease(row.id, row.attempt, self._owner)


def _storage_failure(error: OSError) -> AttemptFailed:
    """The codes of an export's error; those of an evaluation are the same."""
    code = ExportErrorCode.STORAGE_FULL if is_disk_full(error) else ExportErrorCode.STORAGE_UNAVAILABLE
    if is_disk_full(error) and not isinstance(error, StorageError):
        return AttemptFailed(code, "The disk is full: there is no space for the files.")
    why = f": {error.strerror}" if error.strerror else ""
    return AttemptFailed(code, f"Files could not be read or written{why}")
