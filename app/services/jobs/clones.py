"""A clone needs the files of the original: one that was deleted is told as what it is."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.tables import Job
from app.errors import BadRequest, combine_errors
from app.services.jobs.requests import JobRequest


def check_files(session: Session, original: Job, request: JobRequest) -> None:
    """Raises BadRequest for each file that the clone takes from the original and that is gone."""
    taken = {
        name: asked
        for name, asked, had in (
            ("training_file", request.training_file, original.training_file_id),
            ("validation_file", request.validation_file, original.validation_file_id),
        )
        if asked is not None and asked == had
    }
    there = files.get_visible(session, list(taken.values()))
    problems = [_deleted(name, file_id, original) for name, file_id in taken.items() if file_id not in there]
    if problems:
        raise combine_errors([*request.problems, *problems])


def _deleted(name: str, file_id: str, original: Job) -> BadRequest:
    text = f"{name}: {file_id} of job {original.id} was deleted; name another {name} in the body"
    return BadRequest(text, name, "file_deleted")
