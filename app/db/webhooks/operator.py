"""The operator's webhook endpoint, which is a setting and belongs to no project, and its events. Never commits.

The row exists so that deliveries, retries and their log are those of every endpoint. It does not contain the secret,
which the sender reads from its settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from sqlalchemy import delete, func, null, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.tables import WebhookEndpoint

ENDPOINT_ID = "wh_operator"
NO_SECRET = "whsec_setting"
Announced = Literal["operator.worker_lost", "operator.worker_out_of_service", "operator.disk_low"]
EVENT_TYPES = ("operator.job_failed", *get_args(Announced))  # a trigger announces the first
ANNOUNCE = text("SELECT announce_to_operator(:type, CAST(:data AS jsonb))")


def set_endpoint(session: Session, url: str | None) -> None:
    """Create or change the endpoint and enable it; without a URL delete it with its deliveries."""
    if url is None:
        session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == ENDPOINT_ID))
        return
    values: dict[str, Any] = {"url": url, "event_types": list(EVENT_TYPES), "enabled": True, "disabled_at": null()}
    values |= {"disabled_reason": null(), "updated_at": func.clock_timestamp()}
    statement = upsert(WebhookEndpoint).values(id=ENDPOINT_ID, name="operator", secret=NO_SECRET, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def off_reason(session: Session) -> str | None:
    """Why the endpoint is disabled; None if it is enabled, or the operator has none."""
    return session.scalar(select(WebhookEndpoint.disabled_reason).where(WebhookEndpoint.id == ENDPOINT_ID))


def announce(session: Session, event_type: Announced, data: Mapping[str, Any]) -> None:
    """Insert a delivery, if the operator has an endpoint."""
    session.execute(ANNOUNCE, {"type": event_type, "data": json.dumps(dict(data))})
