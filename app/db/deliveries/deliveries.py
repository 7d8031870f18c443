"""Deliveries, the outbox: claims of due deliveries, and the outcomes of their attempts. Never commits.

A claim leases deliveries that are due (`app.db.jobs.leases`). A target has one attempt at a time, of any sender: two
adapters under one name then replace each other in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, null, select, text, true, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, joinedload

from app.db.ids import new_id
from app.db.jobs import leases
from app.db.jobs.events import append_event, next_event_seq
from app.db.jobs.leases import FencedError, Lease
from app.db.tables import Checkpoint, Delivery, DeliveryTarget, Job, ServedReferenceRow
from app.domain.deliveries.targets import ENGINES, ONE_ADAPTER, DeliveryState

TARGET_DELETED = "the target was deleted"
TARGET_DELETED_BEFORE_WITHDRAWAL = (
    "the target was deleted before the adapter was withdrawn, so it may still be there; remove or unload it there"
)
# The target has the adapter, or may get it now.
IS_AT_TARGET = (Delivery.state != DeliveryState.WITHDRAWN) & (
    Delivery.location.is_not(None) | Delivery.lease_owner.is_not(None)
)
CLAIM_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('deliveries.claim'))")
DUE = text(
    """
    SELECT due.id FROM delivery_targets t CROSS JOIN LATERAL (
      SELECT x.id, x.next_attempt_at FROM deliveries x
      WHERE x.target_id = t.id AND x.next_attempt_at <= clock_timestamp() AND NOT EXISTS (
        SELECT FROM deliveries held WHERE held.target_id = t.id AND held.lease_owner IS NOT NULL
      )
      ORDER BY x.next_attempt_at, x.seq LIMIT 1
    ) due
    WHERE t.deleted_at IS NULL AND NOT EXISTS (SELECT FROM service_state WHERE name = 'copy')
    ORDER BY due.next_attempt_at LIMIT :limit
    """
)


def create(session: Session, job: Job, checkpoint: Checkpoint, target: DeliveryTarget) -> Delivery:
    """Insert a delivery that is due at once; an earlier one of the same adapter and target is due again instead."""
    now = func.clock_timestamp()
    statement = upsert(Delivery).values(
        id=new_id("delivery", "_"),
        project_id=job.project_id,
        target_id=target.id,
        job_id=job.id,
        checkpoint_id=checkpoint.id,
        model=checkpoint.name,
        served_model=target.served_model or checkpoint.name,
        next_attempt_at=now,
    )
    again = {
        "state": DeliveryState.PENDING.value,
        "tries": 0,
        "next_attempt_at": now,
        "error": null(),
    }
    row = session.execute(
        statement.on_conflict_do_update(
            index_elements=["target_id", "model"],
            index_where=text("state <> 'withdrawn'"),
            set_=again | {"served_model": statement.excluded.served_model, "updated_at": now},
        )
        .returning(Delivery)
        .execution_options(populate_existing=True)
    ).scalar_one()
    message = f"Delivery of {checkpoint.name} to {target.name} requested"
    add_event(session, job.id, message, data=_event_data(row, target.name))
    return row


def create_for_result(session: Session, job: Job, checkpoint: Checkpoint) -> None:
    """Insert the deliveries that the job requests; a target that was deleted meanwhile becomes an event."""
    table = DeliveryTarget
    query = select(table).where(table.project_id == job.project_id, table.deleted_at.is_(None))
    found = {target.name: target for target in session.scalars(query.where(table.name.in_(job.deliver_to)))}
    for name in job.deliver_to:
        if name in found:
            create(session, job, checkpoint, found[name])
        else:
            add_event(session, job.id, f"Not delivered to {name}: the target was deleted", level="warn")


def withdraw(session: Session, delivery: Delivery) -> None:
    """Have an adapter removed from its target; a delivery that was never attempted is withdrawn at once."""
    session.refresh(delivery, with_for_update=True)  # a sender may have claimed it since it was read
    if delivery.state in (DeliveryState.WITHDRAWING, DeliveryState.WITHDRAWN):
        return
    now = func.clock_timestamp()
    delivery.state, delivery.next_attempt_at = DeliveryState.WITHDRAWN, None
    if delivery.attempt:
        delivery.state, delivery.next_attempt_at = DeliveryState.WITHDRAWING, now
    delivery.tries, delivery.error, delivery.updated_at = 0, None, now
    session.flush()
    session.refresh(delivery)
    add_event(session, delivery.job_id, f"Withdrawal of {delivery.model} from its target requested")


def withdraw_model(session: Session, model: str) -> None:
    """Withdraw every delivery of an `ft:` model, as it is deleted."""
    for delivery in session.scalars(select(Delivery).where(Delivery.model == model)):
        withdraw(session, delivery)


# --- the sender -------------------------------------------------------------------------------------------------------


def claim(session: Session, limit: int, owner: str, lease_seconds: float) -> list[Delivery]:
    """Claim at most `limit` due deliveries, one per target. Claims are serialized: each must see those before it."""
    session.execute(CLAIM_LOCK)
    _end_without_target(session)
    due = DUE.bindparams(limit=limit).columns(Delivery.id).scalar_subquery()
    claimed = leases.claim(session, Delivery, due, owner, lease_seconds, tries=Delivery.tries + 1)
    rows = (Delivery.job, Delivery.checkpoint, Delivery.served_reference)
    query = select(Delivery).where(Delivery.id.in_([each.id for each in claimed])).options(*map(joinedload, rows))
    return list(session.scalars(query.execution_options(populate_existing=True)))


def record(session: Session, delivery: Delivery, lease: Lease, **columns: Any) -> bool:
    """Write the outcome of an attempt and end its lease.

    Returns False without writing it if the delivery was withdrawn or changed since the claim. What the target has got
    meanwhile is written all the same, because a withdrawal needs it. Raises FencedError.
    """
    is_unchanged = (Delivery.state == delivery.state, Delivery.served_model == delivery.served_model)
    values = leases.RELEASED | {"updated_at": func.clock_timestamp()} | columns
    try:
        leases.update_held(session, Delivery, lease, *is_unchanged, **values)
    except FencedError:
        received = {"location": columns["location"]} if columns.get("location") else {}
        leases.update_held(session, Delivery, lease, **leases.RELEASED, **received)
        return False
    return True


def end_replaced(session: Session, delivery: Delivery) -> None:
    """End the earlier deliveries whose name at the target is now this one's."""
    has_one_name = delivery.target.kind in ONE_ADAPTER
    session.execute(
        update(Delivery)
        .where(
            Delivery.target_id == delivery.target_id,
            true() if has_one_name else Delivery.served_model == delivery.served_model,
            Delivery.seq < delivery.seq,
            Delivery.state != DeliveryState.WITHDRAWN,
        )
        .values(
            state=DeliveryState.WITHDRAWN,
            next_attempt_at=null(),
            tries=0,
            error=f"replaced by {delivery.model}",
            updated_at=func.clock_timestamp(),
        )
    )


