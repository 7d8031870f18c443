"""Use-cases on jobs: the only place that joins spec, file, row and hint. One transaction each, the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db import checkpoints, events, files, jobs, models
from app.db.tables import BaseModelRow, Checkpoint, File, Job, JobEvent
from app.domain.catalog import CatalogEntry
from app.domain.lora_knobs import Ancestor
from app.domain.resolve import resolve
from app.domain.spec import JobSpec
from app.domain.states import Desired, JobState
from app.errors import BadRequest, NotFound, all_at_once
from app.queue import Hints
from app.services import ancestors


@dataclass(frozen=True)
class JobRequest:
    """A create body whose shape was checked: `problems` says what of it was left out, `body` has the knobs."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    metadata: dict[str, str] | None
    integrations: Sequence[Any]
    body: Mapping[str, Any]
    problems: Sequence[BadRequest] = ()
    warnings: Sequence[str] = ()  # what was taken and has no effect here; the job tells of it


@dataclass(frozen=True)
class SeenJob:
    """A job with what its row alone does not tell."""

    job: Job
    queue_position: int | None
    adapter_file_ids: list[str] | None


def create(session: Session, hints: Hints, project_id: str, request: JobRequest) -> SeenJob:
    """Raises as `resolved`."""
    _, training_file, validation_file, spec = resolved(session, project_id, request)
    job = jobs.insert(
        session,
        project_id,
        spec,
        training_file.id,
        validation_file.id if validation_file else None,
        suffix=request.suffix,
        metadata=request.metadata,
        warnings=request.warnings,
    )
    hints.after_commit(session, "cpu")
    return SeenJob(job, None, None)


def resolved(session: Session, project_id: str, request: JobRequest) -> tuple[BaseModelRow, File, File | None, JobSpec]:
    """What a request asks for. Writes nothing.

    Raises BadRequest naming everything that is wrong, NotFound if that is only a model or file that is not there.
    """
    try:
        base, ancestor = _model(session, project_id, request.model)
        training_file = _file(session, project_id, request.training_file, "training_file")
        validation_file = None
        if request.validation_file is not None:
            validation_file = _file(session, project_id, request.validation_file, "validation_file")
    except NotFound:
        if request.problems:
            raise all_at_once(request.problems) from None
        raise
    spec = _resolve(request, base, ancestor, training_file, validation_file)
    return base, training_file, validation_file, spec


def get(session: Session, project_id: str, job_id: str) -> Job:
    job = jobs.get(session, project_id, job_id)
    if job is None:
        raise no_such_job(job_id)
    return job


def page(
    session: Session,
    project_id: str,
    limit: int,
    after: str | None,
    metadata: Mapping[str, str],
    without_metadata: bool,
) -> list[SeenJob]:
    last = None
    if after is not None:
        last = jobs.get(session, project_id, after)
        if last is None:
            raise unknown_cursor("job", after)
    return _seen(session, jobs.page(session, project_id, limit, last, metadata, without_metadata))


def cancel(session: Session, project_id: str, job_id: str) -> SeenJob:
    """At once, also while running. Cancelling twice is cancelling once."""
    job = jobs.cancel(session, project_id, job_id) or get(session, project_id, job_id)
    if job.state != JobState.CANCELLED:
        raise _wrong_state(job, "cancelled", "a job that has not ended")
    return _seen(session, [job])[0]


def pause(session: Session, project_id: str, job_id: str) -> SeenJob:
    """A queued job at once, a running one at its next step. Asking twice while it still runs is asking once."""
    job = get(session, project_id, job_id)
    if not (job.state == JobState.RUNNING and job.desired == Desired.PAUSE):
        paused = jobs.pause(session, project_id, job_id)
        if paused is None:
            raise _wrong_state(get(session, project_id, job_id), "paused", "a queued or running job")
        job = paused
    return _seen(session, [job])[0]


def resume(session: Session, hints: Hints, project_id: str, job_id: str) -> SeenJob:
    job = jobs.resume(session, project_id, job_id)
    if job is None:
        raise _wrong_state(get(session, project_id, job_id), "resumed", "a paused job")
    hints.after_commit(session, "gpu")
    return _seen(session, [job])[0]


