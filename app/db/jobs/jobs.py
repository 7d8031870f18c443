"""Jobs and their attempts, for their user: create, read, cancel, pause, resume.

Two modules change a job's state: this one for the user, app.db.jobs.claims for the holder of the lease. Never commits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import and_, case, func, inspect, null, select, text, update
from sqlalchemy.orm import Session

from app.db.access import audit
from app.db.ids import new_id
from app.db.jobs import leases
from app.db.jobs.events import update_job
from app.db.tables import Attempt, Job
from app.db.tables.base import core_table
from app.domain.jobs.states import TERMINAL, Desired, JobState, Reason

ACTIVE_STATES = [state.value for state in JobState if state not in TERMINAL]
ALL_STATES = [state.value for state in JobState]

COLUMNS = {attribute.key: attribute.columns[0] for attribute in inspect(Job).column_attrs}
RETURNED = ", ".join(core_table(Job).c.keys())
# The job, of its `{given}` columns, and its events in one round trip, without the ORM.
INSERT = f"""
WITH job AS (
  INSERT INTO jobs ({{given}}) SELECT {{given}} FROM jsonb_populate_record(NULL::jobs, CAST(:given AS jsonb))
  RETURNING {RETURNED}
), events AS (
  INSERT INTO job_events (job_id, seq, id, project_id, attempt, level, type, message, data)
  SELECT job.id, event.seq, event.id, project_id, attempt, CASE event.seq WHEN 1 THEN 'info' ELSE 'warn' END,
    'message', message, CAST('{{{{}}}}' AS jsonb)
  FROM job,
    unnest(CAST(:event_ids AS text[]), CAST(:messages AS text[])) WITH ORDINALITY AS event (id, message, seq)
)
SELECT * FROM job
"""


def insert(session: Session, job: Job) -> Any:
    """Create a job in `validating_files` with its first event, and an event for each warning; the row of its table."""
    job.id = new_id("ftjob")
    messages = [f"Created fine-tuning job: {job.id}", *(warning["message"] for warning in job.warnings or ())]
    job.event_seq = len(messages)
    given = {COLUMNS[key].name: value for key, value in vars(job).items() if key in COLUMNS and value is not None}
    event_ids = [new_id("ftevent") for _ in messages]
    audit.record(session, job.id, job.project_id)
    values = {"given": json.dumps(given), "event_ids": event_ids, "messages": messages}
    return session.execute(text(INSERT.format(given=", ".join(given))), values).one()


def get(session: Session, project_id: str, job_id: str) -> Job | None:
    """A job that is not deleted."""
    is_wanted = and_(Job.project_id == project_id, Job.id == job_id, Job.deleted_at.is_(None))
    return session.scalar(select(Job).where(is_wanted))


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
