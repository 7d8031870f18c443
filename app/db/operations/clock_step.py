"""What waits until a time by PostgreSQL's clock, after that clock was set back. Never commits."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.tables import BaseModelRegistration, Delivery, Evaluation, Export, Job, WebhookDelivery

DUE_AT: tuple[InstrumentedAttribute[object], ...] = (
    Job.run_after,
    Export.run_after,
    Evaluation.run_after,
    BaseModelRegistration.run_after,
    Delivery.next_attempt_at,
    WebhookDelivery.next_attempt_at,
)
SENDER_LEASES: tuple[InstrumentedAttribute[object], ...] = (Delivery.leased_until, WebhookDelivery.leased_until)


def move_waiting_back(session: Session, seconds: float, max_lease_seconds: float) -> None:
    """Let what is due in the future be due `seconds` earlier, and let the leases of senders end soon.

    What was written since the step is due too early, which costs an attempt. A lease is not moved by the step, as that
    would end those that senders have renewed since.
    """
    now = func.clock_timestamp()
    for column in DUE_AT:
        session.execute(update(column.class_).where(column > now).values({column: column - timedelta(seconds=seconds)}))
    for column in SENDER_LEASES:
        latest = now + timedelta(seconds=max_lease_seconds)
        session.execute(update(column.class_).where(column > latest).values({column: latest}))
