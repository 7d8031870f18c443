"""Exports: a queue with leases, as of jobs. All writes of a holder are guarded by attempt, owner and lease.

A guarded UPDATE that returns no row means: deleted, expired, or claimed by a later attempt. Never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, null, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import full_disk
from app.db.jobs.claims import FencedError, Lease
from app.db.tables import Checkpoint, Export, Job
from app.domain.artifacts.exports import UNFINISHED, ExportErrorCode, ExportKind, ExportState, ExportType
from app.domain.artifacts.full_disk import duration_text, pause_seconds

ACTIVE = [state.value for state in UNFINISHED]


def insert(session: Session, job: Job, checkpoint: Checkpoint, kind: ExportKind, expected_bytes: int) -> Export | None:
    """Insert an export in `queued`; None if the checkpoint has one of this kind that has not failed."""
    statement = (
        upsert(Export)
        .values(
            id=new_id("ftexport"),
            project_id=job.project_id,
            job_id=job.id,
            checkpoint_id=checkpoint.id,
            type=kind.type,
            quantization=kind.quantization,
            model=checkpoint.name,
            base_model=job.base_model,
            step_number=checkpoint.step_number,
            adapter_file_ids=checkpoint.file_ids,
            expected_bytes=expected_bytes,
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
        Export.state != ExportState.FAILED,
    )
    return session.scalar(query.with_for_update())


def get(session: Session, project_id: str, job_id: str, export_id: str) -> Export | None:
    return session.scalar(_visible(project_id, job_id).where(Export.id == export_id))


def get_cursor(session: Session, project_id: str, job_id: str, export_id: str) -> Export | None:
    """The export at the end of a page; also a deleted one, as clients delete exports while they page."""
    return session.scalar(
        select(Export).where(Export.project_id == project_id, Export.job_id == job_id, Export.id == export_id)
    )


def page(session: Session, project_id: str, job_id: str, limit: int, after: Export | None = None) -> list[Export]:
    """A page of exports, newest first; `after` is the last export of the previous page."""
    query = _visible(project_id, job_id).order_by(Export.seq.desc()).limit(limit)
    if after is not None:
        query = query.where(Export.seq < after.seq)
    return list(session.scalars(query))


def delete(session: Session, export: Export) -> None:
    """Mark an export as deleted, which fences its holder. The caller deletes its files."""
    unfinished = Export.state.in_(ACTIVE)
    session.execute(
        update(Export)
        .where(Export.id == export.id, Export.deleted_at.is_(None))
        .values(
            deleted_at=func.clock_timestamp(),
            finished_at=func.coalesce(Export.finished_at, func.clock_timestamp()),
            state=case((unfinished, ExportState.CANCELLED.value), else_=Export.state),
            lease_owner=null(),
            lease_expires_at=null(),
        )
    )
    session.refresh(export)


# --- the holder -------------------------------------------------------------------------------------------------------


def claim(
    session: Session, owner: str, ttl_seconds: float, types: Sequence[ExportType] = tuple(ExportType)
) -> Export | None:
    """Claim the oldest claimable export of one of the types; None if there is none."""
    claimable = select(Export.id).where(_is_claimable(), Export.type.in_(types)).order_by(Export.seq)
    oldest_id = claimable.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    return session.execute(
        update(Export)
        .where(Export.id == oldest_id)
        .values(
            state=ExportState.RUNNING,
            attempt=Export.attempt + 1,
            lease_owner=owner,
            lease_expires_at=_lease_expiry(ttl_seconds),
            started_at=func.coalesce(Export.started_at, func.clock_timestamp()),
        )
        .returning(Export)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()


def find_held_export(session: Session, owner: str) -> Export | None:
    """The export this owner holds; after a COMMIT without a response, it shows whether the claim was committed."""
    return session.scalar(
        select(Export).where(Export.lease_owner == owner, Export.lease_expires_at > func.clock_timestamp()).limit(1)
    )


def renew_lease(session: Session, lease: Lease, ttl_seconds: float) -> None:
    """Extend the lease to `ttl_seconds` from now. Raises FencedError."""
    _update(session, lease, lease_expires_at=_lease_expiry(ttl_seconds))


def check_lease(session: Session, lease: Lease) -> None:
    """Raises FencedError if the lease is lost."""
    if session.scalar(select(Export.id).where(_held_by(lease))) is None:
        raise FencedError(lease.job_id)


def succeed(
    session: Session, lease: Lease, manifest: dict[str, Any], file_ids: Sequence[str], size_bytes: int
) -> Export:
    """End the attempt with a result. Raises FencedError."""
    columns = {"manifest": manifest, "file_ids": list(file_ids), "size_bytes": size_bytes}
    return _update(session, lease, **_finished_columns(ExportState.SUCCEEDED) | columns)


def fail(session: Session, lease: Lease, code: ExportErrorCode, message: str) -> Export:
    """End the attempt and the export with an error. Raises FencedError."""
    columns = {"error_code": code, "error_message": message}
    return _update(session, lease, **_finished_columns(ExportState.FAILED) | columns)


def requeue(session: Session, lease: Lease) -> Export:
    """End the attempt without an error, as the worker stops; the export is queued again. Raises FencedError."""
    return _update(session, lease, **_requeued_columns(0.0))


def wait_for_storage(session: Session, lease: Lease, message: str, limit_seconds: float) -> Export:
    """End an attempt on a full disk: retry with growing delays, and fail after `limit_seconds`. Raises FencedError."""
    export = session.execute(select(Export).where(_held_by(lease)).with_for_update()).scalar_one_or_none()
    if export is None:
        raise FencedError(lease.job_id)
    waited_seconds = full_disk.seconds_since(session, export.storage_full_since)
    if waited_seconds >= limit_seconds:
        text = f"{message} It was tried for {duration_text(limit_seconds)}."
        return fail(session, lease, ExportErrorCode.STORAGE_FULL, text)
    columns = full_disk.wait_columns(export.storage_full_since is None, pause_seconds(waited_seconds))
    return _update(session, lease, **_requeued_columns(0.0) | columns)


def finish_crashed(
    session: Session, lease: Lease, code: ExportErrorCode, message: str, delay_seconds: float, max_streak: int
) -> Export:
    """End an attempt that crashed: retry it, or fail after `max_streak` crashes in a row. Raises FencedError."""
    export = session.execute(select(Export).where(_held_by(lease)).with_for_update()).scalar_one_or_none()
    if export is None:
        raise FencedError(lease.job_id)
    return _retry_or_fail(session, export, code, message, delay_seconds, max_streak)


# --- the reconciler ---------------------------------------------------------------------------------------------------


def has_claimable_export(session: Session) -> bool:
    """Whether there is an export that a worker could claim now."""
    return session.scalar(select(Export.id).where(_is_claimable()).limit(1)) is not None


def reap_expired(session: Session, grace_seconds: float, delay_seconds: float, max_streak: int) -> list[Export]:
    """End the attempts whose lease expired at least `grace_seconds` ago."""
    return _reap(
        session,
        Export.lease_expires_at + timedelta(seconds=grace_seconds) < func.clock_timestamp(),
        delay_seconds,
        max_streak,
    )


def reap_previous_incarnation(
    session: Session, slot: str, owner: str, delay_seconds: float, max_streak: int
) -> list[Export]:
    """End the attempts that an earlier process of this slot holds; it is dead, as `owner` has the slot's lock."""
    is_held = and_(Export.lease_owner.startswith(f"{slot}#", autoescape=True), Export.lease_owner != owner)
    return _reap(session, is_held, delay_seconds, max_streak)


