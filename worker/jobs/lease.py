"""Leases that this worker holds: renewal, control requests (pause, preempt), retried transactions, and what operators
see of an attempt while it runs.

Exports, evaluations and registrations are claimed and leased as jobs are; their leases are those of rows. Only
durations are compared, never clock times, and they are measured by CLOCK_BOOTTIME: `time.monotonic()` stands still
while a machine is suspended, and PostgreSQL's clock does not.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

import structlog
from sqlalchemy.orm import Session

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.ids import new_id
from app.db.jobs import claims, events
from app.db.jobs.claims import FencedError, Lease
from app.db.scheduling.fair_queue import Kind
from app.db.tables import Job
from app.domain.jobs.states import Desired, JobState, Reason
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.log import get_logger
from app.system.host import boottime_seconds
from app.telemetry import metrics, tracing
from worker.node.resources import Resources

Result = TypeVar("Result")
LossCause = Literal["fenced", "database_unavailable", "self_fenced"]
LEASE_LOST = "lease_lost"  # how an attempt ended whose end was not written by its holder
RETRY_SECONDS = 0.5
THREAD_EXIT_TIMEOUT_SECONDS = 5

log = get_logger(__name__)
AttemptKind = Literal["validate", "train", "export", "evaluate", "registration"]
ID_NAMES = {"export": "export", "evaluate": "evaluation", "registration": "registration"}  # of the row; else "job"
GOOD_REASONS = {reason.value for reason in Reason if reason.final_state != JobState.FAILED} | {LEASE_LOST}


class LeaseUncertain(FencedError):
    """PostgreSQL was unavailable until the lease expired: whether the last transaction was committed is unknown."""


class LeaseKeeper:
    """One held lease. As a context manager it runs a thread that renews the lease and reads `desired`."""

    def __init__(self, resources: Resources, lease: Lease, claimed_at: float) -> None:
        self.lease = lease
        self.desired = Desired.RUN
        self.preempt_requested = False
        self.outcome: str = LEASE_LOST  # the reason that ended the attempt, for metrics and traces
        self._resources = resources
        self._settings = resources.settings
        self._confirmed_at = claimed_at  # when the last renewal that PostgreSQL confirmed was *sent*
        self._fenced = threading.Event()
        self._is_finishing = False
        self._released = threading.Event()

    def __enter__(self) -> LeaseKeeper:
        run_in_context = contextvars.copy_context().run  # with the ids of the job for its log lines
        self._thread = threading.Thread(
            target=run_in_context, args=(self._renew_loop,), name=f"lease-{self.lease.job_id}", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join(THREAD_EXIT_TIMEOUT_SECONDS)  # it may hang in a statement; a daemon thread blocks no exit

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
            raise FencedError(self.lease.job_id)

    def mark_lost(self, why: str, cause: LossCause = "fenced") -> None:
        """Mark the lease as lost: no further write is attempted, and the watchdog kills the trainer."""
        if not self.fenced:
            metrics.LEASES_LOST.labels(cause).inc()
            log.info("lease lost", job=self.lease.job_id, attempt=self.lease.attempt, why=why)
            self._fenced.set()

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
                with transaction(self._resources.sessions) as session:
                    if is_retry and is_done is not None and is_done(session):
                        return None
                    return work(session)
            except FencedError:
                self.mark_lost("a guarded write changed no row")
                raise
            except DATABASE_UNAVAILABLE as error:
                self._wait_for_database(error)
                is_retry = True

    def finish(self, work: Callable[[Session], Result], is_done: Callable[[Session], bool] | None = None) -> None:
        """Run the transaction that gives the lease up. From then on the renewal thread may find that the lease has
        ended."""
        self._is_finishing = True
        try:
            self.transact(work, is_done)
        except BaseException:
            self._is_finishing = False
            raise

    def append_event(self, message: str, **fields: Any) -> None:
        """Append one event to the job, exactly once; keywords as for `claims.append_event`. Raises FencedError."""
        event_id = new_id("ftevent")
        self.transact(
            lambda session: claims.append_event(session, self.lease, message, event_id=event_id, **fields),
            lambda session: events.get(session, self.lease.job_id, event_id) is not None,
        )

    def _wait_for_database(self, error: Exception) -> None:
        log.warning("database unavailable", job=self.lease.job_id, error=first_line(error))
        if self.unconfirmed_seconds > self._settings.lease_ttl_seconds:
            self.mark_lost("PostgreSQL was unavailable for longer than the lease", "database_unavailable")
            raise LeaseUncertain(self.lease.job_id) from error
        if self._fenced.wait(RETRY_SECONDS):
            raise LeaseUncertain(self.lease.job_id) from error

    def _renew_loop(self) -> None:
        while not self._released.wait(self._settings.watch_seconds):
            try:
                self._poll()
            except FencedError:
                if not (self._is_finishing or self._released.is_set()):
                    self.mark_lost("the job was cancelled, the lease expired, or a later attempt holds it")
                    return
            except DATABASE_UNAVAILABLE as error:
                metrics.LEASE_RENEWALS.labels("failed").inc()
                log.warning("lease not renewed", job=self.lease.job_id, error=first_line(error))
            except Exception:  # if this thread ended, the lease would expire while the trainer runs
                log.exception("lease not renewed", job=self.lease.job_id)

    def _poll(self) -> None:
        """Renew the lease if it is time, and read the control requests. Raises FencedError."""
        sent_at = boottime_seconds()
        is_due = sent_at - self._confirmed_at >= self._settings.lease_renew_seconds
        with transaction(self._resources.sessions) as session:
            if is_due:
                claims.renew_lease(session, self.lease, self._settings.lease_ttl_seconds)
            control = claims.read_control(session, self.lease)
        self.desired, self.preempt_requested = control.desired, control.preempt_requested
        if is_due:
            self._confirm_renewal(sent_at)

    def _confirm_renewal(self, sent_at: float) -> None:
        self._confirmed_at = sent_at
        metrics.LEASE_RENEWALS.labels("confirmed").inc()


class Claimer:
    """Claims the jobs of one slot, one at a time."""

    def __init__(
        self, resources: Resources, kind: Kind, owner: str, capacity: Callable[[], WorkerCapacity] | None = None
    ) -> None:
        """`capacity` returns what the slot offers to jobs at that moment; without it any job is claimed."""
        self.resources = resources
        self.kind = kind
        self.capacity = capacity
        self.owner = owner
        self._commit_unknown = False  # the last claim's COMMIT was not confirmed: it may have claimed a job

    def claim_next(self) -> tuple[Job, LeaseKeeper] | None:
        """Claim the next job: its row and its lease, or None if no job is due. Raises DATABASE_UNAVAILABLE."""
        settings, claimed_at = self.resources.settings, boottime_seconds()
        try:
            with transaction(self.resources.sessions) as session:
                job = self._recover_claim(session) or claims.claim(
                    session,
                    self.kind,
                    self.owner,
                    settings.lease_ttl_seconds,
                    self.capacity() if self.capacity else None,
                    settings.fair_share_half_life_seconds,
                )
        except DATABASE_UNAVAILABLE:
            self._commit_unknown = True
            raise
        self._commit_unknown = False
        if job is None:
            return None
        return job, LeaseKeeper(self.resources, Lease(job.id, job.attempt, self.owner), claimed_at)

    def _recover_claim(self, session: Session) -> Job | None:
        """The job that an unconfirmed claim did claim, with its lease renewed."""
        job = claims.find_held_job(session, self.owner) if self._commit_unknown else None
        if job is not None:
            ttl_seconds = self.resources.settings.lease_ttl_seconds
            claims.renew_lease(session, Lease(job.id, job.attempt, self.owner), ttl_seconds)
        return job


def begin_metrics() -> None:
    """Expose the counters of attempts with 0."""
    kinds = get_args(AttemptKind)
    metrics.begin(metrics.CLAIMS, kinds)
    metrics.begin(metrics.ATTEMPTS_ENDED, kinds, [*(reason.value for reason in Reason), LEASE_LOST])
    metrics.begin(metrics.LEASE_RENEWALS, ["confirmed", "failed"])
    metrics.begin(metrics.LEASES_LOST, get_args(LossCause))
    metrics.begin(metrics.PLAN_RATIO, ["memory", "time"])


@contextmanager
def observed_attempt(kind: AttemptKind, keeper: LeaseKeeper, job: Job | None = None) -> Iterator[None]:
    """Count the attempt of `keeper`, trace it, and add its ids to all log lines of the block.

    Its span belongs to the trace of the request that created `job`; an export's or an evaluation's is the job that it
    belongs to. Threads that are created within the block have the same context if they run
    `contextvars.copy_context().run`.
    """
    lease, began_at = keeper.lease, time.monotonic()
    ids: dict[str, str | int] = {ID_NAMES.get(kind, "job"): lease.job_id, "attempt": lease.attempt}
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
