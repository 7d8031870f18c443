"""Jobs and their attempts, for their user: create, read, cancel, pause, resume.

Two modules change a job's state: this one for the user, app.db.jobs.claims for the holder of the lease. Never commits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import and_, case, func, null, select, update
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import leases
from app.db.jobs.events import append_event, update_job
from app.db.tables import Attempt, Job
from app.domain.jobs.states import TERMINAL, Desired, JobState, Reason

ACTIVE_STATES = [state.value for state in JobState if state not in TERMINAL]
ALL_STATES = [state.value for state in JobState]


def insert(session: Session, job: Job) -> Job:
    """Create a job in `validating_files` with its first event, and an event for each warning."""
    job.id, job.event_seq = new_id("ftjob"), 1
    session.add(job)
    session.flush()
    append_event(session, job, f"Created fine-tuning job: {job.id}")
    for warning in job.warnings:
        job.event_seq += 1
        append_event(session, job, warning["message"], level="warn")
    if job.warnings:
        session.refresh(job)  # the UPDATE increments `version`; all other defaults are known from the INSERT
    return job


def get(session: Session, project_id: str, job_id: str) -> Job | None:
    return session.scalar(select(Job).where(Job.project_id == project_id, Job.id == job_id))


def change(
    session: Session,
    project_id: str,
    job_id: str,
    states: Sequence[str],
    message: str | Callable[[Job], str],
    **columns: Any,
) -> Job | None:
    """Update columns for the user, with an event. None if the job is in none of `states`."""
    is_allowed = and_(Job.project_id == project_id, Job.id == job_id, Job.state.in_(states))
    return update_job(session, is_allowed, message, **columns)


def unfinished_ids(session: Session, project_id: str) -> list[str]:
    """The ids of the project's unfinished jobs, oldest first."""
    return list(
        session.scalars(
            select(Job.id).where(Job.project_id == project_id, Job.state.in_(ACTIVE_STATES)).order_by(Job.seq)
        )
    )


def cancel(session: Session, project_id: str, job_id: str) -> Job | None:
    """Cancel an unfinished job at once, also while a worker holds it: the holder is fenced. None if it has ended."""
    job = change(
        session,
        project_id,
        job_id,
        ACTIVE_STATES,
        "The job was cancelled",
        state=JobState.CANCELLED,
        desired=Desired.CANCEL,
        reason=Reason.CANCELLED,
        phase=None,
        **leases.RELEASED,
        yield_requested_at=null(),
        finished_at=func.clock_timestamp(),
    )
    if job is not None:
        close_attempt(session, job_id, Reason.CANCELLED)
    return job


def pause(session: Session, project_id: str, job_id: str) -> Job | None:
    """Request a pause: a queued job is `paused` at once, a running one at its next step boundary.

    None if the job is neither queued nor running.
    """

    def message(job: Job) -> str:
        return "The job was paused" if job.state == JobState.PAUSED else "The job will pause at its next step"

    is_queued = Job.state == JobState.QUEUED
    return change(
        session,
        project_id,
        job_id,
        [JobState.QUEUED, JobState.RUNNING],
        message,
        state=case((is_queued, JobState.PAUSED.value), else_=Job.state),
        reason=case((is_queued, Reason.PAUSED.value), else_=Job.reason),
        phase=case((is_queued, null()), else_=Job.phase),
        storage_full_since=case((is_queued, null()), else_=Job.storage_full_since),
        desired=Desired.PAUSE,
    )


def resume(session: Session, project_id: str, job_id: str) -> Job | None:
    """`paused` -> `queued`. None if the job is not paused."""
    return change(
        session,
        project_id,
        job_id,
        [JobState.PAUSED],
        "The job was resumed, moving it to queued state",
        state=JobState.QUEUED,
        desired=Desired.RUN,
        run_after=func.clock_timestamp(),
        storage_full_since=null(),
    )


def close_attempt(session: Session, job_id: str, reason: Reason) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        .values(ended_at=func.clock_timestamp(), reason=reason)
    )