def active_attempts(session: Session, export_ids: Sequence[str]) -> dict[str, int]:
    """{export id: attempt} of the exports that a worker holds."""
    rows = session.execute(
        select(Export.id, Export.attempt).where(Export.id.in_(export_ids), Export.lease_owner.is_not(None))
    )
    return {row.id: row.attempt for row in rows}


def _reap(session: Session, lost: ColumnElement[bool], delay_seconds: float, max_streak: int) -> list[Export]:
    exports = session.scalars(select(Export).where(Export.lease_owner.is_not(None), lost).with_for_update()).all()
    return [
        _retry_or_fail(
            session,
            export,
            ExportErrorCode.WORKER_LOST,
            f"The worker {export.lease_owner} was lost during attempt {export.attempt}",
            delay_seconds,
            max_streak,
        )
        for export in exports
    ]


def _retry_or_fail(
    session: Session, export: Export, code: ExportErrorCode, message: str, delay_seconds: float, max_streak: int
) -> Export:
    """End the attempt of an export whose row the caller has locked."""
    streak = export.crash_streak + 1
    values = _requeued_columns(delay_seconds * 2 ** (streak - 1)) | {"crash_streak": streak}
    if streak >= max_streak:
        message = f"{message}; gave up after {streak} attempts that ended like this"
        values = _finished_columns(ExportState.FAILED) | {
            "crash_streak": streak,
            "error_code": code,
            "error_message": message,
        }
    return session.execute(
        update(Export)
        .where(Export.id == export.id)
        .values(**values)
        .returning(Export)
        .execution_options(populate_existing=True)
    ).scalar_one()


def _finished_columns(state: ExportState) -> dict[str, Any]:
    return {"state": state, "lease_owner": null(), "lease_expires_at": null(), "finished_at": func.clock_timestamp()}


def _requeued_columns(delay_seconds: float) -> dict[str, Any]:
    return {
        "state": ExportState.QUEUED,
        "lease_owner": null(),
        "lease_expires_at": null(),
        "run_after": func.clock_timestamp() + timedelta(seconds=delay_seconds),
    }


def _update(session: Session, lease: Lease, **columns: Any) -> Export:
    """Update the held export. Raises FencedError."""
    export = session.execute(
        update(Export)
        .where(_held_by(lease))
        .values(**columns)
        .returning(Export)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if export is None:
        raise FencedError(lease.job_id)
    return export


def _visible(project_id: str, job_id: str) -> Select[Export]:
    return select(Export).where(Export.project_id == project_id, Export.job_id == job_id, Export.deleted_at.is_(None))


def _is_claimable() -> ColumnElement[bool]:
    return and_(Export.state == ExportState.QUEUED, Export.run_after <= func.clock_timestamp())


def _held_by(lease: Lease) -> ColumnElement[bool]:
    return and_(
        Export.id == lease.job_id,
        Export.attempt == lease.attempt,
        Export.lease_owner == lease.owner,
        Export.state == ExportState.RUNNING,
        Export.lease_expires_at > func.clock_timestamp(),
    )


def _lease_expiry(ttl_seconds: float) -> ColumnElement[Any]:
    return func.clock_timestamp() + timedelta(seconds=ttl_seconds)
