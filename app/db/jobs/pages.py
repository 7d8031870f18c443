"""Pages of jobs, by default newest first, of one project or of all, with filters. Never commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, exists, func, or_, select
from sqlalchemy.orm import Session, undefer_group

from app.db.jobs.job_order import JobColumn, is_after, order_by
from app.db.tables import File, Job

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])


@dataclass(frozen=True)
class JobFilter:
    """The conditions of a list of jobs; None and empty collections match every job."""

    project_id: str | None = None
    states: Collection[str] = ()
    created_from: datetime | None = None  # inclusive
    created_until: datetime | None = None  # exclusive
    metadata: Mapping[str, str] = field(default_factory=dict)  # every pair must match
    without_metadata: bool = False
    search: str | None = None  # a part of the id, suffix, model, `ft:` name or name of the training file
    order_by: JobColumn = "created_at"
    is_ascending: bool = False

    @property
    def is_selective(self) -> bool:
        """Whether a page may have to skip many jobs before it is full."""
        bounds = (self.created_from, self.created_until)
        return bool(self.states or self.metadata or self.search) or any(bound is not None for bound in bounds)


def get(session: Session, project_id: str | None, job_id: str) -> Job | None:
    """The job at the end of a page; it need not match the filter, as its state may have changed since."""
    query = select(Job).where(Job.id == job_id)
    return session.scalar(query if project_id is None else query.where(Job.project_id == project_id))


def page(session: Session, job_filter: JobFilter, limit: int, after: Job | None = None) -> list[Job]:
    """A page of jobs with their training time; `after` is the last job of the previous page."""
    _plan_for(session, job_filter)
    ids = _page(select(Job.id), job_filter, limit, after)  # else the training time of all jobs is computed to sort them
    query = select(Job).options(undefer_group("training_time")).where(Job.id.in_(ids))
    return list(session.scalars(query.order_by(*order_by(job_filter.order_by, job_filter.is_ascending))))


def page_versions(
    session: Session, job_filter: JobFilter, limit: int, after: Job | None = None
) -> list[tuple[str, int, str]]:
    """(id, version, state) of the jobs of a page, which detect a change of it at a tenth of its cost."""
    _plan_for(session, job_filter)
    rows = session.execute(_page(select(Job.id, Job.version, Job.state), job_filter, limit, after))
    return [(row.id, row.version, row.state) for row in rows]


def _page(query: Query, job_filter: JobFilter, limit: int, after: Job | None) -> Query:
    column, is_ascending = job_filter.order_by, job_filter.is_ascending
    query = query.order_by(*order_by(column, is_ascending)).limit(limit)
    if after is not None:
        query = query.where(is_after(column, is_ascending, after))
    if job_filter.project_id is not None:
        query = query.where(Job.project_id == job_filter.project_id)
    if job_filter.states:
        query = query.where(Job.state.in_(job_filter.states))
    if job_filter.created_from is not None:
        query = query.where(Job.created_at >= job_filter.created_from)
    if job_filter.created_until is not None:
        query = query.where(Job.created_at < job_filter.created_until)
    if job_filter.metadata:
        query = query.where(Job.user_metadata.contains(dict(job_filter.metadata)))
    if job_filter.without_metadata:
        query = query.where(or_(Job.user_metadata.is_(None), Job.user_metadata == {}))
    if job_filter.search:
        query = query.where(_matches(job_filter.search))
    return query


def _matches(text: str) -> ColumnElement[bool]:
    """Whether a job contains `text`, in any case, in one of the columns by which people know it."""
    columns = (Job.id, Job.suffix, Job.base_model, Job.fine_tuned_model)
    is_in_filename = exists().where(File.id == Job.training_file_id, File.filename.icontains(text, autoescape=True))
    return or_(*(column.icontains(text, autoescape=True) for column in columns), is_in_filename)


def _plan_for(session: Session, job_filter: JobFilter) -> None:
    """Let PostgreSQL plan a filtered page by its values: an index for rare ones, a scan by `seq` for common ones.

    Otherwise it uses a generic plan once a prepared statement has run five times (17 ms instead of 1).
    """
    if job_filter.is_selective:
        session.execute(select(func.set_config("plan_cache_mode", "force_custom_plan", True)))
