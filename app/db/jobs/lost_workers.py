"""The end of attempts whose worker is lost: the reconciler or a restarted slot finds them by their leases.

Never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.jobs import claims, evaluations, leased_rows
from app.db.jobs.leased_rows import Row
from app.db.tables import BaseModelRegistration, Evaluation, Export, Job
from app.domain.jobs.states import Reason


def lock_expired(session: Session, grace_seconds: float, limit: int = 100) -> list[Job]:
    """Lock and return jobs whose lease expired at least `grace_seconds` ago."""
    return list(
        session.scalars(
            select(Job)
            .where(
                Job.lease_owner.is_not(None),
                Job.lease_expires_at + timedelta(seconds=grace_seconds) < func.clock_timestamp(),
            )
            .order_by(Job.lease_expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
    )


def end_all(session: Session) -> None:
    """End all attempts in a restored database: their holders are of another service."""
    for job in session.scalars(select(Job).where(Job.lease_owner.is_not(None)).with_for_update()):
        text = "The service was restored from a backup that was made during an attempt; the job is queued"
        claims.finish_attempt(session, job, Reason.DRAINED, f"{text} again and resumes from its last snapshot")


def count_held(session: Session) -> int:
    """The number of jobs that a worker holds."""
    return session.scalar(select(func.count()).where(Job.lease_owner.is_not(None))) or 0


def held_by_previous_incarnation(session: Session, slot: str, owner: str) -> list[Job]:
    """Lock and return jobs that an earlier process of this slot holds; it is dead, as `owner` has the slot's lock.

    Waits for locked rows: the lock is of the dead process's last write, which PostgreSQL will roll back.
    """
    return list(
        session.scalars(
            select(Job)
            .where(Job.lease_owner.startswith(f"{slot}#", autoescape=True), Job.lease_owner != owner)
            .with_for_update()
        )
    )


def reap(session: Session, job: Job, delay_seconds: float, max_crash_streak: int) -> Job:
    """End the attempt of a lost holder; the caller has locked `job` by one of the functions above."""
    return claims.finish_attempt(
        session,
        job,
        Reason.WORKER_LOST,
        f"The worker {job.lease_owner} was lost",
        level="warn",
        delay_seconds=delay_seconds,
        max_crash_streak=max_crash_streak,
    )


def server_clock_seconds(session: Session) -> float:
    """PostgreSQL's time, which decides leases, in seconds since 1970."""
    return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)


def server_uptime_seconds(session: Session) -> float:
    """Seconds since the start of PostgreSQL; before it, no worker could renew a lease."""
    seconds = session.scalar(text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"))
    return float(seconds or 0)


WORKER_LOST = "worker_lost"  # in the error codes of all tables


def reap_expired(
    session: Session, table: type[Row], grace_seconds: float, delay_seconds: float, max_streak: int
) -> Sequence[Row]:
    """End the attempts whose lease expired at least `grace_seconds` ago."""
    return _reap(session, leased_rows.lock_expired(session, table, grace_seconds), delay_seconds, max_streak)


def reap_previous_incarnation(session: Session, slot: str, owner: str, delay_seconds: float, max_streak: int) -> None:
    """End the attempts that an earlier process of this slot holds; it is dead, as `owner` has the slot's lock."""
    for table in (Export, Evaluation, BaseModelRegistration):
        lost = leased_rows.lock_previous_incarnation(session, table, slot, owner)
        _reap(session, lost, delay_seconds, max_streak)


def _reap(session: Session, lost: Sequence[Row], delay_seconds: float, max_streak: int) -> Sequence[Row]:
    for row in lost:
        message = f"The worker {row.lease_owner} was lost during attempt {row.attempt}"
        if isinstance(row, Evaluation):
            evaluations.retry_or_fail(session, row, WORKER_LOST, message, delay_seconds, max_streak)
        else:
            leased_rows.retry_or_fail(session, row, WORKER_LOST, message, delay_seconds, max_streak)
    return lost
