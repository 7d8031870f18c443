"""Jobs as clients read them: one select serves the single job, the pages and the poll. Never commits.

A poll reads the key in the same statement, without the ORM. A page is by default newest first, of one project or of
all, with filters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Float,
    Row,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.db.fast_reads import keys
from app.db.fast_reads.keys import ASKED, KEY
from app.db.fast_reads.pool import AsyncConnections
from app.db.jobs.jobs import ACTIVE_STATES
from app.db.tables import Attempt, Checkpoint, Delivery, DeliveryTarget, Evaluation, File, Job, JobEvent, QueuePlace
from app.db.tables.base import core_table
from app.domain.jobs.states import JobState

JobColumn = Literal["created_at", "name", "status", "model", "progress", "train_loss", "valid_loss", "duration"]

# Of the last step.
TRAIN_LOSS = (
    select(JobEvent.data["train_loss"].as_float())
    .where(JobEvent.job_id == Job.id, JobEvent.type == "metrics")
    .order_by(JobEvent.seq.desc())
    .limit(1)
    .correlate(Job)
    .scalar_subquery()
)
# Of the best checkpoint.
VALID_LOSS = (
    select(func.min(Checkpoint.metrics["full_valid_loss"].as_float()))
    .where(Checkpoint.job_id == Job.id)
    .correlate(Job)
    .scalar_subquery()
)
# Of the training attempts, of a running one until now; NULL before the first one.
DURATION_SECONDS = (
    select(
        func.extract("epoch", func.sum(func.coalesce(Attempt.ended_at, func.now()) - Attempt.started_at)).cast(Float)
    )
    .where(Attempt.job_id == Job.id, Attempt.kind == "train")
    .correlate(Job)
    .scalar_subquery()
)
TEXT_KEYS: dict[str, ColumnElement[Any]] = {
    "name": func.lower(func.coalesce(Job.suffix, Job.id)),
    "status": Job.state.expression,
    "model": Job.base_model.expression,
}
NUMBER_KEYS: dict[str, ColumnElement[Any]] = {
    "progress": case(
        (Job.state == JobState.SUCCEEDED, 1.0),
        else_=Job.progress["step"].as_float() / func.nullif(Job.progress["total_steps"].as_float(), 0),
    ),
    "train_loss": TRAIN_LOSS,
    "valid_loss": VALID_LOSS,
    "duration": DURATION_SECONDS,
}


def order_by(column: JobColumn, is_ascending: bool) -> list[ColumnElement[Any]]:
    """Jobs without the value are last in both directions."""
    keys = [Job.seq] if column == "created_at" else [_key(column, is_ascending), Job.seq]
    return [key.asc() if is_ascending else key.desc() for key in keys]


def is_after(column: JobColumn, is_ascending: bool, last: Job) -> ColumnElement[bool]:
    """Whether a job follows `last` in this order."""
    if column == "created_at":
        return Job.seq > last.seq if is_ascending else Job.seq < last.seq
    row = tuple_(_key(column, is_ascending), Job.seq)
    place_of_last = select(*row.clauses).where(Job.id == last.id).correlate(None).scalar_subquery()
    return row > place_of_last if is_ascending else row < place_of_last


def _key(column: JobColumn, is_ascending: bool) -> ColumnElement[Any]:
    if column in TEXT_KEYS:
        return TEXT_KEYS[column]
    return func.coalesce(NUMBER_KEYS[column], literal(math.inf if is_ascending else -math.inf, Float))


MAX_EVENTS = 500  # in one read of an event stream

LAST_PLACE = aliased(QueuePlace)
IS_QUEUED = Job.state == JobState.QUEUED.value
DELIVERIES = (
    select(
        func.jsonb_agg(
            aggregate_order_by(
                func.jsonb_build_object(
                    *("id", Delivery.id, "target", DeliveryTarget.name, "status", Delivery.state),
                    *("model", Delivery.model, "served_model", Delivery.served_model),
                    *("check", Delivery.served_check, "error", Delivery.error),
                ),
                Delivery.seq,
            )
        )
    )
    .join(DeliveryTarget, DeliveryTarget.id == Delivery.target_id)
    .where(Delivery.job_id == Job.id)
    .scalar_subquery()
)
# A job that is not in the forecast yet counts as the last one.
POSITION = func.coalesce(
    QueuePlace.position, 1 + func.coalesce(select(func.max(LAST_PLACE.position)).scalar_subquery(), 0)
)
PLACE = (QueuePlace.expected_start_at, QueuePlace.waiting_for, case((IS_QUEUED, POSITION)).label("queue_position"))

# Everything that a response contains, of the job and of the rows that belong to it.
COLUMNS = (
    *core_table(Job).c,
    Job.training_seconds.label("training_seconds"),
    Job.attempt_started_at.label("attempt_started_at"),
    DELIVERIES.label("deliveries"),
    Checkpoint.public_file_ids.label("adapter_file_ids"),
    Checkpoint.manifest["compatibility"].label("manifest_compatibility"),
    *PLACE,
)
# Only what changes whenever the job changes: the cost of a 304 response.
VERSION_COLUMNS = (Job.id, Job.version, Job.state, Job.event_seq, *PLACE)
# The key with this secret, and the job of its project: the columns of the job are NULL if there is none.
IS_ASKED = and_(Job.project_id == KEY.c.project_id, Job.id == ASKED.c.job_id, Job.deleted_at.is_(None))
OF_KEY = keys.OF_KEY.outerjoin(Job, IS_ASKED)


def _select(columns: Iterable[Any], source: Any) -> Select[*tuple[Any, ...]]:
    query = select(*columns).select_from(source).outerjoin(QueuePlace, and_(QueuePlace.job_id == Job.id, IS_QUEUED))
    return query.outerjoin(Checkpoint, Checkpoint.name == Job.fine_tuned_model)


JOB, VERSION = _select(COLUMNS, Job), _select(VERSION_COLUMNS, Job)
ONE_JOB = JOB.where(Job.id == bindparam("job_id"))
# For `app.db.fast_reads.keys.fetch_with_key`. psycopg parses a statement of more than 4,096 characters each time.
JOB_BY_KEY, VERSION_BY_KEY = (
    _select((ASKED.c.number, *KEY.c, *columns), OF_KEY) for columns in (COLUMNS, VERSION_COLUMNS)
)

SEQ_OF_EVENT = select(JobEvent.seq).where(JobEvent.job_id == bindparam("job_id"), JobEvent.id == bindparam("event_id"))
NEXT_EVENTS = (
    select(core_table(JobEvent))
    .where(JobEvent.job_id == Job.id, JobEvent.seq > bindparam("seq"))
    .order_by(JobEvent.seq)
    .limit(MAX_EVENTS)
    .lateral("event")
)
# One statement and so one snapshot: the job's state and its events must be consistent to detect the last event.
EVENTS_AFTER = (
    select(Job.state, Job.event_seq, *NEXT_EVENTS.c)
    .select_from(Job)
    .outerjoin(NEXT_EVENTS, true())
    .where(Job.id == bindparam("job_id"))
    .order_by(NEXT_EVENTS.c.seq)
)


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
    file_id: str | None = None  # of the training or the validation file, or of an evaluation
    group_id: str | None = None
    order_by: JobColumn = "created_at"
    is_ascending: bool = False

    @property
    def is_selective(self) -> bool:
        """Whether a page may have to skip many jobs before it is full."""
        bounds = (self.created_from, self.created_until)
        given = (self.states, self.metadata, self.search, self.file_id, self.group_id)
        return any(given) or any(bound is not None for bound in bounds)


def get(session: Session, job_id: str) -> Row[*tuple[Any, ...]]:
    """The row of JOB of a job that exists."""
    return session.execute(ONE_JOB, {"job_id": job_id}).one()


def of_new(row: Row[*tuple[Any, ...]]) -> Any:
    """The row of JOB for the row of `jobs` that this transaction has inserted: nothing refers to it yet."""
    return SimpleNamespace(
        **dict.fromkeys(JOB.selected_columns.keys()) | dict(row._mapping) | {"training_seconds": 0.0}
    )


def find_last(session: Session, project_id: str | None, job_id: str) -> Job | None:
    """The job at the end of a page; it need not match the filter, as its state may have changed since."""
    query = select(Job).where(Job.id == job_id)
    return session.scalar(query if project_id is None else query.where(Job.project_id == project_id))


def page(
    session: Session, job_filter: JobFilter, limit: int, after: Job | None = None, query: Select[*tuple[Any, ...]] = JOB
) -> Sequence[Row[*tuple[Any, ...]]]:
    """The rows of `query` of a page; `after` is the last job of the previous page.

    With VERSION it detects a change of the page at a tenth of its cost.
    """
    if job_filter.is_selective:
        # PostgreSQL plans by the values: an index for rare ones, a scan by `seq` for common ones. Otherwise it uses a
        # generic plan once a prepared statement has run five times (17 ms instead of 1).
        session.execute(select(func.set_config("plan_cache_mode", "force_custom_plan", True)))
    ids = _page(job_filter, limit, after)  # else the training time of all jobs is computed to sort them
    ordered = query.where(Job.id.in_(ids)).order_by(*order_by(job_filter.order_by, job_filter.is_ascending))
    return session.execute(ordered).all()


async def seq_of_event(connections: AsyncConnections, job_id: str, event_id: str) -> int | None:
    row = await connections.fetch_one(SEQ_OF_EVENT, {"job_id": job_id, "event_id": event_id})
    return None if row is None else int(row.seq)


async def events_after(connections: AsyncConnections, job_id: str, seq: int) -> list[Any]:
    """The next events, at most MAX_EVENTS, each with the job's `state` and `event_seq`.

    Without events: one row whose `id` is None.
    """
    return await connections.fetch_all(EVENTS_AFTER, {"job_id": job_id, "seq": seq})


def _page(job_filter: JobFilter, limit: int, after: Job | None) -> Select[str]:
    column, is_ascending = job_filter.order_by, job_filter.is_ascending
    query = select(Job.id).where(Job.deleted_at.is_(None)).order_by(*order_by(column, is_ascending)).limit(limit)
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
    if job_filter.file_id:
        query = query.where(Job.id.in_(_users_of(job_filter.file_id)))
    if job_filter.group_id:
        query = query.where(Job.group_id == job_filter.group_id)
    if job_filter.search:
        query = query.where(_matches(job_filter.search))
    return query


def _users_of(file_id: str) -> CompoundSelect[str]:
    """The ids of the jobs that train, validate or are evaluated with a file; each part has an index of its own."""
    job = aliased(Job)
    project_id = select(File.project_id).where(File.id == file_id).scalar_subquery()
    is_requested = job.spec["evaluation"]["file"].astext == file_id
    return union_all(
        select(job.id).where(job.training_file_id == file_id),
        select(job.id).where(job.validation_file_id == file_id),
        select(Evaluation.job_id).where(Evaluation.file_id == file_id),
        select(job.id).where(job.project_id == project_id, job.state.in_(ACTIVE_STATES), is_requested),
    )


def _matches(text: str) -> ColumnElement[bool]:
    """Whether a job contains `text`, in any case, in one of the columns by which people know it."""
    columns = (Job.id, Job.suffix, Job.base_model, Job.fine_tuned_model)
    is_in_filename = exists().where(File.id == Job.training_file_id, File.filename.icontains(text, autoescape=True))
    return or_(*(column.icontains(text, autoescape=True) for column in columns), is_in_filename)
