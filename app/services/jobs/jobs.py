"""Use cases of jobs: create, read, change, cancel, pause, resume. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from app.db.access import audit
from app.db.deliveries import deliveries
from app.db.jobs import checkpoints, jobs, pages
from app.db.jobs.pages import JobFilter
from app.db.scheduling import queue_positions
from app.db.tables import Job, Project, QueuePlace
from app.domain.error_text.json_text import as_json
from app.domain.jobs.states import Desired, JobState
from app.errors import BadRequest, NotFound, NotPermitted
from app.job_queue import WorkerNotifier
from app.services.access import quotas
from app.services.jobs.requests import JobRequest, SchedulingOptions, resolve_request
from app.settings import Settings
from app.telemetry.tracing import current_traceparent

QueueState = tuple[
    int | None, datetime | None, str | None
]  # (position, expected start, why no worker can take the job)


@dataclass(frozen=True)
class JobView:
    """A job with columns of other tables that a response contains."""

    job: Job
    queue_position: int | None
    adapter_file_ids: list[str] | None
    expected_start_at: datetime | None = None
    waiting_for: str | None = None
    compatibility: dict[str, Any] | None = None  # of the result's manifest
    deliveries: Sequence[dict[str, Any]] = ()

    @property
    def queue_state(self) -> QueueState:
        return self.queue_position, self.expected_start_at, self.waiting_for


def create(
    session: Session,
    notifier: WorkerNotifier,
    project_id: str,
    request: JobRequest,
    is_admin: bool,
    settings: Settings,
) -> JobView:
    """Create a job. Raises as `resolve_request`; NotPermitted for an urgent job; QuotaExceeded."""
    resolved = resolve_request(session, project_id, request, settings.endpoints)
    require_urgent_permission(resolved.project, request.scheduling, is_admin)
    quotas.require_queue_quota(session, project_id, settings.max_queued_jobs)
    job = jobs.insert(
        session,
        project_id,
        resolved.spec,
        resolved.training_file.id,
        resolved.validation_file.id if resolved.validation_file else None,
        suffix=request.suffix,
        metadata=request.metadata,
        priority=request.scheduling.priority,
        is_urgent=request.scheduling.is_urgent,
        worker_labels=list(request.scheduling.worker_labels),
        deliver_to=resolved.deliver_to,
        cloned_from=request.cloned_from,
        request=dict(request.sent_body),
        warnings=resolved.warnings,
        request_id=audit.request_id(),
        traceparent=current_traceparent(),
    )
    notifier.after_commit(session, "cpu")
    return JobView(job, None, None)


def get(session: Session, project_id: str, job_id: str) -> Job:
    job = jobs.get(session, project_id, job_id)
    if job is None:
        raise job_not_found(job_id)
    return job


def page(session: Session, job_filter: JobFilter, limit: int, after: str | None) -> list[JobView]:
    """A page of jobs, newest first. Raises BadRequest for an unknown `after`."""
    last = _cursor(session, job_filter, after)
    return _views(session, pages.page(session, job_filter, limit, last))


def page_versions(
    session: Session, job_filter: JobFilter, limit: int, after: str | None
) -> list[tuple[str, int, QueueState]]:
    """(id, version, queue state) of each job of a page. Raises as `page`."""
    last = _cursor(session, job_filter, after)
    rows = pages.page_versions(session, job_filter, limit, last)
    places = queue_positions.get_positions(session, [job_id for job_id, _, state in rows if state == JobState.QUEUED])
    return [(job_id, version, _queue_state(places.get(job_id))) for job_id, version, _ in rows]


def get_versions(session: Session, project_id: str, job_id: str) -> tuple[int, int]:
    """(event_seq, version) of a job."""
    versions = jobs.get_versions(session, project_id, job_id)
    if versions is None:
        raise job_not_found(job_id)
    return versions


def cancel(session: Session, project_id: str, job_id: str) -> JobView:
    """Cancel a job at once, also a running one; no error if it is cancelled already. Raises NotFound, BadRequest."""
    job = jobs.cancel(session, project_id, job_id) or get(session, project_id, job_id)
    if job.state != JobState.CANCELLED:
        raise _wrong_state(job, "cancelled", "a job that has not ended")
    return _views(session, [job])[0]


def pause(session: Session, project_id: str, job_id: str) -> JobView:
    """Pause a queued job at once, a running one at its next step; no error if that is requested already.

    Raises NotFound, BadRequest.
    """
    job = get(session, project_id, job_id)
    if not (job.state == JobState.RUNNING and job.desired == Desired.PAUSE):
        paused = jobs.pause(session, project_id, job_id)
        if paused is None:
            raise _wrong_state(get(session, project_id, job_id), "paused", "a queued or running job")
        job = paused
    return _views(session, [job])[0]


def resume(
    session: Session, notifier: WorkerNotifier, project_id: str, job_id: str, default_max_queued_jobs: int
) -> JobView:
    """Resume a paused job. The state is checked before the quota, as waiting does not change the state.

    Raises NotFound, BadRequest, QuotaExceeded.
    """
    if get(session, project_id, job_id).state == JobState.PAUSED:
        quotas.require_queue_quota(session, project_id, default_max_queued_jobs)
    job = jobs.resume(session, project_id, job_id)
    if job is None:
        raise _wrong_state(get(session, project_id, job_id), "resumed", "a paused job")
    notifier.after_commit(session, "gpu")
    return _views(session, [job])[0]


def change(session: Session, project_id: str, job_id: str, new_values: Mapping[str, Any]) -> JobView:
    """Update columns of a job; values that are equal to the old ones cause no update and no event.

    Raises NotFound; BadRequest for the `priority` of a job that has ended.
    """
    job = get(session, project_id, job_id)
    states = jobs.ACTIVE_STATES if "priority" in new_values else jobs.ALL_STATES
    columns = {name: value for name, value in new_values.items() if getattr(job, name) != value}
    if columns and jobs.change(session, project_id, job_id, states, _change_message(columns), **columns) is None:
        session.refresh(job)  # it may have ended since it was read
    if job.state not in states:
        raise _wrong_state(job, "given another priority", "a job that has not ended")
    return _views(session, [job])[0]


def job_not_found(job_id: str) -> NotFound:
    return NotFound(f"No such fine-tuning job: {job_id}", "id")


def require_project(session: Session, project_id: str) -> None:
    """Raises BadRequest for an unknown `project_id` in the query."""
    if session.get(Project, project_id) is None:
        raise BadRequest(f"project_id: there is no project {as_json(project_id)}", "project_id")


def unknown_cursor_error(kind: str, after: str) -> BadRequest:
    return BadRequest(
        f"after: there is no {kind} {as_json(after)} here; give the id of the last item of the page before", "after"
    )


def _cursor(session: Session, job_filter: JobFilter, after: str | None) -> Job | None:
    last = pages.get(session, job_filter.project_id, after) if after is not None else None
    if after is not None and last is None:
        raise unknown_cursor_error("job", after)
    return last


def require_urgent_permission(project: Project, scheduling: SchedulingOptions, is_admin: bool) -> None:
    """Raises NotPermitted for an urgent job, unless the project or the caller may create one."""
    if scheduling.is_urgent and not is_admin and not project.may_be_urgent:
        text = (
            "urgent: the jobs of this project may not precede those of other projects; send false, and use priority to "
            "order them among themselves, or ask the operator (`tunery allow-urgent`)."
        )
        raise NotPermitted(text, "urgent")


def _change_message(columns: Mapping[str, Any]) -> str:
    if "priority" not in columns:
        return "The metadata was changed"
    return f"The priority was changed to {columns['priority']}" + (", and the metadata" if len(columns) > 1 else "")


def _wrong_state(job: Job, verb: str, allowed: str) -> BadRequest:
    return BadRequest(f"Job {job.id} is {job.state}; only {allowed} can be {verb}.", code="invalid_job_state")


def _views(session: Session, page: list[Job]) -> list[JobView]:
    """The jobs of a page; three queries read the other columns of all."""
    places = queue_positions.get_positions(session, [job.id for job in page if job.state == JobState.QUEUED])
    names = [job.fine_tuned_model for job in page if job.fine_tuned_model is not None]
    results = checkpoints.by_names(session, names)
    deliveries_by_job = deliveries.of_jobs(session, [job.id for job in page])
    views = []
    for job in page:
        result = results.get(job.fine_tuned_model or "")
        position, expected_start_at, waiting_for = _queue_state(places.get(job.id))
        view = JobView(
            job, position, None, expected_start_at, waiting_for, deliveries=deliveries_by_job.get(job.id, [])
        )
        if result is not None:
            view = replace(view, adapter_file_ids=result.file_ids, compatibility=result.manifest.get("compatibility"))
        views.append(view)
    return views


def _queue_state(place: QueuePlace | None) -> QueueState:
    return (None, None, None) if place is None else (place.position, place.expected_start_at, place.waiting_for)
