"""Registrations of base models: a queue with leases (`leased_rows`). Never commits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.jobs import leased_rows
from app.db.jobs.claims import Lease
from app.db.tables import BaseModelRegistration
from app.domain.base_models.registrations import RegistrationState


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
