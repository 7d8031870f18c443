"""Delivery targets of projects. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, func, null, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import Delivery, DeliveryTarget
from app.domain.deliveries.states import DUE_STATES, DeliveryState

DELETED = "the target was deleted"
DELETED_BEFORE_WITHDRAWAL = (
    "the target was deleted before the adapter was withdrawn, so it may still be there; remove or unload it there"
)


def insert(session: Session, project_id: str, **columns: Any) -> DeliveryTarget | None:
    """Insert a target; None if the project has one of this name, also if a concurrent request creates it."""
    statement = upsert(DeliveryTarget).values(id=new_id("target", "_"), project_id=project_id, **columns)
    return session.execute(statement.on_conflict_do_nothing().returning(DeliveryTarget)).scalar_one_or_none()


def get(session: Session, project_id: str, target_id: str, lock: bool = False) -> DeliveryTarget | None:
    """A target by its id or its name."""
    query = select(DeliveryTarget).where(
        DeliveryTarget.project_id == project_id,
        (DeliveryTarget.id == target_id) | (DeliveryTarget.name == target_id),
        DeliveryTarget.deleted_at.is_(None),
    )
    query = query.order_by((DeliveryTarget.id == target_id).desc()).limit(1)
    return session.scalar(query.with_for_update(key_share=True) if lock else query)


def by_names(session: Session, project_id: str, names: Sequence[str]) -> dict[str, DeliveryTarget]:
    rows = session.scalars(_existing(project_id).where(DeliveryTarget.name.in_(names))) if names else ()
    return {target.name: target for target in rows}


def names(session: Session, project_id: str, only_defaults: bool = False) -> list[str]:
    """The names of the project's targets, oldest first."""
    query = _existing(project_id).order_by(DeliveryTarget.seq)
    if only_defaults:
        query = query.where(DeliveryTarget.is_default)
    return [target.name for target in session.scalars(query)]


def count(session: Session, project_id: str) -> int:
    return len(names(session, project_id))


def page(session: Session, project_id: str, limit: int, after: DeliveryTarget | None = None) -> list[DeliveryTarget]:
    """A page of targets, newest first; `after` is the last target of the previous page."""
    query = _existing(project_id)
    if after is not None:
        query = query.where(DeliveryTarget.seq < after.seq)
    return list(session.scalars(query.order_by(DeliveryTarget.seq.desc()).limit(limit)))


def change(session: Session, target: DeliveryTarget, **values: Any) -> DeliveryTarget:
    """Update a target. What it has not received is due again at once, as the change may be what it needed."""
    changed = session.execute(
        update(DeliveryTarget)
        .where(DeliveryTarget.id == target.id)
        .values(updated_at=func.clock_timestamp(), **values)
        .returning(DeliveryTarget)
        .execution_options(populate_existing=True)
    ).scalar_one()
    session.execute(
        update(Delivery)
        .where(Delivery.target_id == target.id, Delivery.state.in_(sorted(DUE_STATES)))
        .values(next_attempt_at=func.clock_timestamp(), tries=0)
    )
    return changed


def delete(session: Session, target: DeliveryTarget) -> None:
    """Mark a target as deleted, drop its credentials, and end its deliveries; what it has received stays there."""
    target.deleted_at, target.credentials, target.is_default = func.clock_timestamp(), None, False
    ended = {"next_attempt_at": null(), "leased_until": null(), "updated_at": func.clock_timestamp()}
    of_target = update(Delivery).where(Delivery.target_id == target.id)
    session.execute(
        of_target.where(Delivery.state.in_([DeliveryState.PENDING, DeliveryState.WITHDRAWING])).values(
            state=DeliveryState.FAILED,
            error=case((Delivery.state == DeliveryState.WITHDRAWING, DELETED_BEFORE_WITHDRAWAL), else_=DELETED),
            **ended,
        )
    )
    session.execute(of_target.where(Delivery.state == DeliveryState.DELIVERED).values(**ended))
    session.flush()


def _existing(project_id: str) -> Any:
    return select(DeliveryTarget).where(DeliveryTarget.project_id == project_id, DeliveryTarget.deleted_at.is_(None))
