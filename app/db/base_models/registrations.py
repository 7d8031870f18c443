"""Registrations of base models: a queue with leases (`leased_rows`). Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import leased_rows
from app.db.jobs.claims import Lease
from app.db.tables import BaseModelRegistration
from app.domain.base_models.registrations import UNFINISHED, RegistrationState


def insert(session: Session, **columns: Any) -> BaseModelRegistration | None:
    """Insert a registration; None if one of this name is unfinished, also of a concurrent request."""
    statement = upsert(BaseModelRegistration).values(id=new_id("basereg", "_"), **columns).on_conflict_do_nothing()
    return session.execute(statement.returning(BaseModelRegistration)).scalar_one_or_none()


def get(session: Session, registration_id: str) -> BaseModelRegistration | None:
    return session.get(BaseModelRegistration, registration_id)


def unfinished(session: Session, name: str) -> BaseModelRegistration | None:
    states = [state.value for state in UNFINISHED]
    query = select(BaseModelRegistration).where(
        BaseModelRegistration.name == name, BaseModelRegistration.state.in_(states)
    )
    return session.scalar(query)


def page(session: Session, limit: int, after: BaseModelRegistration | None = None) -> list[BaseModelRegistration]:
    """A page of registrations, newest first; `after` is the last one of the previous page."""
    query = select(BaseModelRegistration).order_by(BaseModelRegistration.seq.desc()).limit(limit)
    if after is not None:
        query = query.where(BaseModelRegistration.seq < after.seq)
    return list(session.scalars(query))


def claim(session: Session, owner: str, ttl_seconds: float) -> BaseModelRegistration | None:
    """Claim the oldest claimable registration; None if there is none."""
    table = BaseModelRegistration
    claimable = select(table.id).where(leased_rows.is_claimable(table)).order_by(table.seq)
    started_at = func.coalesce(table.started_at, func.clock_timestamp())
    return leased_rows.claim(session, table, claimable, owner, ttl_seconds, started_at=started_at)


def succeed(session: Session, lease: Lease, directory: str, revision: str | None, notes: Sequence[str]) -> None:
    """End the attempt; `directory` and `revision` are the registered ones: a download or a conversion makes the
    directory, and a branch is a commit then. Raises FencedError."""
    columns = leased_rows.finished_columns(RegistrationState.SUCCEEDED)
    columns |= {"directory": directory, "revision": revision, "notes": list(notes)}
    leased_rows.update_held(session, BaseModelRegistration, lease, **columns)


def fail(session: Session, lease: Lease, code: str, message: str) -> None:
    """End the attempt and the registration with an error. Raises FencedError."""
    leased_rows.update_held(session, BaseModelRegistration, lease, **leased_rows.failed_columns(code, message))
