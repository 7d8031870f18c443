"""Jobs and their attempts, for their user: create, read, cancel, pause, resume.

Two modules change a job's state: this one for the user, app.db.jobs.claims for the holder of the lease. Never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, func, null, select, update
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import leases
from app.db.jobs.events import append_event, next_event_seq
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
    session: Session, project_id: str, job_id: str, states: Sequence[str], message: str, **columns: Any
) -> Job | None:
    """Update columns that the user may change, with an event. None if the job is in none of `states`."""
    job = _update_by_user(session, project_id, job_id, states, **columns)
    if job is not None:
        append_event(session, job, message)
    return job


def unfinished_ids(session: Session, project_id: str) -> list[str]:
    """The ids of the project's unfinished jobs, oldest first."""
    return list(
        session.scalars(
            select(Job.id).where(Job.project_id == project_id, Job.state.in_(ACTIVE_STATES)).order_by(Job.seq)
        )
    )


def cancel(session: Session, project_id: str, job_id: str) -> Job | None:
    """Cancel an unfinished job at once, also while a worker holds it: the holder is fenced. None if it has ended."""
    job = _update_by_user(
        session,
        project_id,
        job_id,
        ACTIVE_STATES,
        state=JobState.CANCELLED,
        desired=Desired.CANCEL,
        reason=Reason.CANCELLED,
        phase=None,
        **leases.RELEASED,
        yield_requested_at=null(),
        finished_at=func.clock_timestamp(),
    )
    if job is None:
        return None
    _close_attempt(session, job.id)
    append_event(session, job, "The job was cancelled")
    return job


def pause(session: Session, project_id: str, job_id: str) -> Job | None:
    """Request a pause: a queued job is `paused` at once, a running one at its next step boundary.

    None if the job is neither queued nor running.
    """
    is_queued = Job.state == JobState.QUEUED
    job = _update_by_user(
        session,
        project_id,
        job_id,
        [JobState.QUEUED, JobState.RUNNING],
        state=case((is_queued, JobState.PAUSED.value), else_=Job.state),
        reason=case((is_queued, Reason.PAUSED.value), else_=Job.reason),
        phase=case((is_queued, null()), else_=Job.phase),
        storage_full_since=case((is_queued, null()), else_=Job.storage_full_since),
        desired=Desired.PAUSE,
    )
    if job is not None:
        is_paused = job.state == JobState.PAUSED
        append_event(session, job, "The job was paused" if is_paused else "The job will pause at its next step")
    return job


def resume(session: Session, project_id: str, job_id: str) -> Job | None:
    """`paused` -> `queued`. None if the job is not paused."""
    job = _update_by_user(
        session,
        project_id,
        job_id,
        [JobState.PAUSED],
        state=JobState.QUEUED,
        desired=Desired.RUN,
        run_after=func.clock_timestamp(),
        storage_full_since=null(),
    )
    if job is not None:
        append_event(session, job, "The job was resumed, moving it to queued state")
    return job


def _update_by_user(session: Session, project_id: str, job_id: str, states: Sequence[str], **values: Any) -> Job | None:
    """Update the job and take the number of its next event; None if the job is in none of `states`."""
    return session.execute(
        update(Job)
        .where(Job.project_id == project_id, Job.id == job_id, Job.state.in_(states))
        .values(**values, **next_event_seq())
        .returning(Job)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()


def _close_attempt(session: Session, job_id: str) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        .values(ended_at=func.clock_timestamp(), reason=Reason.CANCELLED)
    )
