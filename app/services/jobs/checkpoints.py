"""The checkpoint that a request names: for an export, an evaluation or a delivery."""

from __future__ import annotations

from typing import Literal

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.jobs import checkpoints
from app.db.tables import Checkpoint, Job
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest

Purpose = Literal["export", "evaluate", "deliver"]


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
