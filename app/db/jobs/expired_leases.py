"""Jobs whose holder is gone: found by their leases, and ended. For the reconciler and for a slot that starts again."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.jobs import claims
from app.db.tables import Job
from app.domain.jobs.states import Reason


def lock_expired(session: Session, grace_seconds: float, limit: int = 100) -> list[Job]:
    """Jobs whose holder has not renewed for its lease and the grace on top; locked until this transaction ends."""
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


def count_held(session: Session) -> int:
    return session.scalar(select(func.count()).where(Job.lease_owner.is_not(None))) or 0


def held_by_previous_incarnation(session: Session, slot: str, owner: str) -> list[Job]:
    """Jobs an earlier process of this slot still holds; it is dead, as its successor has the slot's lock.

    Waits for a row that is locked: it is by the dead process's last write, which PostgreSQL is about to roll back.
    """
    return list(
        session.scalars(
            select(Job)
            .where(Job.lease_owner.startswith(f"{slot}#", autoescape=True), Job.lease_owner != owner)
            .with_for_update()
        )
    )


def reap(session: Session, job: Job, delay_seconds: float, max_crash_streak: int) -> Job:
    """End the attempt of a lost holder; `job` was locked by `expired` or `held_by_predecessors`."""
    message = f"The worker {job.lease_owner} was lost during attempt {job.attempt}"
    return claims.finish_attempt(
        session, job, Reason.WORKER_LOST, message, "warn", None, None, delay_seconds, max_crash_streak, columns={}
    )


def server_uptime_seconds(session: Session) -> float:
    """How long PostgreSQL has been up: nobody could renew a lease while it was down."""
    seconds = session.scalar(text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"))
    return float(seconds or 0)
