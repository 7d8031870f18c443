"""Projects: the owners of keys, files and jobs, with their limits. Never commits."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import Project

DEFAULT_PROJECT = "default"


def ensure(session: Session, name: str) -> Project:
    """The project of this name, created if there is none."""
    return get_by_name(session, name) or insert(session, name)


def insert(session: Session, name: str) -> Project:
    project = Project(id=new_id("proj", "_"), name=name)
    session.add(project)
    session.flush()
    session.refresh(project)
    return project


def get(session: Session, project_id: str) -> Project | None:
    return session.get(Project, project_id)


def get_by_name(session: Session, name: str) -> Project | None:
    return session.scalar(select(Project).where(Project.name == name))


def lock(session: Session, project_id: str, shared: bool = False) -> Project:
    """Lock the project's row and read it again, so that a count stays true until the commit.

    Shared locks exclude only those that are not. Rows that only refer to the project are still written: their foreign
    keys take a weaker lock.
    """
    query = select(Project).where(Project.id == project_id).with_for_update(read=shared, key_share=not shared)
    return session.execute(query.execution_options(populate_existing=True)).scalar_one()


def page(session: Session, limit: int, after: Project | None = None, with_archived: bool = False) -> list[Project]:
    """A page of projects, newest first; `after` is the last project of the previous page."""
    query = select(Project).order_by(Project.seq.desc()).limit(limit)
    if after is not None:
        query = query.where(Project.seq < after.seq)
    if not with_archived:
        query = query.where(Project.archived_at.is_(None))
    return list(session.scalars(query))


def archive(session: Session, project: Project) -> None:
    project.archived_at = func.clock_timestamp()
    session.flush()
    session.refresh(project)


def unarchive(session: Session, project: Project) -> None:
    project.archived_at = None
    session.flush()
