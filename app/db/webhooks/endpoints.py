"""Webhook endpoints of projects. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, null, select, text, update
from sqlalchemy.orm import Session

from app.db import encryption
from app.db.ids import new_id
from app.db.tables import WebhookEndpoint
from app.domain.webhooks import DISABLED_BY_REQUEST, secret_hint

PREVIOUS_SECRET_LIFETIME = timedelta(hours=24)  # OpenAI: keep_old_secret_active_for_24_hours
ANNOUNCE = text("SELECT announce_event(:project_id, :type, CAST(:data AS jsonb))")


def insert(
    session: Session,
    project_id: str,
    name: str,
    url: str,
    event_types: list[str],
    secret: str,
    enabled: bool,
    encryption_keys: Sequence[str] = (),
) -> WebhookEndpoint:
    """`secret` is what signs; it is stored encrypted if there are keys."""
    endpoint = WebhookEndpoint(
        id=new_id("wh", "_"),
        project_id=project_id,
        name=name,
        url=url,
        event_types=event_types,
        secret=encryption.protect(encryption_keys, secret),
        secret_hint=secret_hint(secret),
    )
    session.add(endpoint)
    session.flush()
    if not enabled:
        disable(session, endpoint.id, f"{DISABLED_BY_REQUEST}, when it was created")
    session.refresh(endpoint)
    return endpoint


def get(session: Session, project_id: str, endpoint_id: str, lock: bool = False) -> WebhookEndpoint | None:
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.id == endpoint_id)
    return session.scalar(query.with_for_update(key_share=True) if lock else query)


def count(session: Session, project_id: str) -> int:
    query = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    return session.scalar(query) or 0


def page(session: Session, project_id: str, limit: int, after: WebhookEndpoint | None = None) -> list[WebhookEndpoint]:
    """A page of endpoints, newest first; `after` is the last endpoint of the previous page."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    if after is not None:
        query = query.where(WebhookEndpoint.seq < after.seq)
    return list(session.scalars(query.order_by(WebhookEndpoint.seq.desc()).limit(limit)))


def change(session: Session, endpoint: WebhookEndpoint, **columns: Any) -> WebhookEndpoint:
    """Update columns of an endpoint."""
    return _update(session, endpoint.id, updated_at=func.clock_timestamp(), **columns)


def rotate(
    session: Session, endpoint: WebhookEndpoint, secret: str, keep_old: bool, encryption_keys: Sequence[str] = ()
) -> WebhookEndpoint:
    """Replace the secret; with `keep_old` the previous one signs as well for PREVIOUS_SECRET_LIFETIME."""
    previous: dict[str, Any] = {"previous_secret": null(), "previous_secret_expires_at": null()}
    if keep_old:
        previous = {
            "previous_secret": endpoint.secret,
            "previous_secret_expires_at": func.clock_timestamp() + PREVIOUS_SECRET_LIFETIME,
        }
    stored = encryption.protect(encryption_keys, secret)
    return change(session, endpoint, secret=stored, secret_hint=secret_hint(secret), **previous)


def enable(session: Session, endpoint: WebhookEndpoint) -> WebhookEndpoint:
    """Enable an endpoint: pending deliveries are sent, and its series of failures is cleared."""
    columns = {"disabled_at": null(), "disabled_reason": null(), "failing_since": null()}
    return change(session, endpoint, enabled=True, **columns)


def disable(session: Session, endpoint_id: str, reason: str) -> WebhookEndpoint:
    """Stop deliveries to an endpoint; `reason` is shown to its owner."""
    now = func.clock_timestamp()
    return _update(session, endpoint_id, enabled=False, disabled_at=now, disabled_reason=reason, updated_at=now)


def announce(session: Session, project_id: str, event_type: str, data: str) -> None:
    """Insert a delivery for each endpoint of the project that subscribes to the event type; `data` is JSON.

    For changes of a job's state a trigger does the same.
    """
    session.execute(ANNOUNCE, {"project_id": project_id, "type": event_type, "data": data})


def delete_endpoint(session: Session, endpoint: WebhookEndpoint) -> None:
    """Delete an endpoint with all its deliveries."""
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id))
    session.expunge(endpoint)


def lock_against_deletion(session: Session, endpoint_id: str) -> bool:
    """Lock the endpoint so that it is not deleted before this transaction ends; False if it is deleted already.

    To be called before writes to its deliveries: a deletion locks in the same order, which avoids a deadlock.
    """
    query = select(WebhookEndpoint.id).where(WebhookEndpoint.id == endpoint_id)
    return session.scalar(query.with_for_update(read=True, key_share=True)) is not None


def _update(session: Session, endpoint_id: str, **columns: Any) -> WebhookEndpoint:
    return session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id)
        .values(**columns)
        .returning(WebhookEndpoint)
        .execution_options(populate_existing=True)
    ).scalar_one()
