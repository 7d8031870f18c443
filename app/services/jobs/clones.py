"""Clones of jobs: a check that the files of the original still exist."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.tables import Job
from app.errors import BadRequest, combine_errors
from app.services.jobs.requests import JobRequest


def check_files(session: Session, original: Job, request: JobRequest) -> None:
    """Raises BadRequest for each deleted file that the clone takes from the original."""
    inherited = {
        name: requested_id
        for name, requested_id, original_id in (
            ("training_file", request.training_file, original.training_file_id),
            ("validation_file", request.validation_file, original.validation_file_id),
        )
        if requested_id is not None and requested_id == original_id
    }
    existing = files.get_visible(session, list(inherited.values()))
    problems = [_deleted(name, file_id, original) for name, file_id in inherited.items() if file_id not in existing]
    if problems:
        raise combine_errors([*request.problems, *problems])


def _deleted(name: str, file_id: str, original: Job) -> BadRequest:
    text = f"{name}: {file_id} of job {original.id} was deleted; name another {name} in the body"
    return BadRequest(text, name, "file_deleted")
