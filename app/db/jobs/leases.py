"""The lease of a row: its claim, the guarded writes of its holder, its renewal, and who holds one.

Every kind of work that is claimed uses it: jobs, evaluations, exports, registrations of base models, deliveries and
webhooks. A claim increments the row's attempt number, which is the fencing token. A guarded UPDATE that returns no row
means that the lease is lost: the row was cancelled or deleted, or the reconciler ended the attempt after the lease had
expired. An expired lease is held until then, as a step of PostgreSQL's clock expires all. Never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, any_, func, null, select, update
from sqlalchemy.orm import Session, raiseload

from app.db.tables import BaseModelRegistration, Delivery, Evaluation, Export, Job, WebhookDelivery
from app.db.tables.base import Leased, LeasedRow
from app.domain.artifacts.full_disk import pause_seconds
from app.domain.jobs.states import WorkState

LEASED_TABLES: tuple[type[Leased], ...] = (Job, Evaluation, Export, BaseModelRegistration, Delivery, WebhookDelivery)
RELEASED: dict[str, Any] = {"lease_owner": null(), "lease_expires_at": null()}

Row = TypeVar("Row", bound=Leased)
QueuedRow = TypeVar("QueuedRow", bound=LeasedRow)
SequencedRow = TypeVar("SequencedRow", Export, BaseModelRegistration)


@dataclass(frozen=True)
class Lease:
    """A claimed attempt and its holder: the guard of every write."""

    row_id: str
    attempt: int
    owner: str


@dataclass(frozen=True)
class Retries:
    """The delay before a retry, doubled with each crash in a row, and the number of them that ends the work."""

    delay_seconds: float
    max_streak: int


@dataclass(frozen=True)
class HeldLease:
    """A lease as the reconciler sees it; a renewal changes `expires_at`."""

    table: type[Leased]
    lease: Lease
    expires_at: datetime
    is_expired: bool  # by PostgreSQL's clock


class FencedError(RuntimeError):
    """The lease is lost: cancelled, expired, or claimed by a later attempt. Stop the program and drop the result."""


def lease_of(row: Leased) -> Lease:
    assert row.lease_owner is not None, f"{row.id} has no lease"
    return Lease(row.id, row.attempt, row.lease_owner)


def claim(
    session: Session, table: type[Row], ids: ScalarSelect[Any], owner: str, ttl_seconds: float, **columns: Any
) -> list[Row]:
    """Claim the rows of a query that locks them, for `ttl_seconds` from now; update `columns` with the lease."""
    lease = {"attempt": table.attempt + 1, "lease_owner": owner, "lease_expires_at": expiry(ttl_seconds)}
    # An array is computed once; PostgreSQL may run a subquery of IN again, and lock and claim other rows.
    return list(_update(session, table, table.id == any_(func.array(ids)), lease | columns))


def claim_first(
    session: Session, table: type[QueuedRow], ids: Select[str], owner: str, ttl_seconds: float, **columns: Any
) -> QueuedRow | None:
    """Claim the first queued row of `ids` that no other transaction has locked; its state becomes `running`."""
    first_id = ids.limit(1).with_for_update(skip_locked=True, of=table).scalar_subquery()
    return next(iter(claim(session, table, first_id, owner, ttl_seconds, state=WorkState.RUNNING, **columns)), None)


def claim_oldest(
    session: Session, table: type[SequencedRow], owner: str, ttl_seconds: float, *conditions: ColumnElement[bool]
) -> SequencedRow | None:
    """Claim the oldest claimable row, under further conditions; None if there is none."""
    oldest = select(table.id).where(is_claimable(table), *conditions).order_by(table.seq)
    started_at = func.coalesce(table.started_at, func.clock_timestamp())
    return claim_first(session, table, oldest, owner, ttl_seconds, started_at=started_at)


def is_claimable(table: type[QueuedRow]) -> ColumnElement[bool]:
    return and_(table.state == WorkState.QUEUED, table.run_after <= func.clock_timestamp())


def has_claimable(session: Session, table: type[QueuedRow]) -> bool:
    """Whether there is a row that a worker could claim now."""
    return session.scalar(select(table.id).where(is_claimable(table)).limit(1)) is not None


def find_held(session: Session, table: type[Row], owner: str) -> Row | None:
    """The row this owner holds; after a COMMIT without a response, it shows whether the claim was committed."""
    return session.scalar(select(table).where(table.lease_owner == owner).limit(1))


def renew(session: Session, table: type[Leased], lease: Lease, ttl_seconds: float) -> None:
    """Extend the lease to `ttl_seconds` from now. Raises FencedError."""
    update_held(session, table, lease, lease_expires_at=expiry(ttl_seconds))


def read_held(session: Session, table: type[Leased], lease: Lease, *columns: Any) -> Any:
    """Columns of the held row. Raises FencedError."""
    row = session.execute(select(table.id, *columns).where(held_by(table, lease))).one_or_none()
    if row is None:
        raise FencedError(lease.row_id)
    return row


def lock_held(session: Session, table: type[Row], lease: Lease) -> Row:
    """Lock and return the held row. Raises FencedError."""
    row = session.scalar(select(table).where(held_by(table, lease)).with_for_update())
    if row is None:
        raise FencedError(lease.row_id)
    return row


def update_held(
    session: Session, table: type[Row], lease: Lease, *conditions: ColumnElement[bool], **columns: Any
) -> Row:
    """Update columns of the held row, under further conditions. Raises FencedError."""
    row = update_where(session, table, and_(held_by(table, lease), *conditions), columns)
    if row is None:
        raise FencedError(lease.row_id)
    return row


def held_by(table: type[Leased], lease: Lease) -> ColumnElement[bool]:
    """A row that has ended has no owner: a constraint of each table."""
    return and_(table.id == lease.row_id, table.attempt == lease.attempt, table.lease_owner == lease.owner)


def update_where(
    session: Session, table: type[Row], condition: ColumnElement[bool], columns: dict[str, Any]
) -> Row | None:
    """Update the one row of the condition and return it as it is then; None if there is none."""
    return next(iter(_update(session, table, condition, columns)), None)


def end_attempt(session: Session, row: QueuedRow, code: str, message: str, retries: Retries | None) -> QueuedRow:
    """End a failed attempt of a locked row: it is queued again, or fails; without `retries` it fails at once."""
    columns, streak = failed_columns(code, message), row.crash_streak
    if retries is not None:
        streak += 1
        columns = requeued_columns(retries.delay_seconds * 2 ** (streak - 1))
        if streak >= retries.max_streak:
            columns = failed_columns(code, f"{message}; gave up after {streak} attempts that ended like this")
    table = type(row)
    ended = update_where(session, table, table.id == row.id, columns | {"crash_streak": streak})
    assert ended is not None, "the caller has locked it"
    return ended


def wait_for_storage(session: Session, since: datetime | None) -> tuple[float, dict[str, Any]]:
    """How many seconds a row has waited for disk space since the first of its waits in a row, and the columns of its
    next wait."""
    now = func.clock_timestamp()
    if since is None:
        return 0.0, {"run_after": expiry(pause_seconds(0.0)), "storage_full_since": now}
    waited_seconds = float(session.scalar(select(func.extract("epoch", now - since))) or 0.0)
    return waited_seconds, {"run_after": expiry(pause_seconds(waited_seconds))}


def release(session: Session, row: Leased) -> None:
    """End the attempt of a locked row, which is queued or due again."""
    table = type(row)
    columns = requeued_columns() if isinstance(row, LeasedRow) else RELEASED
    update_where(session, table, table.id == row.id, columns)


def finished_columns(state: str) -> dict[str, Any]:
    return RELEASED | {"state": state, "finished_at": func.clock_timestamp()}


def failed_columns(code: str, message: str) -> dict[str, Any]:
    return finished_columns(WorkState.FAILED) | {"error_code": code, "error_message": message}


def requeued_columns(delay_seconds: float = 0.0) -> dict[str, Any]:
    return RELEASED | {"state": WorkState.QUEUED, "run_after": expiry(delay_seconds)}


def held(session: Session) -> list[HeldLease]:
    """The leases that are held, of all tables."""
    found = []
    for table in LEASED_TABLES:
        is_expired = (table.lease_expires_at < func.clock_timestamp()).label("is_expired")
        columns = (table.id, table.attempt, table.lease_owner, table.lease_expires_at, is_expired)
        for row in session.execute(select(*columns).where(table.lease_owner.is_not(None))):
            lease = Lease(row.id, row.attempt, row.lease_owner)
            found.append(HeldLease(table, lease, row.lease_expires_at, row.is_expired))
    return found


def lock_unrenewed(session: Session, found: HeldLease) -> Leased | None:
    """Lock and return the row of a lease; None if it was renewed or ended since, or another transaction has the row."""
    table = found.table
    query = select(table).where(held_by(table, found.lease), table.lease_expires_at == found.expires_at)
    return session.scalar(query.with_for_update(skip_locked=True))


def lock_all(session: Session, *, slot: str = "", owner: str = "") -> Sequence[Leased]:
    """Lock all held rows, or those that an earlier process of the slot holds; it is dead, as `owner` has its lock.

    Waits for locked rows: the lock is of the dead process's last write, which PostgreSQL will roll back.
    """
    rows: list[Leased] = []
    for table in LEASED_TABLES:
        is_of_slot = table.lease_owner.startswith(f"{slot}#" if slot else "", autoescape=True)
        rows += session.scalars(select(table).where(is_of_slot, table.lease_owner != owner).with_for_update())
    return rows


def expiry(seconds: float) -> ColumnElement[Any]:
    """The time in so many seconds, by PostgreSQL's clock."""
    return func.clock_timestamp() + timedelta(seconds=seconds)


def _update(
    session: Session, table: type[Row], condition: ColumnElement[bool], columns: dict[str, Any]
) -> Sequence[Row]:
    # Related rows (a webhook's attempts, an export's files) are not needed here; a caller that needs them selects them.
    statement = update(table).where(condition).values(**columns).returning(table).options(raiseload("*"))
    return session.scalars(statement.execution_options(populate_existing=True)).all()
