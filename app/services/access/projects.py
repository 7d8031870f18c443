"""Use cases of admins on projects. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.access import projects
from app.db.jobs import jobs
from app.db.tables import Project
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound

MAX_NAME_CHARACTERS = 100
MAX_LISTED_JOBS = 5


def create(session: Session, name: str, settings: Mapping[str, int | float | None]) -> Project:
    """Create a project; `settings` are limits, `share_weight`, `may_be_urgent`. Raises BadRequest for a used name."""
    name = validate_name(name)
    with _refuse_duplicate_name(name), session.begin_nested():
        project = projects.insert(session, name)
    return _apply(session, project, settings)


def modify(session: Session, project_id: str, name: str | None, settings: Mapping[str, int | float | None]) -> Project:
    """Change the given settings; None removes a limit. Raises NotFound, BadRequest."""
    project = get(session, project_id)
    _refuse_archived(project)
    if name is not None:
        name = validate_name(name)
        with _refuse_duplicate_name(name), session.begin_nested():
            project.name = name
    return _apply(session, project, settings)


def archive(session: Session, project_id: str, own_project_id: str | None, cancel_jobs: bool = False) -> Project:
    """Archive a project: its keys are not valid until it is unarchived, and files and results stay.

    No error if it is archived already. Raises NotFound, BadRequest.
    """
    project = get(session, project_id)
    if project.archived_at is not None:
        return project
    if project.id == own_project_id:
        raise BadRequest(
            "The key of this request belongs to this project; archive it with a key of another project.", "id"
        )
    projects.lock(session, project.id)  # before rows of jobs, as a creation and a resume do
    unfinished = jobs.unfinished_ids(session, project.id)
    if unfinished and not cancel_jobs:
        raise BadRequest(
            f"Project {as_json(project.name)} has {len(unfinished)} unfinished jobs ({_list_ids(unfinished)}), and no "
            'key can reach them in an archived project. Cancel them first, or send {"cancel_jobs": true} (on the '
            "command line `tunery projects archive --cancel-jobs`).",
            "cancel_jobs",
            "invalid_project_state",
        )
    for job_id in unfinished:
        jobs.cancel(session, project.id, job_id)
    projects.archive(session, project)
    return project


def unarchive(session: Session, project_id: str) -> Project:
    """Unarchive a project: its keys are valid again unless revoked or expired. Cancelled jobs stay cancelled."""
    project = get(session, project_id)
    if project.archived_at is not None:
        projects.unarchive(session, project)
    return project


def get(session: Session, project_id: str) -> Project:
    project = projects.get(session, project_id)
    if project is None:
        raise NotFound(f"No such project: {unquoted(project_id)}", "id")
    return project


def page(session: Session, limit: int, after: str | None, with_archived: bool) -> list[Project]:
    last = None
    if after is not None:
        last = projects.get(session, after)
        if last is None:
            text = f"after: there is no project {as_json(after)}; give the id of the last item of the page before"
            raise BadRequest(text, "after")
    return projects.page(session, limit, last, with_archived)


def validate_name(name: str, param: str = "name") -> str:
    """The name without surrounding spaces. Raises BadRequest."""
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        text = f"{param}: {as_json(name, MAX_NAME_CHARACTERS)} is not a valid name: give 1 to {MAX_NAME_CHARACTERS}"
        raise BadRequest(f"{text} printable characters", param)
    return name


def _apply(session: Session, project: Project, settings: Mapping[str, int | float | None]) -> Project:
    for name, value in settings.items():
        setattr(project, name, value)
    session.flush()
    return project


def _list_ids(job_ids: Sequence[str]) -> str:
    return ", ".join([*job_ids[:MAX_LISTED_JOBS], *(["…"] if len(job_ids) > MAX_LISTED_JOBS else [])])


def _refuse_archived(project: Project) -> None:
    if project.archived_at is not None:
        text = f"Project {as_json(project.name)} is archived; unarchive it before you change it."
        raise BadRequest(text, "id", "invalid_project_state")


@contextmanager
def _refuse_duplicate_name(name: str) -> Iterator[None]:
    """Turn a violation of the unique constraint into BadRequest; a check beforehand would miss concurrent creations."""
    try:
        yield
    except IntegrityError as error:
        raise BadRequest(f"name: a project {as_json(name)} exists already; choose another name", "name") from error
