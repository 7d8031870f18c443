"""Checkpoints of a job: the one that a request names, and the adapter of a finished job, which is its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.jobs import checkpoints
from app.db.tables import Checkpoint, File, Job
from app.domain.error_text.json_text import as_json
from app.domain.jobs.states import TERMINAL, JobState
from app.errors import BadRequest, NotFound
from app.services.jobs import jobs

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


def get_adapter(session: Session, project_id: str, job_id: str) -> Adapter:
    """The adapter of a job. Raises NotFound for an unknown job, and for one that has no adapter (yet)."""
    job = jobs.get(session, project_id, job_id)
    if job.state != JobState.SUCCEEDED or job.fine_tuned_model is None:
        raise _adapter_not_found(job)
    checkpoint = checkpoints.by_names(session, [job.fine_tuned_model])[job.fine_tuned_model]
    found = files.get_visible(session, [*checkpoint.file_ids, checkpoint.archive_file_id])
    for file_id in (*checkpoint.file_ids, checkpoint.archive_file_id):
        if file_id not in found:
            raise NotFound(f"File {file_id} of the adapter of job {job.id} was deleted.", "id", "adapter_deleted")
    return Adapter(job, checkpoint, [found[id] for id in checkpoint.file_ids], found[checkpoint.archive_file_id])


def _adapter_not_found(job: Job) -> NotFound:
    then = "it has none" if job.state in TERMINAL else "it is there when the job has succeeded"
    return NotFound(f"Job {job.id} is {job.state}, so there is no adapter: {then}.", "id", "adapter_not_found")
