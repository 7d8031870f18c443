"""Leases that this process holds, of every kind of work: claims, renewal, retried transactions, and what operators see
of an attempt while it runs. Those of jobs also read control requests (pause, preempt).

Only durations are compared, never clock times, and they are measured by CLOCK_BOOTTIME: `time.monotonic()` stands still
while a machine is suspended, and PostgreSQL's clock does not.
"""

from __future__ import annotations

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, Literal, TypeVar, get_args, overload

import structlog
from sqlalchemy.orm import Session

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.ids import new_id
from app.db.jobs import claims, events, leases
from app.db.jobs.leases import FencedError, Retries, Row, lease_of
from app.db.tables import Job
from app.domain.jobs.states import Desired, JobState, Reason
from app.log import get_logger
from app.system.host import boottime_seconds
from app.telemetry import metrics, tracing
from worker.jobs import workdir
from worker.jobs.exit_classification import AttemptOutcome
from worker.node.resources import Background, Resources

Result = TypeVar("Result")
Attempt = TypeVar("Attempt", bound="LeaseKeeper[Any]")
LossCause = Literal["fenced", "database_unavailable", "self_fenced"]
LEASE_LOST = "lease_lost"  # how an attempt ended whose end was not written by its holder
RETRY_SECONDS = 0.5

log = get_logger(__name__)
AttemptKind = Literal["validate", "train", "export", "evaluate", "registration"]
ID_NAMES = {"export": "export", "evaluate": "evaluation", "registration": "registration"}  # of the row; else "job"
GOOD_REASONS = {reason.value for reason in Reason if reason.final_state != JobState.FAILED} | {LEASE_LOST}


class LeaseUncertain(FencedError):
    """PostgreSQL was unavailable until the lease expired: whether the last transaction was committed is unknown."""


class AttemptInterrupted(Exception):
    """The worker shuts down; another worker repeats the attempt."""


