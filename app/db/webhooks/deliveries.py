"""Webhook deliveries, the outbox: claims of due deliveries, outcomes of attempts, retention. Never commits.

A claim leases deliveries that are due (`app.db.jobs.leases`). If a sender dies, the delivery is claimed again after the
lease, with the same event id: delivery is at least once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, false, func, null, select, text, update
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import leases
from app.db.jobs.leases import Lease
from app.db.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint

# One delivery per endpoint, its oldest, so that a backlog of a slow endpoint does not delay the others.
DUE = text(
    """
    SELECT due.id FROM webhook_endpoints e CROSS JOIN LATERAL (
      SELECT w.id, w.next_attempt_at FROM webhook_deliveries w
      WHERE w.endpoint_id = e.id AND w.state = 'pending' AND w.next_attempt_at <= clock_timestamp()
        AND w.lease_owner IS NULL AND (e.enabled OR w.is_test)
      ORDER BY w.next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED
    ) due
    WHERE e.id <> ALL(CAST(:busy AS text[])) AND NOT EXISTS (SELECT FROM service_state WHERE name = 'copy')
    ORDER BY due.next_attempt_at LIMIT :limit
    """
)


@dataclass(frozen=True)
class ClaimedWebhook:
    """A claimed delivery with its endpoint, whose previous secret signs as well while it is valid."""

    delivery: WebhookDelivery
    endpoint: WebhookEndpoint
    signs_with_previous: bool


@dataclass(frozen=True)
class DeliveryOutcome:
    """The outcome of an attempt. `retry_seconds` is None if there is no further attempt.

    One that could send nothing is no try: the schedule of retries does not go on.
    """

    is_delivered: bool
    duration_ms: int
    status_code: int | None
    error: str | None
    response: str | None
    retry_seconds: float | None
    is_try: bool = True


def claim(
    session: Session, limit: int, owner: str, lease_seconds: float, busy: Sequence[str] = ()
) -> list[ClaimedWebhook]:
    """Claim at most `limit` due deliveries, one per endpoint, except of the `busy` endpoints (ids)."""
    due = DUE.bindparams(limit=limit, busy=list(busy)).columns(WebhookDelivery.id).scalar_subquery()
    claimed = leases.claim(session, WebhookDelivery, due, owner, lease_seconds, tries=WebhookDelivery.tries + 1)
    if not claimed:
        return []
    is_valid = func.coalesce(WebhookEndpoint.previous_secret_expires_at > func.clock_timestamp(), false())
    deliveries = {each.endpoint_id: each for each in claimed}
    rows = session.execute(select(WebhookEndpoint, is_valid).where(WebhookEndpoint.id.in_(deliveries)))
    return [ClaimedWebhook(deliveries[endpoint.id], endpoint, is_signing) for endpoint, is_signing in rows]


def record_outcome(session: Session, lease: Lease, outcome: DeliveryOutcome) -> None:
    """Store the outcome of an attempt. Raises FencedError if the delivery was claimed again or deleted."""
    columns = leases.RELEASED | _next_columns(outcome)
    delivery = leases.update_held(session, WebhookDelivery, lease, **columns)
    session.add(
        WebhookAttempt(
            delivery_id=delivery.id,
            attempt=delivery.attempt,
            project_id=delivery.project_id,
            duration_ms=outcome.duration_ms,
            status_code=outcome.status_code,
            error=outcome.error,
            response=outcome.response,
        )
    )
    session.flush()


def record_endpoint_success(session: Session, endpoint_id: str) -> None:
    """End the endpoint's series of failures."""
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.failing_since.is_not(None))
        .values(failing_since=null())
    )


def record_endpoint_failure(session: Session, endpoint_id: str) -> float:
    """Record a failure; the seconds since the first failure after the last success."""
    since = func.coalesce(WebhookEndpoint.failing_since, func.clock_timestamp())
    seconds = session.scalar(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id)
        .values(failing_since=since)
        .returning(func.extract("epoch", func.clock_timestamp() - WebhookEndpoint.failing_since))
    )
    return float(seconds or 0)


def add_test(session: Session, endpoint: WebhookEndpoint, event_type: str, data: dict[str, Any]) -> WebhookDelivery:
    """Insert a test delivery, which is due at once."""
    delivery = WebhookDelivery(
        id=new_id("whd", "_"),
        project_id=endpoint.project_id,
        endpoint_id=endpoint.id,
        event_id=new_id("evt", "_"),
        event_type=event_type,
        data=data,
        is_test=True,
        next_attempt_at=func.clock_timestamp(),
    )
    session.add(delivery)
    session.flush()
    return delivery


def redeliver(session: Session, delivery: WebhookDelivery) -> WebhookDelivery:
    """Make a delivery due again, from the start of the retry schedule; a running attempt keeps its lease."""
    return session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery.id)
        .values(state="pending", next_attempt_at=func.clock_timestamp(), finished_at=null(), tries=0)
        .returning(WebhookDelivery)
        .execution_options(populate_existing=True)
    ).scalar_one()


def delete_old(session: Session, keep_seconds: float, limit: int = 10_000) -> int:
    """Delete old deliveries, also those pending for a disabled endpoint; the number of them."""
    old = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.created_at < func.clock_timestamp() - timedelta(seconds=keep_seconds))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    deleted = session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(old)).returning(WebhookDelivery.id))
    return len(deleted.all())


def _next_columns(outcome: DeliveryOutcome) -> dict[str, Any]:
    if not outcome.is_delivered and outcome.retry_seconds is not None:
        tries = WebhookDelivery.tries - (0 if outcome.is_try else 1)
        return {"next_attempt_at": leases.expiry(outcome.retry_seconds), "tries": tries}
    state = "delivered" if outcome.is_delivered else "failed"
    return {"state": state, "next_attempt_at": null(), "finished_at": func.clock_timestamp()}
