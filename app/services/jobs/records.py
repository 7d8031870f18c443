"""Records of a job: events, checkpoints and the adapter, the metrics of its steps, attempts, and the trainer's log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import files
from app.db.base_models import models
from app.db.jobs import checkpoints, events
from app.db.jobs.events import LossCurve
from app.db.tables import BaseModelRow, Checkpoint, File, Job, JobLog
from app.domain.error_text.json_text import as_json
from app.domain.jobs.events import downsample
from app.domain.jobs.states import TERMINAL, JobState
from app.errors import BadRequest, NotFound
from app.services import resources
from app.services.resources import Page

MIN_BUCKETS = 250  # the shape of a curve of few points is chosen among more of them


def checkpoint_page(session: Session, job: Job, page: Page) -> list[Checkpoint]:
    """The kept checkpoints: first the job's result, as clients expect, then the others, latest step first.

    The result may be an earlier step, as the best one can be promoted. Raises BadRequest for `page.after`.
    """
    is_result = func.coalesce(Checkpoint.name == job.fine_tuned_model, False)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.retired_at.is_(None))
    if page.after is not None:
        last = session.scalar(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.id == page.after))
        if last is None:
            raise resources.unknown_cursor_error("checkpoint", page.after)
        query = query.where(is_result.is_(False))
        if last.name != job.fine_tuned_model:
            query = query.where(Checkpoint.step_number < last.step_number)
    rows = session.scalars(query.order_by(is_result.desc(), Checkpoint.step_number.desc()).limit(page.rows)).all()
    best = checkpoints.best(session, job.id)  # it may be on another page
    for checkpoint in rows:
        checkpoint.is_best = checkpoint is best
    return list(rows)


def metrics(session: Session, job_id: str, max_points: int | None) -> tuple[list[dict[str, Any]], int]:
    """The metrics of all steps, or of at most `max_points` selected ones, oldest first; and the number of all steps."""
    if max_points is None:
        rows = events.all_metrics(session, job_id)
        return rows, len(rows)
    found = events.loss_points(session, job_id, max(max_points, MIN_BUCKETS))
    chosen = downsample(found.points, max_points, found.extremes)
    return events.event_data(session, job_id, [point.row for point in chosen]), found.total


def loss_curves(session: Session, project_id: str, job_ids: Sequence[str], points: int) -> list[LossCurve]:
    """The loss curves of several jobs, in the order of `job_ids`. Raises NotFound, which names every unknown job."""
    found = events.loss_curves(session, project_id, job_ids, points)
    if missing := [job_id for job_id in job_ids if job_id not in found]:
        raise NotFound(f"jobs: this project has no job {', '.join(missing)}", "jobs")
    return [found[job_id] for job_id in job_ids]


def log(session: Session, job_id: str, attempt: int | None) -> JobLog | None:
    """The log of an attempt; without `attempt` the newest log, or None if there is none. Raises NotFound."""
    job_log = events.newest_log(session, job_id, attempt)
    if job_log is None and attempt is not None:
        available = ", ".join(map(str, events.attempts_with_log(session, job_id))) or "none"
        raise NotFound(
            f"attempt: there is no log of attempt {attempt}; attempts of this job with a log: {available}", "attempt"
        )
    return job_log


Purpose = Literal["export", "evaluate", "deliver"]


@dataclass(frozen=True)
class Adapter:
    job: Job
    checkpoint: Checkpoint
    files: list[File]
    archive: File


def select_checkpoint(session: Session, job: Job, name: str | None, purpose: Purpose) -> Checkpoint:
    """The job's result, or a kept checkpoint by its id or its model's name. Raises BadRequest."""
    kept = checkpoints.kept(session, job.id)
    id_or_name = job.fine_tuned_model if name is None else name
    for checkpoint in kept:
        if id_or_name in (checkpoint.id, checkpoint.name):
            return checkpoint
    steps = ", ".join(f"{each.id} (step {each.step_number})" for each in kept) or "none yet"
    if name is None:
        text = (
            f"Job {job.id} is {job.state} and has no result to {purpose}. Kept checkpoints that can be named: {steps}."
        )
        raise BadRequest(text, code="invalid_job_state")
    raise BadRequest(f"checkpoint: job {job.id} keeps no checkpoint {as_json(name)}; it keeps {steps}", "checkpoint")


def lock_files(session: Session, checkpoint: Checkpoint, purpose: Purpose) -> None:
    """Keep the content of the adapter until this transaction ends. Raises BadRequest if a file was deleted."""
    if files.lock_content(session, checkpoint.project_id, checkpoint.file_ids) < len(checkpoint.file_ids):
        text = f"Files of the adapter of {checkpoint.name} were deleted, so it cannot be {purpose.rstrip('e')}ed."
        raise BadRequest(text, "checkpoint", "adapter_deleted")


def trained_base(session: Session, project_id: str, job: Job, checkpoint: Checkpoint) -> BaseModelRow | str:
    """The base model, with the same files as when the adapter was trained; a clause that says why there is none."""
    base = models.get_base(session, project_id, job.base_model)
    if base is None:
        return f"its base model {as_json(job.base_model)} is not registered any more"
    trained_on = checkpoint.manifest.get("base_model", {}).get("manifest_sha256", base.manifest_sha256)
    if trained_on != base.manifest_sha256:
        return f"the files registered as {as_json(base.name)} are not those it was trained on"
    return base


def get_adapter(session: Session, job: Job) -> Adapter:
    """The adapter of a job. Raises NotFound for one that has none (yet)."""
    if job.state != JobState.SUCCEEDED or job.fine_tuned_model is None:
        then = "it has none" if job.state in TERMINAL else "it is there when the job has succeeded"
        raise NotFound(f"Job {job.id} is {job.state}, so there is no adapter: {then}.", "id", "adapter_not_found")
    checkpoint = checkpoints.by_names(session, [job.fine_tuned_model])[job.fine_tuned_model]
    file_ids = checkpoint.public_file_ids
    found = files.get_visible(session, [*file_ids, checkpoint.archive_file_id])
    for file_id in (*file_ids, checkpoint.archive_file_id):
        if file_id not in found:
            raise NotFound(f"File {file_id} of the adapter of job {job.id} was deleted.", "id", "adapter_deleted")
    return Adapter(job, checkpoint, [found[id] for id in file_ids], found[checkpoint.archive_file_id])