class LeaseKeeper(Background, Generic[Row]):
    """One attempt: its row, its directory, and its lease. As a context manager it runs a thread that renews the lease
    and notices when it is lost."""

    def __init__(
        self,
        resources: Resources,
        row: Row,
        claimed_at: float,
        ttl_seconds: float | None = None,
        renew_seconds: float | None = None,
    ) -> None:
        """The times are those of the settings; senders have shorter ones."""
        super().__init__(f"lease-{row.id}")
        self.resources = resources
        self.row: Row = row
        self.lease = lease_of(row)
        self.directory = workdir.attempt_directory(resources.settings.work_dir, row.id, row.attempt)
        self.desired = Desired.RUN
        self.preempt_requested = False
        self._ttl_seconds = ttl_seconds or resources.settings.lease_ttl_seconds
        self._renew_seconds = renew_seconds or resources.settings.lease_renew_seconds
        self.outcome: str = LEASE_LOST  # the reason that ended the attempt, for metrics and traces
        self._confirmed_at = claimed_at  # when the last renewal that PostgreSQL confirmed was *sent*
        self._fenced = threading.Event()
        self._is_finishing = False
        self.lock = -1  # which the programs of the attempt hold; -1: none

    @property
    def fenced(self) -> bool:
        return self._fenced.is_set()

    @property
    def unconfirmed_seconds(self) -> float:
        """Time since the last renewal that PostgreSQL confirmed."""
        return boottime_seconds() - self._confirmed_at

    def check(self) -> None:
        """Raise FencedError if the lease is lost. Called between the steps of long work."""
        if self.fenced:
            raise FencedError(self.lease.row_id)

    def check_running(self) -> None:
        """Raise FencedError after a cancel, AttemptInterrupted at a shutdown. Called between the steps of long work."""
        self.check()
        if self.resources.stop.is_set():
            raise AttemptInterrupted

    def mark_lost(self, why: str, cause: LossCause = "fenced") -> None:
        """Mark the lease as lost: no further write is attempted, and the watchdog kills the trainer."""
        if not self.fenced:
            metrics.LEASES_LOST.labels(cause).inc()
            log.info("lease lost", job=self.lease.row_id, attempt=self.lease.attempt, why=why)
            self._fenced.set()

    @overload
    def transact(self, work: Callable[[Session], Result]) -> Result: ...
    @overload
    def transact(
        self, work: Callable[[Session], Result], is_done: Callable[[Session], bool] | None
    ) -> Result | None: ...
    def transact(
        self, work: Callable[[Session], Result], is_done: Callable[[Session], bool] | None = None
    ) -> Result | None:
        """Run `work` in one transaction; while PostgreSQL is unavailable, retry until the lease has expired.

        After a connection that was lost during COMMIT, the result of the COMMIT is unknown: before each retry `is_done`
        tells whether the first try was committed; then the result is None.
        Raises FencedError; LeaseUncertain if the lease expired before the result could be known.
        """
        is_retry = False
        while True:
            self.check()
            try:
                with transaction(self.resources.sessions) as session:
                    if is_retry and is_done is not None and is_done(session):
                        return None
                    return work(session)
            except FencedError:
                self.mark_lost("a guarded write changed no row")
                raise
            except DATABASE_UNAVAILABLE as error:
                self._wait_for_database(error)
                is_retry = True

    def update(self, **columns: Any) -> None:
        """Update columns of the row. Raises FencedError."""
        self.transact(lambda session: leases.update_held(session, type(self.row), self.lease, **columns))

    def finish(self, work: Callable[[Session], Result], is_done: Callable[[Session], bool] | None = None) -> None:
        """Run the transaction that gives the lease up. From then on the renewal thread may find that the lease has
        ended."""
        self._is_finishing = True
        try:
            self.transact(work, is_done)
        except BaseException:
            self._is_finishing = False
            raise

    def append_event(self, message: str, **_: Any) -> None:
        """Only jobs have events: the message is logged."""
        log.warning(message)

    def read_controls(self, session: Session) -> None:
        """Raises FencedError."""
        leases.read_held(session, type(self.row), self.lease)

    def _wait_for_database(self, error: Exception) -> None:
        log.warning("database unavailable", job=self.lease.row_id, error=first_line(error))
        if self.unconfirmed_seconds > self._ttl_seconds:
            self.mark_lost("PostgreSQL was unavailable for longer than the lease", "database_unavailable")
            raise LeaseUncertain(self.lease.row_id) from error
        if self._fenced.wait(RETRY_SECONDS):
            raise LeaseUncertain(self.lease.row_id) from error

    def _run(self) -> None:
        while not self._ended.wait(self.resources.settings.watch_seconds):
            try:
                self._poll()
            except FencedError:
                if not (self._is_finishing or self._ended.is_set()):
                    self.mark_lost("the row was cancelled, or its attempt was ended after the lease had expired")
                    return
            except DATABASE_UNAVAILABLE as error:
                metrics.LEASE_RENEWALS.labels("failed").inc()
                log.warning("lease not renewed", job=self.lease.row_id, error=first_line(error))
            except Exception:  # if this thread ended, the lease would expire while the trainer runs
                log.exception("lease not renewed", job=self.lease.row_id)

    def _poll(self) -> None:
        """Renew the lease if it is time, and read the control requests. Raises FencedError."""
        sent_at = boottime_seconds()
        is_due = sent_at - self._confirmed_at >= self._renew_seconds
        with transaction(self.resources.sessions) as session:
            if is_due:
                leases.renew(session, type(self.row), self.lease, self._ttl_seconds)
            self.read_controls(session)
        if is_due:
            self._confirmed_at = sent_at
            metrics.LEASE_RENEWALS.labels("confirmed").inc()


class JobAttempt(LeaseKeeper[Job]):
    """An attempt of a job, which has events, and whose user and scheduler may want its attempt to stop."""

    def append_event(self, message: str, **fields: Any) -> None:
        """Append one event to the job, exactly once; keywords as for `claims.append_event`. Raises FencedError."""
        event_id = new_id("ftevent")
        self.transact(
            lambda session: claims.append_event(session, self.lease, message, event_id=event_id, **fields),
            lambda session: events.get(session, self.lease.row_id, event_id) is not None,
        )

    def read_controls(self, session: Session) -> None:
        row = leases.read_held(session, Job, self.lease, Job.desired, Job.yield_requested_at)
        self.desired, self.preempt_requested = Desired(row.desired), row.yield_requested_at is not None

    def end(self, outcome: AttemptOutcome) -> None:
        """End the attempt; its reason decides the job's next state. Raises FencedError.

        After a COMMIT without an answer the retry is fenced, which proves that the first try was committed.
        """
        settings, factor = self.resources.settings, outcome.delay_factor(self.resources.stop.is_set())

        def end(session: Session) -> None:
            job = claims.finish_held_attempt(
                session,
                self.lease,
                outcome.reason,
                outcome.message,
                outcome.level,
                outcome.data,
                param=outcome.param,
                retries=Retries(factor * settings.requeue_delay_seconds, settings.max_crash_streak),
                storage_wait_seconds=settings.storage_full_wait_seconds,
            )
            if job.state == JobState.QUEUED:
                self.resources.hints.after_commit(session, "gpu")

        self.finish(end)
        self.outcome = outcome.reason


