"""Projects: the owners of keys, files and jobs, with their limits. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.access import usage
from app.db.ids import new_id
from app.db.jobs import jobs
from app.db.tables import Project
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest
from app.services import resources
from app.services.resources import Page

DEFAULT_PROJECT = "default"
MAX_NAME_CHARACTERS = 100
MAX_LISTED_JOBS = 5


def create(session: Session, name: str, settings: Mapping[str, int | float | None]) -> Project:
    """Create a project; `settings` are limits, `share_weight`, `may_be_urgent`. Raises BadRequest for a used name."""
    project = Project(id=new_id("proj", "_"))
    session.add(project)
    return _apply(session, project, name, settings)


def change(session: Session, project_id: str, name: str | None, settings: Mapping[str, int | float | None]) -> Project:
    """Change the given settings; None removes a limit. Raises NotFound, BadRequest."""
    project = get(session, project_id)
    if project.archived_at is not None:
        text = f"Project {as_json(project.name)} is archived; unarchive it before you change it."
        raise BadRequest(text, "id", "invalid_project_state")
    return _apply(session, project, project.name if name is None else name, settings)


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
    lock(session, project.id)  # before rows of jobs, as a creation and a resume do
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
    return resources.store(session, project, archived_at=func.clock_timestamp())


def unarchive(session: Session, project_id: str) -> Project:
    """Unarchive a project: its keys are valid again unless revoked or expired. Cancelled jobs stay cancelled."""
    return resources.store(session, get(session, project_id), archived_at=None)


def get(session: Session, project_id: str) -> Project:
    """Raises NotFound."""
    return resources.get(session, Project, project_id)


def find(session: Session, name_or_id: str) -> Project | None:
    """The project of this name, else of this id."""
    query = select(Project).where((Project.name == name_or_id) | (Project.id == name_or_id))
    return session.scalar(query.order_by((Project.name == name_or_id).desc()).limit(1))


def ensure(session: Session, name: str) -> Project:
    """The project of this name, created if there is none. Raises IntegrityError if another process creates it."""
    if (existing := session.scalar(select(Project).where(Project.name == name))) is not None:
        return existing
    return resources.store(session, Project(id=new_id("proj", "_"), name=name))


def lock(session: Session, project_id: str) -> Project:
    """Lock the project's row and read it again, so that a count stays true until the commit.

    Rows that only refer to the project are still written: their foreign keys take a weaker lock.
    """
    query = select(Project).where(Project.id == project_id).with_for_update(key_share=True)
    return session.execute(query.execution_options(populate_existing=True)).scalar_one()


def page(session: Session, page: Page, with_archived: bool) -> list[Project]:
    return resources.page(session, Project, *page, only=() if with_archived else (Project.archived_at.is_(None),))


def with_usage(session: Session, *projects: Project) -> Sequence[Project]:
    """The projects, with their `usage`."""
    used = usage.usage_by_project(session, [project.id for project in projects])
    for project in projects:
        project.usage = used[project.id]
    return projects


def validate_name(name: str, param: str = "name") -> str:
    """The name without surrounding spaces. Raises BadRequest."""
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        text = f"{param}: {as_json(name, MAX_NAME_CHARACTERS)} is not a valid name: give 1 to {MAX_NAME_CHARACTERS}"
        raise BadRequest(f"{text} printable characters", param)
    return name


def _apply(session: Session, project: Project, name: str, settings: Mapping[str, int | float | None]) -> Project:
    project.name = validate_name(name)
    try:
        session.flush()
    except IntegrityError as error:  # a check beforehand would miss a concurrent creation
        raise BadRequest(f"name: a project {as_json(name)} exists already; choose another name", "name") from error
    return resources.store(session, project, **settings)


def _list_ids(job_ids: Sequence[str]) -> str:
    return ", ".join([*job_ids[:MAX_LISTED_JOBS], *(["…"] if len(job_ids) > MAX_LISTED_JOBS else [])])
