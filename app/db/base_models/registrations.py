"""Registrations of base models: a queue with leases (`leases`). Never commits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.jobs import leases
from app.db.jobs.leases import Lease
from app.db.tables import BaseModelRegistration
from app.domain.base_models.registrations import RegistrationState


def claim(session: Session, owner: str, ttl_seconds: float) -> BaseModelRegistration | None:
    """Claim the oldest claimable registration; None if there is none."""
    table = BaseModelRegistration
    claimable = select(table.id).where(leases.is_claimable(table)).order_by(table.seq)
    started_at = func.coalesce(table.started_at, func.clock_timestamp())
    return leases.claim_first(session, table, claimable, owner, ttl_seconds, started_at=started_at)


def succeed(session: Session, lease: Lease, directory: str, revision: str | None, notes: Sequence[str]) -> None:
    """End the attempt; `directory` and `revision` are the registered ones: a download or a conversion makes the
    directory, and a branch is a commit then. Raises FencedError."""
    columns = leases.finished_columns(RegistrationState.SUCCEEDED)
    columns |= {"directory": directory, "revision": revision, "notes": list(notes)}
    leases.update_held(session, BaseModelRegistration, lease, **columns)
