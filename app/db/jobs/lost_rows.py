"""The end of attempts of exports, evaluations and registrations whose worker is lost."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.jobs import evaluations, leased_rows
from app.db.jobs.leased_rows import Row
from app.db.tables import BaseModelRegistration, Evaluation, Export

WORKER_LOST = "worker_lost"  # in the error codes of all tables


def reap_expired(
    session: Session, table: type[Row], grace_seconds: float, delay_seconds: float, max_streak: int
) -> Sequence[Row]:
    """End the attempts whose lease expired at least `grace_seconds` ago."""
    return _reap(session, leased_rows.lock_expired(session, table, grace_seconds), delay_seconds, max_streak)


def reap_previous_incarnation(session: Session, slot: str, owner: str, delay_seconds: float, max_streak: int) -> None:
    """End the attempts that an earlier process of this slot holds; it is dead, as `owner` has the slot's lock."""
    for table in (Export, Evaluation, BaseModelRegistration):
        lost = leased_rows.lock_previous_incarnation(session, table, slot, owner)
        _reap(session, lost, delay_seconds, max_streak)


def _reap(session: Session, lost: Sequence[Row], delay_seconds: float, max_streak: int) -> Sequence[Row]:
    for row in lost:
        message = f"The worker {row.lease_owner} was lost during attempt {row.attempt}"
        if isinstance(row, Evaluation):
            evaluations.retry_or_fail(session, row, WORKER_LOST, message, delay_seconds, max_streak)
        else:
            leased_rows.retry_or_fail(session, row, WORKER_LOST, message, delay_seconds, max_streak)
    return lost
