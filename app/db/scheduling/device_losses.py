"""Workers whose GPU is broken: after MAX_IN_A_ROW attempts in a row that lost it, a worker is out of service. And jobs
that break each GPU: one that lost those of two workers is not tried on a third.

Such a worker claims no job and no evaluation until an operator resumes it. The count is of the slot ("gpu0@host"),
which has the same name after a restart of the worker. Never commits.
"""

from __future__ import annotations

from sqlalchemy import case, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.tables import Attempt, DeviceLosses, Snapshot
from app.db.webhooks import operator
from app.domain.jobs.states import Reason

MAX_IN_A_ROW = 3
# Ends by which the state of the GPU is not known: a broken one may also let the trainer or the whole host hang.
UNKNOWN = (Reason.STALLED, Reason.WORKER_LOST)


def count(session: Session, worker_id: str, job_id: str, reason: Reason) -> None:
    """Count the end of a training attempt: a lost GPU takes the worker out of service at the third time in a row, and
    an end that shows a working one begins anew. The caller holds the lock of the job's row."""
    if reason in UNKNOWN:
        return
    slot = slot_of(worker_id)
    if reason != Reason.DEVICE_LOST:
        is_in_service = DeviceLosses.out_of_service_at.is_(None)
        session.execute(delete(DeviceLosses).where(DeviceLosses.slot == slot, is_in_service))
        return
    losses = DeviceLosses.count + 1
    since = func.coalesce(DeviceLosses.out_of_service_at, func.clock_timestamp())
    changes = {"count": losses, "out_of_service_at": case((losses >= MAX_IN_A_ROW, since))}
    statement = upsert(DeviceLosses).values(slot=slot, count=1)
    statement = statement.on_conflict_do_update(index_elements=["slot"], set_=changes)
    if session.scalar(statement.returning(DeviceLosses.count)) == MAX_IN_A_ROW:
        operator.announce(session, "operator.worker_out_of_service", {"worker": worker_id, "job_id": job_id})


def was_elsewhere(session: Session, job_id: str, worker_id: str) -> bool:
    """Whether the job lost the GPU of another worker before, and no later attempt trained further than up to there."""
    lost = select(Attempt.attempt, Attempt.worker).where(Attempt.job_id == job_id, Attempt.reason == Reason.DEVICE_LOST)
    elsewhere = [attempt for attempt, worker in session.execute(lost) if slot_of(worker) != slot_of(worker_id)]
    reached = session.execute(select(Snapshot.attempt, Snapshot.step).where(Snapshot.job_id == job_id)).all()
    last = max(elsewhere, default=0)
    step = max((step for attempt, step in reached if attempt <= last), default=0)
    return bool(elsewhere) and not any(later > step for attempt, later in reached if attempt > last)


def is_out_of_service(session: Session, worker_id: str) -> bool:
    return (
        session.scalar(select(DeviceLosses.out_of_service_at).where(DeviceLosses.slot == slot_of(worker_id)))
        is not None
    )


def resume(session: Session, worker_id: str) -> None:
    """Put a worker back into service, and forget the attempts that it lost.

    The audit log has the deleted row by its slot, and no entry if nothing was lost.
    """
    if (losses := session.get(DeviceLosses, slot_of(worker_id), with_for_update=True)) is not None:
        session.delete(losses)
        session.flush()


def slot_of(worker_id: str) -> str:
    """The name of a worker's slot, which is the same after a restart."""
    return worker_id.partition("#")[0]
