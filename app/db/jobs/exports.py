"""Exports: a queue with leases (`leases`). Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import checkpoints, leases
from app.db.jobs.leases import Lease
from app.db.tables import Checkpoint, Export, Job
from app.domain.artifacts.exports import ExportErrorCode, ExportKind, ExportType
from app.domain.jobs.states import UNFINISHED_WORK, WorkState
from app.domain.units import duration_text


def insert(session: Session, job: Job, checkpoint: Checkpoint, kind: ExportKind, expected_bytes: int) -> Export | None:
    """Insert an export in `queued`; None if the checkpoint has one of this kind that has not failed."""
    statement = (
        upsert(Export)
        .values(
            id=new_id("ftexport"),
            type=kind.type,
            quantization=kind.quantization,
            expected_bytes=expected_bytes,
            **checkpoints.columns_of(job, checkpoint),
        )
        .on_conflict_do_nothing()
        .returning(Export)
    )
    return session.execute(statement).scalar_one_or_none()


def lock_current(session: Session, model: str, kind: ExportKind) -> Export | None:
    """Lock and return the queued, running or succeeded export of a model."""
    query = select(Export).where(
        Export.model == model,
        Export.type == kind.type,
        Export.quantization.is_not_distinct_from(kind.quantization),
        Export.deleted_at.is_(None),
        Export.state != WorkState.FAILED,
    )
    return session.scalar(query.with_for_update())


def delete(session: Session, export: Export) -> None:
    """Mark an export as deleted, which fences its holder. The caller deletes its files."""
    unfinished = Export.state.in_(UNFINISHED_WORK)
    session.execute(
        update(Export)
        .where(Export.id == export.id, Export.deleted_at.is_(None))
        .values(
            deleted_at=func.clock_timestamp(),
            finished_at=func.coalesce(Export.finished_at, func.clock_timestamp()),
            state=case((unfinished, WorkState.CANCELLED.value), else_=Export.state),
            **leases.RELEASED,
        )
    )
    session.refresh(export)


# --- the holder -------------------------------------------------------------------------------------------------------


def claim(
    session: Session, owner: str, ttl_seconds: float, types: Sequence[ExportType] = tuple(ExportType)
) -> Export | None:
    """Claim the oldest claimable export of one of the types; None if there is none."""
    return leases.claim_oldest(session, Export, owner, ttl_seconds, Export.type.in_(types))


def succeed(
    session: Session, lease: Lease, manifest: dict[str, Any], file_ids: Sequence[str], size_bytes: int
) -> Export:
    """End the attempt with a result. Raises FencedError."""
    columns = {"manifest": manifest, "file_ids": list(file_ids), "size_bytes": size_bytes}
    return leases.update_held(session, Export, lease, **leases.finished_columns(WorkState.SUCCEEDED) | columns)


def wait_for_storage(session: Session, export: Export, message: str, limit_seconds: float) -> Export | None:
    """End the attempt of a locked row on a full disk: retry with growing delays, and fail after `limit_seconds`."""
    waited_seconds, waiting = leases.wait_for_storage(session, export.storage_full_since)
    columns = leases.requeued_columns() | waiting
    if waited_seconds >= limit_seconds:
        text = f"{message} It was tried for {duration_text(limit_seconds)}."
        columns = leases.failed_columns(ExportErrorCode.STORAGE_FULL, text)
    return leases.update_where(session, Export, Export.id == export.id, columns)
