"""The state of the service for operators: queue, leases, failures, storage by project. Never commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Float, cast, delete, exists, func, literal, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.tables import (
    Delivery,
    DeliveryTarget,
    Export,
    File,
    Job,
    Project,
    ServiceState,
    WebhookDelivery,
    WebhookEndpoint,
)
from app.domain.deliveries.targets import DUE_STATES, DeliveryState
from app.domain.jobs.states import TERMINAL, UNFINISHED_WORK, Desired, JobState
from app.errors import BadRequest

UNFINISHED_STATES = [state.value for state in JobState if state not in TERMINAL]
NOW = func.clock_timestamp()
COPY = "copy"  # the report of a database that `tunery restore --copy` made: the claims of both senders find nothing
# The age of a running attempt's newest snapshot: the training time that a crash would cost now.
SNAPSHOT_AGE = text(
    """
    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - greatest(attempt.started_at, coalesce(
      (SELECT max(created_at) FROM snapshots WHERE snapshots.job_id = job.id), attempt.started_at)))), 0)::float
    FROM jobs AS job JOIN attempts AS attempt ON attempt.job_id = job.id AND attempt.ended_at IS NULL
    WHERE job.state = 'running' AND job.lease_owner IS NOT NULL
    """
)


def report(session: Session, name: str, data: Mapping[str, Any] | None = None) -> None:
    """Store that a process works: `reconciler`, `webhooks` or `deliveries`; or `backup`, after a complete backup."""
    values = {"data": dict(data or {}), "updated_at": NOW}
    statement = upsert(ServiceState).values(name=name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def forget(session: Session, name: str) -> None:
    """Delete the report of this name."""
    session.execute(delete(ServiceState).where(ServiceState.name == name))


def is_copy(session: Session) -> bool:
    """Whether this service is a copy beside the one that was backed up."""
    return session.get(ServiceState, COPY) is not None


def refuse_in_copy(session: Session, action: str) -> None:
    """Raise BadRequest in a service that `tunery restore --copy` made, which sends and delivers nothing."""
    if is_copy(session):
        raise BadRequest(f"This service is a restored copy (`tunery restore --copy`), which {action}.")


def reports(session: Session) -> dict[str, Any]:
    """The last report of each process: rows with `data`, `updated_at` and `age_seconds`."""
    age_seconds = _age_seconds(ServiceState.updated_at).label("age_seconds")
    rows = session.execute(select(ServiceState.name, ServiceState.data, ServiceState.updated_at, age_seconds))
    return {row.name: row for row in rows}


def failed_jobs(session: Session, within: timedelta, limit: int) -> Sequence[Any]:
    """The jobs that failed within the last time, the latest first."""
    query = (
        select(
            Job.id,
            Job.project_id,
            Project.name.label("project"),
            Job.base_model,
            Job.finished_at,
            Job.error_code.label("code"),
            Job.error_message.label("message"),
        )
        .join(Project, Project.id == Job.project_id)
        .where(*_failed_within(within))
        .order_by(Job.finished_at.desc())
        .limit(limit)
    )
    return session.execute(query).all()


def failures_by_code(session: Session, within: timedelta) -> dict[str, int]:
    return _count_by(session, Job.error_code, Job.error_code.is_not(None), *_failed_within(within))


def has_webhooks(session: Session) -> bool:
    return bool(session.scalar(select(exists().where(WebhookEndpoint.enabled))))


def jobs_by_state(session: Session) -> dict[str, int]:
    """The number of unfinished jobs in each unfinished state."""
    return dict.fromkeys(UNFINISHED_STATES, 0) | _count_by(session, Job.state, Job.state.in_(UNFINISHED_STATES))


def unfinished_exports(session: Session) -> int:
    query = select(func.count()).where(Export.state.in_(UNFINISHED_WORK))
    return session.scalar(query) or 0


def oldest_waiting(session: Session) -> Sequence[Any]:
    """The oldest due job that waits for validation, and the oldest one that waits for a GPU worker.

    Rows with `state`, `job_id`, `project_id`, `due_since` (its creation, or the end of the delay after its last
    attempt) and `age_seconds`.
    """
    due_since = func.greatest(Job.created_at, Job.run_after)
    query = (
        select(
            Job.state,
            Job.id.label("job_id"),
            Job.project_id,
            due_since.label("due_since"),
            _age_seconds(due_since).label("age_seconds"),
        )
        .where(
            Job.state.in_([JobState.VALIDATING, JobState.QUEUED]),
            Job.desired == Desired.RUN,
            Job.lease_owner.is_(None),
            Job.run_after <= NOW,
        )
        .ext(distinct_on(Job.state))
        .order_by(Job.state.desc(), due_since)
    )
    return session.execute(query).all()


def leases(session: Session) -> tuple[int, int]:
    """(held leases of jobs, those of them that have expired)."""
    expired = func.count().filter(Job.lease_expires_at < NOW)
    row = session.execute(select(func.count(), expired).where(Job.lease_owner.is_not(None))).one()
    return row[0], row[1]


def oldest_snapshot_seconds(session: Session) -> float:
    """The age of the newest snapshot of the running job for which that is the highest; 0 without a running job."""
    return float(session.scalar(SNAPSHOT_AGE) or 0)


def longest_crash_streak(session: Session) -> int:
    return session.scalar(select(func.max(Job.crash_streak)).where(Job.state.in_(UNFINISHED_STATES))) or 0


def storage_by_project(session: Session) -> Sequence[Any]:
    """The bytes that every project has in storage, most first; projects without files have 0."""
    stored = (
        select(File.project_id, func.sum(File.bytes).label("bytes"))
        .where(File.purged_at.is_(None))
        .group_by(File.project_id)
        .subquery()
    )
    stored_bytes = func.coalesce(stored.c.bytes, literal(0))
    query = (
        select(Project.id.label("project_id"), Project.name, cast(stored_bytes, BigInteger).label("stored_bytes"))
        .outerjoin(stored, stored.c.project_id == Project.id)
        .order_by(stored_bytes.desc(), Project.seq)
    )
    return session.execute(query).all()


def webhook_backlog(session: Session) -> Any:
    """Due deliveries of webhook events to enabled endpoints: a row with `deliveries` and `oldest_seconds`."""
    enabled = select(WebhookEndpoint.id).where(WebhookEndpoint.enabled)
    is_pending = WebhookDelivery.state == "pending"
    return _backlog(session, WebhookDelivery.next_attempt_at, is_pending, WebhookDelivery.endpoint_id.in_(enabled))


def has_delivery_targets(session: Session) -> bool:
    return bool(session.scalar(select(exists().where(DeliveryTarget.deleted_at.is_(None)))))


def deliveries_by_state(session: Session) -> dict[str, int]:
    """The number of deliveries in each state in which an attempt is planned to change it."""
    states = [state.value for state in sorted(DUE_STATES)]
    return dict.fromkeys(states, 0) | _count_by(session, Delivery.state, Delivery.state.in_(states))


def delivery_backlog(session: Session) -> Any:
    """Deliveries of adapters whose next attempt is due and does not run yet, as `webhook_backlog`."""
    is_due = Delivery.state.in_(sorted(DUE_STATES))
    return _backlog(session, Delivery.next_attempt_at, is_due, Delivery.lease_owner.is_(None))


def failed_deliveries(session: Session, within: timedelta, limit: int) -> Sequence[Any]:
    """The deliveries that failed within the last time, the latest first; not those whose target was deleted."""
    return _deliveries(session, limit, Delivery.state == DeliveryState.FAILED, Delivery.updated_at > NOW - within)


def retried_deliveries(session: Session, limit: int) -> Sequence[Any]:
    """The deliveries whose last attempt had no success and which have a next one, the latest first."""
    return _deliveries(session, limit, Delivery.next_attempt_at.is_not(None), Delivery.error.is_not(None))


def _deliveries(session: Session, limit: int, *conditions: ColumnElement[bool]) -> Sequence[Any]:
    query = (
        select(
            Delivery.id,
            Delivery.project_id,
            Project.name.label("project"),
            DeliveryTarget.name.label("target"),
            Delivery.job_id,
            Delivery.model,
            Delivery.updated_at.label("failed_at"),
            Delivery.next_attempt_at,
            Delivery.error,
        )
        .join(DeliveryTarget, DeliveryTarget.id == Delivery.target_id)
        .join(Project, Project.id == Delivery.project_id)
        .where(*conditions, DeliveryTarget.deleted_at.is_(None))
        .order_by(Delivery.updated_at.desc())
        .limit(limit)
    )
    return session.execute(query).all()


def _backlog(session: Session, due_at: InstrumentedAttribute[Any], *conditions: ColumnElement[bool]) -> Any:
    oldest_seconds = func.coalesce(_age_seconds(func.min(due_at)), 0.0).label("oldest_seconds")
    query = select(func.count().label("deliveries"), oldest_seconds).where(due_at <= NOW, *conditions)
    return session.execute(query).one()


def _count_by(session: Session, column: InstrumentedAttribute[Any], *conditions: ColumnElement[bool]) -> dict[str, int]:
    query = select(column, func.count()).where(*conditions).group_by(column)
    return {str(value): count for value, count in session.execute(query)}


def _age_seconds(moment: Any) -> ColumnElement[float]:
    return cast(func.extract("epoch", NOW - moment), Float)


def _failed_within(within: timedelta) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Job.state == JobState.FAILED, Job.finished_at > NOW - within


def server_time(session: Session) -> datetime:
    moment: datetime = session.scalars(select(NOW)).one()
    return moment