class Runner(ABC, Generic[Row, Attempt]):
    """Runs the rows of one table for one slot, one at a time, each from its claim to its end."""

    kind: AttemptKind
    table: type[Row]
    attempt: type[Attempt]

    def __init__(
        self,
        resources: Resources,
        owner: str,
        lock: Callable[[], AbstractContextManager[int | None]] = lambda: nullcontext(-1),
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`lock` is what the programs of an attempt hold; `alone` ends what else the slot does, while it lasts."""
        self.resources = resources
        self.settings = resources.settings
        self.owner = owner
        self._lock = lock
        self._alone = alone
        self._commit_unknown = False  # the last claim's COMMIT was not confirmed: it may have claimed a row

    @abstractmethod
    def claim(self, session: Session) -> Row | None:
        """Claim the next row; None if none is due."""

    @abstractmethod
    def run(self, attempt: Attempt) -> None:
        """Run a claimed attempt to its end. Raises FencedError."""

    def wait_idly(self, lock: int) -> None:
        """Called when no row is due, with the lock."""

    def run_next(self) -> bool:
        """Run one row from its claim to its end; False if none is due, or an earlier program holds the lock.

        The lock comes before the claim: while a program that cannot be killed holds it, nothing is claimed.
        """
        with self._lock() as lock:
            if lock is None:
                return False
            claimed_at = boottime_seconds()
            row, job = self.claim_next()
            if row is None:
                self.wait_idly(lock)
                return False
            attempt = self.attempt(self.resources, row, claimed_at)
            attempt.lock = lock
            with observed_attempt(self.kind, attempt, job), attempt, self._alone():
                try:
                    self.run(attempt)
                except FencedError:
                    log.info("lease lost: the result is dropped")
                finally:
                    workdir.remove_all_but_logs(attempt.directory)
        return True

    def claim_next(self) -> tuple[Row | None, Job | None]:
        """The claimed row and the job that it belongs to. Raises DATABASE_UNAVAILABLE."""
        try:
            with transaction(self.resources.sessions) as session:
                row = leases.find_held(session, self.table, self.owner) if self._commit_unknown else None
                if row is not None:
                    leases.renew(session, self.table, lease_of(row), self.settings.lease_ttl_seconds)
                row = row or self.claim(session)
                job_id = getattr(row, "job_id", None)
                job = row if isinstance(row, Job) else job_id and session.get(Job, job_id)
        except DATABASE_UNAVAILABLE:
            self._commit_unknown = True
            raise
        self._commit_unknown = False
        return row, job


def owner_name(name: str) -> str:
    """The owner of the leases of a process or slot, which no other one has, nor this one after a restart."""
    return f"{name}#{secrets.token_hex(4)}"


def begin_metrics() -> None:
    """Expose the counters of attempts with 0."""
    kinds = get_args(AttemptKind)
    metrics.begin(metrics.CLAIMS, kinds)
    metrics.begin(metrics.ATTEMPTS_ENDED, kinds, [*(reason.value for reason in Reason), LEASE_LOST])
    metrics.begin(metrics.LEASE_RENEWALS, ["confirmed", "failed"])
    metrics.begin(metrics.LEASES_LOST, get_args(LossCause))
    metrics.begin(metrics.PLAN_RATIO, ["memory", "time"])


@contextmanager
def observed_attempt(kind: AttemptKind, keeper: LeaseKeeper[Any], job: Job | None = None) -> Iterator[None]:
    """Count the attempt of `keeper`, trace it, and add its ids to all log lines of the block.

    Its span belongs to the trace of the request that created `job`; an export's or an evaluation's is the job that it
    belongs to. Threads that are created within the block have the same context if they run
    `contextvars.copy_context().run`.
    """
    lease, began_at = keeper.lease, time.monotonic()
    ids: dict[str, str | int] = {ID_NAMES.get(kind, "job"): lease.row_id, "attempt": lease.attempt}
    if job is not None and job.request_id is not None:
        ids["request_id"] = job.request_id
    metrics.CLAIMS.labels(kind).inc()
    metrics.ATTEMPTS_RUNNING.labels(kind).inc()
    attributes = {f"tunery.{name}": value for name, value in ids.items()}
    with (
        tracing.span(f"{kind} attempt", job.traceparent if job else None, attributes) as span,
        structlog.contextvars.bound_contextvars(**ids),
    ):
        try:
            yield
        finally:
            metrics.ATTEMPTS_RUNNING.labels(kind).dec()
            metrics.count_attempt(kind, keeper.outcome, time.monotonic() - began_at)
            tracing.end_reason(span, keeper.outcome, keeper.outcome not in GOOD_REASONS)
