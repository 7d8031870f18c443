"""The parent adapter of a job with `"model": "ft:..."`, owned by the project or shared with it."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.files import files
from app.db.jobs import checkpoints, jobs
from app.db.tables import BaseModelRow
from app.domain.error_text.json_text import as_json
from app.domain.jobs.parameters import ParentAdapter
from app.domain.jobs.spec import JobSpec
from app.errors import BadRequest


def find_parent_adapter(session: Session, project_id: str, name: str) -> tuple[BaseModelRow, ParentAdapter] | None:
    """The base model and the adapter of an `ft:` model; None for a name that the project may not use.

    Locks the files of the adapter until this transaction ends; later the job keeps them from being purged, even if they
    are deleted. Raises BadRequest if the training of the adapter cannot be continued any more.
    """
    tuned = models.get_usable(session, project_id, name)
    if tuned is None:
        return None
    job = jobs.get(session, tuned.project_id, tuned.job_id)
    checkpoint = checkpoints.by_names(session, [name]).get(name)
    assert job is not None, "a foreign key refers to it"
    if checkpoint is None or files.lock_content(session, tuned.project_id, checkpoint.file_ids) < len(
        checkpoint.file_ids
    ):
        raise _cannot_continue(name, "files of its adapter were deleted")
    base = models.get_base(session, project_id, job.base_model)
    if base is None:
        raise _cannot_continue(name, f"its base model {as_json(job.base_model)} is not registered any more")
    trained_on = checkpoint.manifest.get("base_model", {}).get("manifest_sha256", base.manifest_sha256)
    if trained_on != base.manifest_sha256:
        raise _cannot_continue(name, f"the files registered as {as_json(base.name)} are not those it was trained on")
    return base, ParentAdapter(name, JobSpec.model_validate(job.spec).lora)


def _cannot_continue(name: str, why: str) -> BadRequest:
    return BadRequest(f"model: {as_json(name)} cannot be continued: {why}. Name another model.", "model")
