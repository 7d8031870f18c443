"""The end of attempts whose holder is lost: the reconciler or a restarted slot finds them by their leases.

Never commits.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.jobs import claims, evaluations, leases
from app.db.jobs.leases import Retries
from app.db.tables import Evaluation, Job
from app.db.tables.base import Leased, LeasedRow
from app.domain.jobs.states import Reason

WORKER_LOST = "worker_lost"  # in the error codes of all tables


def end_attempt(session: Session, row: Leased, retries: Retries) -> None:
    """End the attempt of a locked row whose holder is lost; what a sender held is due again, as it was."""
    text = f"The worker {row.lease_owner} was lost"
    match row:
        case Job():
            claims.finish_attempt(session, row, Reason.WORKER_LOST, text, level="warn", retries=retries)
        case Evaluation():
            evaluations.end_attempt(session, row, WORKER_LOST, f"{text} during attempt {row.attempt}", retries)
        case LeasedRow():
            leases.end_attempt(session, row, WORKER_LOST, f"{text} during attempt {row.attempt}", retries)
        case _:
            leases.release(session, row)


def end_all(session: Session) -> None:
    """End all attempts in a restored database: their holders are of another service."""
    for row in leases.lock_all(session):
        if isinstance(row, Job):
            text = "The service was restored from a backup that was made during an attempt; the job is queued"
            claims.finish_attempt(session, row, Reason.DRAINED, f"{text} again and resumes from its last snapshot")
        else:
            leases.release(session, row)
