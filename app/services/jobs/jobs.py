"""Use cases of jobs: create, read, change, cancel, pause, resume. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from app.db import files
from app.db.access import audit
from app.db.fast_reads import job_reads
from app.db.fast_reads.job_reads import JobFilter
from app.db.jobs import evaluations, exports, jobs
from app.db.tables import Evaluation, Export, File, Job, TunedModel
from app.domain.error_text.json_text import unquoted
from app.domain.jobs.states import TERMINAL, Desired, JobState
from app.errors import BadRequest, NotFound
from app.job_queue import WorkerNotifier
from app.services import base_models, resources
from app.services.access import quotas
from app.services.jobs.requests import build_job
from app.services.resources import Page
from app.settings import Settings
from app.telemetry.tracing import current_traceparent

JobRow = Row[*tuple[Any, ...]]  # of app.db.fast_reads.job_reads.JOB


def create(
    session: Session,
    notifier: WorkerNotifier,
    project_id: str,
    is_admin: bool,
    body: Mapping[str, Any],
    settings: Settings,
    original: Job | None = None,
) -> JobRow:
    """Create a job, or a clone of `original` with the changes in `body`. Raises as `build_job`; QuotaExceeded."""
    job = build_job(session, project_id, is_admin, body, settings.endpoints, original)
    (row,) = insert_all(session, notifier, settings, [job])
    return row


def insert_all(
    session: Session, notifier: WorkerNotifier, settings: Settings, built: Sequence[Job]
) -> Sequence[JobRow]:
    """Insert built jobs of one project. Raises QuotaExceeded."""
    quotas.require_queue_quota(session, built[0].project_id, settings.max_queued_jobs, len(built))
    rows = []
    for job in built:
        job.request_id, job.traceparent = audit.request_id(), current_traceparent()
        rows.append(job_reads.of_new(jobs.insert(session, job)))
    notifier.after_commit(session, "cpu")
    return rows


def get(session: Session, project_id: str, job_id: str, param: str = "id") -> Job:
    job = jobs.get(session, project_id, job_id)
    if job is None:
        raise job_not_found(job_id, param)
    return job


def page(
    session: Session, job_filter: JobFilter, page: Page, query: Select[*tuple[Any, ...]] = job_reads.JOB
) -> Sequence[JobRow]:
    """The rows of `query`, JOB or VERSION, of a page of jobs. Raises BadRequest for an unknown `page.after`."""
    last = job_reads.find_last(session, job_filter.project_id, page.after) if page.after is not None else None
    if page.after is not None and last is None:
        raise resources.unknown_cursor_error("job", page.after)
    return job_reads.page(session, job_filter, page.rows, last, query)


def cancel(session: Session, job: Job) -> JobRow:
    """Cancel a job at once, also a running one; no error if it is cancelled already. Raises BadRequest."""
    if jobs.cancel(session, job.project_id, job.id) is None:
        session.refresh(job)
    if job.state != JobState.CANCELLED:
        raise _wrong_state(job, "cancelled", "a job that has not ended")
    return job_reads.get(session, job.id)


def pause(session: Session, job: Job) -> JobRow:
    """Pause a queued job at once, a running one at its next step; no error if that is requested already.

    Raises BadRequest.
    """
    is_requested = job.state == JobState.RUNNING and job.desired == Desired.PAUSE
    if not is_requested and jobs.pause(session, job.project_id, job.id) is None:
        session.refresh(job)
        raise _wrong_state(job, "paused", "a queued or running job")
    return job_reads.get(session, job.id)


def resume(session: Session, notifier: WorkerNotifier, job: Job, default_max_queued_jobs: int) -> JobRow:
    """Resume a paused job. The state is checked before the quota, as waiting does not change the state.

    Raises BadRequest, QuotaExceeded.
    """
    if job.state == JobState.PAUSED:
        quotas.require_queue_quota(session, job.project_id, default_max_queued_jobs)
    if jobs.resume(session, job.project_id, job.id) is None:
        session.refresh(job)
        raise _wrong_state(job, "resumed", "a paused job")
    notifier.after_commit(session, "gpu")
    return job_reads.get(session, job.id)


def change(session: Session, job: Job, given: Mapping[str, Any]) -> JobRow:
    """Change `priority`, `suffix` and `metadata`; values that are equal to the old ones cause no update and no event.

    Raises BadRequest for the `priority` of a job that has ended.
    """
    states = jobs.ACTIVE_STATES if "priority" in given else jobs.ALL_STATES
    columns = {"user_metadata" if name == "metadata" else name: value for name, value in given.items()}
    if "priority" in given:
        columns["priority"] = given["priority"] or 0
    columns = {name: value for name, value in columns.items() if getattr(job, name) != value}
    if columns and jobs.change(session, job.project_id, job.id, states, _change_message(columns), **columns) is None:
        session.refresh(job)  # it may have ended since it was read
    if job.state not in states:
        raise _wrong_state(job, "given another priority", "a job that has not ended")
    return job_reads.get(session, job.id)


def delete(session: Session, job: Job) -> None:
    """Delete a job that has ended, with its models, files, exports and evaluations. Raises BadRequest.

    Bytes that other unfinished work reads are kept until it has ended, as those of every deleted file.
    """
    ended = [state.value for state in TERMINAL]
    if jobs.change(session, job.project_id, job.id, ended, "The job was deleted", deleted_at=func.now()) is None:
        session.refresh(job)
        raise _wrong_state(job, "deleted", "a job that has ended")
    for model in session.scalars(
        select(TunedModel).where(TunedModel.job_id == job.id, TunedModel.deleted_at.is_(None))
    ):
        base_models.delete(session, job.project_id, model.id)
    # Files first: a request that creates an export or an evaluation holds locks on them, and is seen below.
    files.delete_all(session, session.scalars(select(File.id).where(File.job_id == job.id)))
    for export in session.scalars(select(Export).where(Export.job_id == job.id, Export.deleted_at.is_(None))):
        exports.delete(session, export)
    for evaluation in session.scalars(select(Evaluation).where(Evaluation.job_id == job.id)):
        evaluations.cancel(session, evaluation)


def job_not_found(job_id: str, param: str = "id") -> NotFound:
    return NotFound(f"No such fine-tuning job: {unquoted(job_id)}", param)


def _change_message(columns: Mapping[str, Any]) -> str:
    changed = [f"priority to {columns['priority']}"] if "priority" in columns else []
    changed += [f"name to {columns['suffix'] or 'none'}"] if "suffix" in columns else []
    changed += ["metadata"] if "user_metadata" in columns else []
    what, *value = changed[0].split(" ", 1)
    return f"The {' '.join([what, 'was changed', *value])}" + "".join(f", and the {one}" for one in changed[1:])


def _wrong_state(job: Job, verb: str, allowed: str) -> BadRequest:
    """The error for a job whose row was read again after the refused change."""
    return BadRequest(f"Job {job.id} is {job.state}; only {allowed} can be {verb}.", code="invalid_job_state")
