"""The encrypted columns: credentials of delivery targets, signing secrets of webhooks. Never commits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from app.db.tables import DeliveryTarget, WebhookEndpoint
from app.db.webhooks import operator

SecretRow = DeliveryTarget | WebhookEndpoint
KINDS: dict[type[SecretRow], str] = {DeliveryTarget: "delivery_target", WebhookEndpoint: "webhook_endpoint"}
COLUMNS: dict[type[SecretRow], tuple[str, ...]] = {
    DeliveryTarget: ("credentials",),
    WebhookEndpoint: ("secret", "previous_secret"),
}


def rows(session: Session) -> Iterator[SecretRow]:
    """Every row with a secret, oldest first; the operator's webhook has its secret in a setting."""
    yield from session.scalars(
        select(DeliveryTarget).where(DeliveryTarget.credentials.is_not(None)).order_by(DeliveryTarget.seq)
    )
    yield from session.scalars(
        select(WebhookEndpoint).where(WebhookEndpoint.id != operator.ENDPOINT_ID).order_by(WebhookEndpoint.seq)
    )


def stored(row: SecretRow, now: datetime) -> dict[str, str]:
    """The stored secrets of a row by column; not a previous one that signs no more at this time of PostgreSQL."""
    found = {name: getattr(row, name) for name in COLUMNS[type(row)]}
    if isinstance(row, WebhookEndpoint) and row.previous_secret_expires_at and row.previous_secret_expires_at <= now:
        del found["previous_secret"]
    return {name: value for name, value in found.items() if value is not None}


def lock(session: Session, row: SecretRow) -> SecretRow | None:
    """Lock the row and read it again; None if it was deleted."""
    try:
        session.refresh(row, with_for_update={"key_share": True})
    except InvalidRequestError:
        return None
    return row