def event_page(session: Session, project_id: str, job_id: str, limit: int, after: str | None) -> list[JobEvent]:
    job = get(session, project_id, job_id)
    last = None
    if after is not None:
        last = events.get(session, job.id, after)
        if last is None:
            raise unknown_cursor("event", after)
    return events.page(session, job.id, limit, last)


def checkpoint_page(
    session: Session, project_id: str, job_id: str, limit: int, after: str | None
) -> tuple[list[Checkpoint], str | None]:
    """A page, and the id of the best checkpoint, on whichever page that is."""
    job = get(session, project_id, job_id)
    last = None
    if after is not None:
        last = checkpoints.get(session, job.id, after)
        if last is None:
            raise unknown_cursor("checkpoint", after)
    best = checkpoints.best(session, job.id)
    return checkpoints.page(session, job.id, limit, last), best.id if best else None


def no_such_job(job_id: str) -> NotFound:
    return NotFound(f"No such fine-tuning job: {job_id}", "id")


def unknown_cursor(kind: str, after: str) -> BadRequest:
    return BadRequest(
        f"after: there is no {kind} {after!r} here; give the id of the last item of the page before", "after"
    )


def _model(session: Session, project_id: str, name: str) -> tuple[BaseModelRow, Ancestor | None]:
    base = models.get_base(session, project_id, name)
    if base is not None:
        return base, None
    found = ancestors.find(session, project_id, name)
    if found is not None:
        return found
    on_offer = ", ".join(row.name for row in models.list_base(session, project_id)) or "none yet"
    raise NotFound(f"The model {name!r} does not exist. Models on offer: {on_offer}.", "model", "model_not_found")


def _file(session: Session, project_id: str, file_id: str, param: str) -> File:
    file = files.get(session, project_id, file_id)
    if file is None:
        raise NotFound(f"invalid {param}: {file_id}. No such File object; upload one with purpose fine-tune.", param)
    return file


def _resolve(
    request: JobRequest,
    base: BaseModelRow,
    ancestor: Ancestor | None,
    training_file: File,
    validation_file: File | None,
) -> JobSpec:
    problems = [*request.problems, *_wrong_purpose(training_file, "training_file")]
    problems += _integration_problems(request.integrations)
    if validation_file is not None:
        problems += _wrong_purpose(validation_file, "validation_file")
    spec = None
    try:
        entry = CatalogEntry.model_validate(base.entry)
        spec = resolve(request.body, base.name, entry, training_file.line_count or 0, ancestor)
    except BadRequest as error:
        problems.append(error)
    if spec is None or problems:
        raise all_at_once(problems)
    return spec


def _wrong_purpose(file: File, param: str) -> list[BadRequest]:
    if file.purpose == "fine-tune":
        return []
    text = f"invalid {param}: {file.id}. Its purpose is {file.purpose!r}; a {param} needs the purpose 'fine-tune'"
    return [BadRequest(text, param)]


def _integration_problems(integrations: Sequence[Any]) -> list[BadRequest]:
    if not integrations:
        return []
    named = [item.get("type") for item in integrations if isinstance(item, dict)]
    asked = ", ".join(repr(name) for name in named) or "this"
    text = (
        f"integrations: {asked} is not offered here; the metrics are in the events and in the results file of the job"
    )
    return [BadRequest(text, "integrations", "unsupported_value")]


def _wrong_state(job: Job, verb: str, allowed: str) -> BadRequest:
    return BadRequest(f"Job {job.id} is {job.state}; only {allowed} can be {verb}.", code="invalid_job_state")


def _seen(session: Session, page: list[Job]) -> list[SeenJob]:
    """Two queries for a whole page, whatever its length."""
    positions = jobs.queue_positions(session, [job.id for job in page if job.state == JobState.QUEUED])
    names = [job.fine_tuned_model for job in page if job.fine_tuned_model is not None]
    finals = checkpoints.by_names(session, names)
    return [SeenJob(job, positions.get(job.id), _final_file_ids(job, finals)) for job in page]


def _final_file_ids(job: Job, finals: Mapping[str, Checkpoint]) -> list[str] | None:
    final = finals.get(job.fine_tuned_model or "")
    return None if final is None else final.file_ids