def of_name(session: Session, delivery: Delivery) -> list[Delivery]:
    """What engines have under a served name, in the order of the deliveries; of this target also what was replaced."""
    query = (
        select(Delivery)
        .join(DeliveryTarget, DeliveryTarget.id == Delivery.target_id)
        .where(
            DeliveryTarget.kind.in_(sorted(ENGINES)),
            Delivery.served_model == delivery.served_model,
            Delivery.location.is_not(None),
            (Delivery.target_id == delivery.target_id)
            | (DeliveryTarget.deleted_at.is_(None) & (Delivery.state != DeliveryState.WITHDRAWN)),
        )
    )
    return list(session.scalars(query.order_by(Delivery.seq)))


def add_event(
    session: Session, job_id: str, message: str, level: str = "info", data: Mapping[str, Any] | None = None
) -> None:
    """Append an event to a job, also to one that has ended; the job's version changes, so clients see the delivery."""
    job = session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(**next_event_seq())
        .returning(Job)
        .execution_options(populate_existing=True)
    ).scalar_one()
    append_event(session, job, message, level, data=data)


def add_reference(session: Session, checkpoint: Checkpoint, reference: Mapping[str, Any]) -> None:
    """Store what the trainer recorded for a result; it replaces that of an earlier attempt."""
    values = {"project_id": checkpoint.project_id, "reference": dict(reference)}
    statement = upsert(ServedReferenceRow).values(checkpoint_id=checkpoint.id, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["checkpoint_id"], set_=values))


def _end_without_target(session: Session) -> None:
    """End deliveries that are due at a deleted target: nothing can be sent there any more."""
    query = (
        select(Delivery, DeliveryTarget.name)
        .join(DeliveryTarget, DeliveryTarget.id == Delivery.target_id)
        .where(DeliveryTarget.deleted_at.is_not(None), Delivery.next_attempt_at.is_not(None))
        .with_for_update(of=Delivery)
    )
    for delivery, target in session.execute(query).all():
        is_there = delivery.state == DeliveryState.WITHDRAWING
        delivery.error = TARGET_DELETED_BEFORE_WITHDRAWAL if is_there else TARGET_DELETED
        delivery.state, delivery.updated_at = DeliveryState.FAILED, func.clock_timestamp()
        delivery.next_attempt_at = delivery.lease_owner = delivery.lease_expires_at = None
        session.flush()
        verb = "withdrawn" if is_there else "delivered"
        message = f"{target}: {delivery.served_model} was not {verb}: {delivery.error}"
        add_event(session, delivery.job_id, message, "error", _event_data(delivery, target))


def _event_data(delivery: Delivery, target: str) -> dict[str, Any]:
    return {"delivery": delivery.id, "target": target, "served_model": delivery.served_model}
