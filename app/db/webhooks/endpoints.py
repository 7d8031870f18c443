"""What senders of webhooks do to endpoints; app.services.webhooks has what their owners do. Never commits."""

from __future__ import annotations

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session, joinedload

from app.db.tables import WebhookEndpoint
from app.domain.webhooks import DISABLED_BY_REQUEST

ENABLED = {"enabled": True, "disabled_at": None, "disabled_reason": None, "failing_since": None}
ANNOUNCE = text("SELECT announce_event(:project_id, :type, CAST(:data AS jsonb))")


def disable(session: Session, endpoint_id: str, reason: str) -> None:
    """Stop deliveries to an endpoint; `reason` is shown to its owner."""
    now = func.clock_timestamp()
    values = {"enabled": False, "disabled_at": now, "disabled_reason": reason, "updated_at": now}
    session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).values(values))


def failing(session: Session, limit: int) -> list[WebhookEndpoint]:
    """The endpoints that fail, and those that were disabled after failures; not those disabled by request."""
    table = WebhookEndpoint
    query = select(table).options(joinedload(table.project)).order_by(table.failing_since, table.seq).limit(limit)
    has_failed = table.failing_since.is_not(None) | table.disabled_reason.is_not(None)
    is_by_request = func.coalesce(table.disabled_reason, "").like(f"{DISABLED_BY_REQUEST}%")
    return list(session.scalars(query.where(has_failed, ~is_by_request)))


def announce(session: Session, project_id: str, event_type: str, data: str) -> None:
    """Insert a delivery for each endpoint of the project that subscribes to the event type; `data` is JSON.

    For changes of a job's state a trigger does the same.
    """
    session.execute(ANNOUNCE, {"project_id": project_id, "type": event_type, "data": data})


def lock_against_deletion(session: Session, endpoint_id: str) -> bool:
    """Lock the endpoint so that it is not deleted before this transaction ends; False if it is deleted already.

    To be called before writes to its deliveries: a deletion locks in the same order, which avoids a deadlock.
    """
    query = select(WebhookEndpoint.id).where(WebhookEndpoint.id == endpoint_id)
    return session.scalar(query.with_for_update(read=True, key_share=True)) is not None
