"""The state of the service for operators: queue, leases, failures, storage by project. Never commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, cast, delete, func, literal, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

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
from app.domain.artifacts.exports import UNFINISHED
from app.domain.deliveries.targets import DUE_STATES, DeliveryState
from app.domain.jobs.states import TERMINAL, Desired, JobState

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


@dataclass(frozen=True)
class WaitingJob:
    """The job of a state that has been due for the longest time."""

    state: JobState
    job_id: str
    project_id: str
    due_since: datetime  # its creation, or the end of the delay after its last attempt
    age_seconds: float


@dataclass(frozen=True)
class Report:
    data: dict[str, Any]
    updated_at: datetime
    age_seconds: float


@dataclass(frozen=True)
class Backlog:
    """Deliveries that are due: of webhook events to enabled endpoints, or of adapters to targets."""

    deliveries: int
    oldest_seconds: float


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


def reports(session: Session) -> dict[str, Report]:
    """The last report of each process."""
    age_seconds = func.extract("epoch", NOW - ServiceState.updated_at)
    rows = session.execute(select(ServiceState.name, ServiceState.data, ServiceState.updated_at, age_seconds))
    return {name: Report(data, updated_at, float(seconds)) for name, data, updated_at, seconds in rows}


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
    query = select(Job.error_code, func.count()).where(*_failed_within(within)).group_by(Job.error_code)
    return {code: count for code, count in session.execute(query) if code is not None}


def has_webhooks(session: Session) -> bool:
    return session.scalar(select(WebhookEndpoint.id).where(WebhookEndpoint.enabled).limit(1)) is not None


def jobs_by_state(session: Session) -> dict[str, int]:
    """The number of unfinished jobs in each unfinished state."""
    query = select(Job.state, func.count().label("jobs")).where(Job.state.in_(UNFINISHED_STATES)).group_by(Job.state)
    return dict.fromkeys(UNFINISHED_STATES, 0) | {row.state: row.jobs for row in session.execute(query)}


def unfinished_exports(session: Session) -> int:
    query = select(func.count()).where(Export.state.in_([state.value for state in UNFINISHED]))
    return session.scalar(query) or 0


def oldest_waiting(session: Session) -> list[WaitingJob]:
    """The oldest due job that waits for validation, and the oldest one that waits for a GPU worker."""
    oldest = []
    due_since = func.greatest(Job.created_at, Job.run_after)
    for state in (JobState.VALIDATING, JobState.QUEUED):
        age_seconds = func.extract("epoch", NOW - due_since)
        row = session.execute(
            select(Job.id, Job.project_id, due_since.label("due_since"), age_seconds.label("age_seconds"))
            .where(Job.state == state, Job.desired == Desired.RUN, Job.lease_owner.is_(None), Job.run_after <= NOW)
            .order_by(due_since)
            .limit(1)
        ).one_or_none()
        if row is not None:
            oldest.append(WaitingJob(state, row.id, row.project_id, row.due_since, float(row.age_seconds)))
    return oldest


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


def webhook_backlog(session: Session) -> Backlog:
    oldest_seconds = func.extract("epoch", NOW - func.min(WebhookDelivery.next_attempt_at))
    query = (
        select(func.count(), oldest_seconds)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.state == "pending", WebhookDelivery.next_attempt_at <= NOW, WebhookEndpoint.enabled)
    )
    count, seconds = session.execute(query).one()
    return Backlog(count, float(seconds or 0))


def has_delivery_targets(session: Session) -> bool:
    return session.scalar(select(DeliveryTarget.id).where(DeliveryTarget.deleted_at.is_(None)).limit(1)) is not None


def deliveries_by_state(session: Session) -> dict[str, int]:
    """The number of deliveries in each state in which an attempt is planned to change it."""
    states = sorted(DUE_STATES)
    query = select(Delivery.state, func.count()).where(Delivery.state.in_(states)).group_by(Delivery.state)
    counts = {str(state): int(count) for state, count in session.execute(query)}
    return {state.value: counts.get(state, 0) for state in states}


def delivery_backlog(session: Session) -> Backlog:
    """Deliveries whose next attempt is due and does not run yet."""
    oldest_seconds = func.extract("epoch", NOW - func.min(Delivery.next_attempt_at))
    query = select(func.count(), oldest_seconds).where(
        Delivery.state.in_(sorted(DUE_STATES)),
        Delivery.next_attempt_at <= NOW,
        func.coalesce(Delivery.leased_until, NOW) <= NOW,
    )
    count, seconds = session.execute(query).one()
    return Backlog(count, float(seconds or 0))


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


def _failed_within(within: timedelta) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Job.state == JobState.FAILED, Job.finished_at > NOW - within


def server_time(session: Session) -> datetime:
    moment: datetime = session.scalars(select(NOW)).one()
    return moment
