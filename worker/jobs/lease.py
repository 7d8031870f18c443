"""Keeping a lease while its job is worked on: renewals, what the user wants, writes that outlive a database restart.

Durations only, never clock times, and by CLOCK_BOOTTIME: `time.monotonic()` stands still while a machine is suspended,
and PostgreSQL's clock does not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.ids import new_id
from app.db.jobs import claims, events
from app.db.jobs.claims import FencedError, Lease
from app.db.scheduling.fair_queue import Kind
from app.db.tables import Job
from app.domain.jobs.states import Desired
from app.domain.scheduling.worker_capacity import Offer
from app.log import get_logger
from worker.node.resources import Resources

Result = TypeVar("Result")
# InternalError: PostgreSQL gave up our transaction, as this process stood still in the middle of it.
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
RETRY_SECONDS = 0.5

log = get_logger(__name__)


def boottime_seconds() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class OutOfTouch(FencedError):
    """PostgreSQL was away until the lease had run out: whether the last transaction was committed is not known."""


class LeaseKeeper:
    """One held lease. `with` it: a thread renews it and looks at `desired` until the block ends."""

    def __init__(self, resources: Resources, lease: Lease, claimed_at: float) -> None:
        self.lease = lease
        self.desired = Desired.RUN
        self.gives_way = False
        self._resources = resources
        self._settings = resources.settings
        self._confirmed_at = claimed_at  # when the last renewal that PostgreSQL confirmed was *sent*
        self._fenced = threading.Event()
        self._is_concluding = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{lease.job_id}", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join(timeout=5)  # it may hang in a statement; being a daemon, it keeps nobody from leaving

    @property
    def fenced(self) -> bool:
        return self._fenced.is_set()

    @property
    def unconfirmed_seconds(self) -> float:
        return boottime_seconds() - self._confirmed_at

    def check(self) -> None:
        """Raises FencedError. To be asked between the steps of long work."""
        if self.fenced:
            raise FencedError(self.lease.job_id)

    def lose(self, why: str) -> None:
        """From here on the job is not ours: no write is tried any more, the trainer is killed."""
        if not self.fenced:
            log.info("lease lost", job=self.lease.job_id, attempt=self.lease.attempt, why=why)
            self._fenced.set()

    def transact(
        self, work: Callable[[Session], Result], unless: Callable[[Session], bool] | None = None
    ) -> Result | None:
        """Run `work` in one transaction; while PostgreSQL is away, again and again until the lease has run out.

        A connection lost during COMMIT says nothing about the COMMIT: before each repetition `unless` looks whether the
        work is done already. Raises FencedError; OutOfTouch when it will never be known.
        """
        repeated = False
        while True:
            self.check()
            try:
                with transaction(self._resources.sessions) as session:
                    if repeated and unless is not None and unless(session):
                        return None
                    return work(session)
            except FencedError:
                self.lose("a guarded write changed no row")
                raise
            except DATABASE_AWAY as error:
                self._wait_for_database(error)
                repeated = True

    def conclude(self, work: Callable[[Session], Result], unless: Callable[[Session], bool] | None = None) -> None:
        """The last transaction of the lease, which gives it up; that its thread finds it gone is no loss any more."""
        self._is_concluding = True
        try:
            self.transact(work, unless)
        except BaseException:
            self._is_concluding = False
            raise

    def say(self, message: str, **said: Any) -> None:
        """One event of the job, exactly once; keywords as for `claims.append_event`."""
        event_id = new_id("ftevent")
        self.transact(
            lambda session: claims.append_event(session, self.lease, message, event_id=event_id, **said),
            lambda session: events.get(session, self.lease.job_id, event_id) is not None,
        )

    def _wait_for_database(self, error: Exception) -> None:
        log.warning("database away", job=self.lease.job_id, error=_first_line(error))
        if self.unconfirmed_seconds > self._settings.lease_ttl_seconds:
            self.lose("PostgreSQL was away for longer than the lease")
            raise OutOfTouch(self.lease.job_id) from error
        if self._fenced.wait(RETRY_SECONDS):
            raise OutOfTouch(self.lease.job_id) from error

    def _keep(self) -> None:
        while not self._released.wait(self._settings.watch_seconds):
            try:
                self._look()
            except FencedError:
                if not (self._is_concluding or self._released.is_set()):
                    self.lose("it was cancelled, it expired, or a later attempt has it")
                    return
            except DATABASE_AWAY as error:
                log.warning("lease not renewed", job=self.lease.job_id, error=_first_line(error))
            except Exception:  # a thread that dies in silence would let the lease run out under a live trainer
                log.exception("lease not renewed", job=self.lease.job_id)

    def _look(self) -> None:
        """One look at what is wanted, which also finds out that we are fenced; a renewal when it is time."""
        sent_at = boottime_seconds()
        is_due = sent_at - self._confirmed_at >= self._settings.lease_renew_seconds
        with transaction(self._resources.sessions) as session:
            if is_due:
                claims.renew_lease(session, self.lease, self._settings.lease_ttl_seconds)
            control = claims.read_control(session, self.lease)
        self.desired, self.gives_way = control.desired, control.preempt_requested
        if is_due:
            self._confirmed_at = sent_at


class Claimer:
    """Takes the jobs of one slot, one at a time."""

    def __init__(self, resources: Resources, kind: Kind, owner: str, offer: Callable[[], Offer] | None = None) -> None:
        """`offer` says what there is for jobs at this moment; without it every job is taken."""
        self.resources = resources
        self.kind = kind
        self.offer = offer
        self.owner = owner
        self._unsure = False  # the last claim's COMMIT was not answered: a job may be ours without our knowing

    def take(self) -> tuple[Job, LeaseKeeper] | None:
        """The next job and its lease, or None when nothing waits. Raises what DATABASE_AWAY names."""
        claimed_at = boottime_seconds()
        try:
            with transaction(self.resources.sessions) as session:
                job = self._adopt(session) or self._claim(session)
        except DATABASE_AWAY:
            self._unsure = True
            raise
        self._unsure = False
        if job is None:
            return None
        return job, LeaseKeeper(self.resources, Lease(job.id, job.attempt, self.owner), claimed_at)

    @property
    def _ttl_seconds(self) -> float:
        return self.resources.settings.lease_ttl_seconds

    def _claim(self, session: Session) -> Job | None:
        offer = self.offer() if self.offer else None
        half_life_seconds = self.resources.settings.fair_share_half_life_seconds
        return claims.claim(session, self.kind, self.owner, self._ttl_seconds, offer, half_life_seconds)

    def _adopt(self, session: Session) -> Job | None:
        job = claims.find_held_job(session, self.owner) if self._unsure else None
        if job is not None:
            claims.renew_lease(session, Lease(job.id, job.attempt, self.owner), self._ttl_seconds)
        return job


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
