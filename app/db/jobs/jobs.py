"""Jobs as their owner sees them: created, read, cancelled. Never commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, case, func, null, select, update
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs.events import append_event, next_event_seq
from app.db.tables import Attempt, Job
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import TERMINAL, Desired, JobState, Reason

ACTIVE_STATES = [state.value for state in JobState if state not in TERMINAL]
ALL_STATES = [state.value for state in JobState]


def insert(
    session: Session,
    project_id: str,
    spec: JobSpec,
    training_file_id: str,
    validation_file_id: str | None = None,
    suffix: str | None = None,
    metadata: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    **columns: Any,
) -> Job:
    """Create a job in `validating_files` together with its first event, and one for each warning."""
    job = Job(
        id=new_id("ftjob"),
        project_id=project_id,
        base_model=spec.base_model,
        spec=spec.model_dump(mode="json"),
        training_file_id=training_file_id,
        validation_file_id=validation_file_id,
        suffix=suffix,
        user_metadata=dict(metadata) if metadata is not None else None,
        event_seq=1,
        warnings=[
            {"code": "without_effect", "message": warning, "file": None, "count": 1, "first_lines": []}
            for warning in warnings
        ],
        **columns,
    )
    session.add(job)
    session.flush()
    append_event(session, job, f"Created fine-tuning job: {job.id}")
    for warning in warnings:
        job.event_seq += 1
        append_event(session, job, warning, level="warn")
    if warnings:
        session.refresh(job)  # the UPDATE counted its version; the INSERT has told every other default
    return job


def get(session: Session, project_id: str, job_id: str) -> Job | None:
    return session.scalar(_jobs_of(project_id).where(Job.id == job_id))


def get_versions(session: Session, project_id: str, job_id: str) -> tuple[int, int] | None:
    """(event_seq, version): what tells whether a job, its events and its checkpoints have changed."""
    query = select(Job.event_seq, Job.version).where(Job.project_id == project_id, Job.id == job_id)
    found = session.execute(query).one_or_none()
    return None if found is None else (found.event_seq, found.version)


def change(
    session: Session, project_id: str, job_id: str, states: Sequence[str], message: str, **columns: Any
) -> Job | None:
    """What its owner may change of a job that was created. None when it is in none of `states`."""
    job = _update_by_owner(session, project_id, job_id, states, **columns)
    if job is not None:
        append_event(session, job, message)
    return job


def unfinished_ids(session: Session, project_id: str) -> list[str]:
    """Ids, oldest first."""
    return list(
        session.scalars(
            select(Job.id).where(Job.project_id == project_id, Job.state.in_(ACTIVE_STATES)).order_by(Job.seq)
        )
    )


def cancel(session: Session, project_id: str, job_id: str) -> Job | None:
    """Move a job that has not ended to `cancelled`, here and now; whoever holds it finds itself fenced.

    None when there is nothing to cancel any more. The one exception to "only the holder writes the state".
    """
    job = _update_by_owner(
        session,
        project_id,
        job_id,
        ACTIVE_STATES,
        state=JobState.CANCELLED,
        desired=Desired.CANCEL,
        reason=Reason.CANCELLED,
        phase=None,
        lease_owner=null(),
        lease_expires_at=null(),
        yield_requested_at=null(),
        finished_at=func.clock_timestamp(),
    )
    if job is None:
        return None
    _close_attempt(session, job.id)
    append_event(session, job, "The job was cancelled")
    return job


def pause(session: Session, project_id: str, job_id: str) -> Job | None:
    """Ask for a pause: a queued job is `paused` here and now, a running one at its next step boundary.

    None when the job is in no state to be paused.
    """
    waiting = Job.state == JobState.QUEUED
    job = _update_by_owner(
        session,
        project_id,
        job_id,
        [JobState.QUEUED, JobState.RUNNING],
        state=case((waiting, JobState.PAUSED.value), else_=Job.state),
        reason=case((waiting, Reason.PAUSED.value), else_=Job.reason),
        phase=case((waiting, null()), else_=Job.phase),
        storage_full_since=case((waiting, null()), else_=Job.storage_full_since),
        desired=Desired.PAUSE,
    )
    if job is not None:
        done = "The job was paused" if job.state == JobState.PAUSED else "The job will pause at its next step"
        append_event(session, job, done)
    return job


def resume(session: Session, project_id: str, job_id: str) -> Job | None:
    """`paused` -> `queued`. None when the job is not paused."""
    job = _update_by_owner(
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


def _update_by_owner(
    session: Session, project_id: str, job_id: str, states: Sequence[str], **values: Any
) -> Job | None:
    """One guarded UPDATE for the owner's wishes, ready to be told of; None when the job is in none of `states`."""
    return session.execute(
        update(Job)
        .where(Job.project_id == project_id, Job.id == job_id, Job.state.in_(states))
        .values(**values, **next_event_seq())
        .returning(Job)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()


def _jobs_of(project_id: str) -> Select[Job]:
    return select(Job).where(Job.project_id == project_id)


def _close_attempt(session: Session, job_id: str) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        .values(ended_at=func.clock_timestamp(), reason=Reason.CANCELLED)
    )


def log_fields(job: Job) -> dict[str, Any]:
    """For logs: which job, in which state, by whom."""
    return {"job": job.id, "state": job.state, "attempt": job.attempt, "owner": job.lease_owner}
