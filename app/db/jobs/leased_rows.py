"""The lease of a row in the queues beside that of jobs: exports, evaluations and registrations of base models.

All writes of a holder are guarded by attempt and owner. A guarded UPDATE that returns no row means: cancelled, deleted,
or ended by the reconciler after the lease had expired. Never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, null, select, update
from sqlalchemy.orm import Session

from app.db.jobs.claims import FencedError, Lease, lease_expiry
from app.db.tables import BaseModelRegistration, Evaluation, Export, Job

Row = TypeVar("Row", bound=Export | Evaluation | BaseModelRegistration)

QUEUED, RUNNING, SUCCEEDED, FAILED = "queued", "running", "succeeded", "failed"  # the same in the states of all tables


def is_claimable(table: type[Row]) -> ColumnElement[bool]:
    return and_(table.state == QUEUED, table.run_after <= func.clock_timestamp())


def has_claimable(session: Session, table: type[Row], *conditions: ColumnElement[bool]) -> bool:
    """Whether there is a row, under further conditions, that a worker could claim now."""
    return session.scalar(select(table.id).where(is_claimable(table), *conditions).limit(1)) is not None


def claim(
    session: Session, table: type[Row], ids: Select[str], owner: str, ttl_seconds: float, **columns: Any
) -> Row | None:
    """Claim the first row of `ids` that no other transaction has locked, for `ttl_seconds` from now."""
    first_id = ids.limit(1).with_for_update(skip_locked=True, of=table).scalar_subquery()
    lease = {"state": RUNNING, "lease_owner": owner, "lease_expires_at": lease_expiry(ttl_seconds)}
    return update_where(session, table, table.id == first_id, {"attempt": table.attempt + 1, **lease, **columns})


def find_held(session: Session, table: type[Row], owner: str) -> Row | None:
    """The row this owner holds; after a COMMIT without a response, it shows whether the claim was committed."""
    query = select(table).where(table.lease_owner == owner, table.lease_expires_at > func.clock_timestamp())
    return session.scalar(query.limit(1))


def renew_lease(session: Session, table: type[Row], lease: Lease, ttl_seconds: float) -> None:
    """Extend the lease to `ttl_seconds` from now. Raises FencedError."""
    update_held(session, table, lease, lease_expires_at=lease_expiry(ttl_seconds))


def check_lease(session: Session, table: type[Row], lease: Lease) -> None:
    """Raises FencedError if the lease is lost."""
    if session.scalar(select(table.id).where(_held_by(table, lease))) is None:
        raise FencedError(lease.job_id)


def lock_held(session: Session, table: type[Row], lease: Lease) -> Row:
    """Lock and return the held row. Raises FencedError."""
    row = session.execute(select(table).where(_held_by(table, lease)).with_for_update()).scalar_one_or_none()
    if row is None:
        raise FencedError(lease.job_id)
    return row


def update_held(session: Session, table: type[Row], lease: Lease, **columns: Any) -> Row:
    """Update columns of the held row. Raises FencedError."""
    row = update_where(session, table, _held_by(table, lease), columns)
    if row is None:
        raise FencedError(lease.job_id)
    return row


def update_where(
    session: Session, table: type[Row], condition: ColumnElement[bool], columns: dict[str, Any]
) -> Row | None:
    """Update the one row of the condition and return it as it is then; None if there is none."""
    return session.execute(
        update(table).where(condition).values(**columns).returning(table).execution_options(populate_existing=True)
    ).scalar_one_or_none()


def requeue(session: Session, table: type[Row], lease: Lease) -> Row:
    """End the attempt without an error, as the worker stops; the row is queued again. Raises FencedError."""
    return update_held(session, table, lease, **requeued_columns(0.0))


def lock_expired(session: Session, table: type[Row], grace_seconds: float) -> Sequence[Row]:
    """Lock the rows whose lease expired at least `grace_seconds` ago."""
    return _lock_leased(
        session, table, table.lease_expires_at + timedelta(seconds=grace_seconds) < func.clock_timestamp()
    )


def restart_leases(session: Session, ttl_seconds: float) -> None:
    """Let every lease, also of jobs, end `ttl_seconds` from now: after a step of PostgreSQL's clock all have expired,
    or end too late to find the holders that are dead."""
    for table in (Job, Export, Evaluation, BaseModelRegistration):
        is_held = table.lease_owner.is_not(None)
        session.execute(update(table).where(is_held).values(lease_expires_at=lease_expiry(ttl_seconds)))


def end_all(session: Session) -> None:
    """Queue all rows that are held again, in a restored database: their holders are of another service."""
    for table in (Export, Evaluation, BaseModelRegistration):
        session.execute(update(table).where(table.lease_owner.is_not(None)).values(requeued_columns(0)))


def lock_previous_incarnation(session: Session, table: type[Row], slot: str, owner: str) -> Sequence[Row]:
    """Lock the rows that an earlier process of this slot holds; it is dead, as `owner` has the slot's lock."""
    is_held = and_(table.lease_owner.startswith(f"{slot}#", autoescape=True), table.lease_owner != owner)
    return _lock_leased(session, table, is_held)


def active_attempts(session: Session, table: type[Row], ids: Sequence[str]) -> dict[str, int]:
    """{id: attempt} of the rows that a worker holds."""
    rows = session.execute(select(table.id, table.attempt).where(table.id.in_(ids), table.lease_owner.is_not(None)))
    return {row.id: row.attempt for row in rows}


def retry_or_fail(session: Session, row: Row, code: str, message: str, delay_seconds: float, max_streak: int) -> Row:
    """End an attempt that crashed, of a locked row: queue it again, or fail after `max_streak` crashes in a row."""
    streak = row.crash_streak + 1
    columns = requeued_columns(delay_seconds * 2 ** (streak - 1))
    if streak >= max_streak:
        columns = failed_columns(code, f"{message}; gave up after {streak} attempts that ended like this")
    table = type(row)
    ended = update_where(session, table, table.id == row.id, columns | {"crash_streak": streak})
    assert ended is not None
    return ended


def finished_columns(state: str) -> dict[str, Any]:
    return {"state": state, "lease_owner": null(), "lease_expires_at": null(), "finished_at": func.clock_timestamp()}


def failed_columns(code: str, message: str) -> dict[str, Any]:
    return finished_columns(FAILED) | {"error_code": code, "error_message": message}


def requeued_columns(delay_seconds: float) -> dict[str, Any]:
    return {
        "state": QUEUED,
        "lease_owner": null(),
        "lease_expires_at": null(),
        "run_after": func.clock_timestamp() + timedelta(seconds=delay_seconds),
    }


def _lock_leased(session: Session, table: type[Row], condition: ColumnElement[bool]) -> Sequence[Row]:
    query = select(table).where(table.lease_owner.is_not(None), condition).with_for_update()
    return session.scalars(query).all()


def _held_by(table: type[Row], lease: Lease) -> ColumnElement[bool]:
    return and_(
        table.id == lease.job_id,
        table.attempt == lease.attempt,
        table.lease_owner == lease.owner,
        table.state == RUNNING,
    )
