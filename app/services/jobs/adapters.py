"""The adapter of a finished job: the files of its result checkpoint, and an archive of them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.jobs import checkpoints
from app.db.tables import Checkpoint, File, Job
from app.domain.jobs.states import TERMINAL, JobState
from app.errors import NotFound
from app.services.jobs import jobs


@dataclass(frozen=True)
class Adapter:
    job: Job
    checkpoint: Checkpoint
    files: list[File]
    archive: File


def get(session: Session, project_id: str, job_id: str) -> Adapter:
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
