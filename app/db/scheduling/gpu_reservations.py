"""Memory that attempts reserve on GPUs which several slots share. Never commits.

A reservation is a part of its attempt and has no row of its own: it ends with the attempt or with the lease, so a lost
worker leaves none. A claim reads the reservations under the lock of claims (`fair_queue.lock_claims`), so claims of two
slots see each other.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.tables import Attempt
from app.domain.scheduling.worker_capacity import WorkerCapacity

# The API ends a cancelled attempt at once, and its worker stops the trainer within seconds. Until then the memory is
# not free for other slots; the slot itself claims only after its own trainer has exited.
RELEASE_SECONDS = 30.0

RESERVED = """
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
reservation AS (
  SELECT attempt.gpu_uuids, attempt.budget_bytes
  FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
  WHERE attempt.budget_bytes IS NOT NULL AND (
    attempt.ended_at IS NULL AND job.lease_expires_at > moment.now
    OR attempt.ended_at > moment.now - :release_seconds * interval '1 second'
      AND attempt.reason = 'cancelled' AND attempt.worker <> :owner)
  UNION ALL
  SELECT gpu_uuids, budget_bytes FROM moment, evaluations
  WHERE budget_bytes IS NOT NULL AND (
    finished_at IS NULL AND lease_expires_at > moment.now
    OR finished_at > moment.now - :release_seconds * interval '1 second' AND state = 'cancelled' AND worker <> :owner)
)
SELECT coalesce(max(bytes), 0) FROM (
  SELECT sum(reservation.budget_bytes) AS bytes
  FROM reservation, jsonb_array_elements_text(reservation.gpu_uuids) AS gpu(uuid)
  WHERE gpu.uuid = ANY(CAST(:gpu_uuids AS text[])) GROUP BY gpu.uuid
) AS reserved
"""


def reserved_bytes(session: Session, offer: WorkerCapacity, owner: str) -> int:
    """The bytes that others reserve on the slot's GPU; of several GPUs the largest number."""
    values = {"gpu_uuids": list(offer.gpu_uuids), "owner": owner, "release_seconds": RELEASE_SECONDS}
    return int(session.scalar(text(RESERVED), values) or 0)


def slot_bytes(session: Session, job_id: str, attempt: int) -> int | None:
    """The memory budget of an attempt in a slot that shares its GPU; None if it has the whole GPU."""
    row = session.get(Attempt, (job_id, attempt))
    return row.budget_bytes if row is not None and row.gpu_share < 1 else None
