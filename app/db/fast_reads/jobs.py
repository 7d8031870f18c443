"""The reads that clients poll or wait for: key, project, job and place in the queue in one query, without an ORM.

An ORM session and a response model made 440 to 510 requests a second of it where this makes 1,900 (2 cores,
64 connections, 50,000 jobs).
"""

from __future__ import annotations

from typing import Any

from app.db.fast_reads.keys import KEY_BY_SECRET, fetch_with_key
from app.db.fast_reads.pool import AsyncConnections

MAX_EVENTS = 500  # events in one read of a stream

# One that has just come is the last until the next forecast.
QUEUE_COLUMNS = """
  place.expected_start_at, place.waiting_for,
  CASE WHEN job.state = 'queued'
    THEN coalesce(place.position, 1 + coalesce((SELECT max(position) FROM queue_places), 0)) END AS queue_position
"""
FROM_KEY = f"""
FROM ({KEY_BY_SECRET}) AS key
LEFT JOIN jobs AS job ON job.project_id = key.project_id AND job.id = %(job_id)s
LEFT JOIN queue_places AS place ON place.job_id = job.id AND job.state = 'queued'
"""

JOB_BY_KEY = f"""
SELECT
  key.*,
  job.id, job.version, job.created_at, job.finished_at, job.base_model, job.training_file_id, job.validation_file_id,
  job.spec, job.suffix, job.metadata AS user_metadata, job.state, job.desired, job.phase, job.train_attempts,
  job.progress, job.trained_tokens, job.fine_tuned_model, job.result_file_ids, job.adapter_sha256, job.adapter_bytes,
  job.adapter_archive_file_id, job.cloned_from, job.error_code, job.error_message, job.error_param,
  checkpoint.file_ids AS adapter_file_ids,
  job.priority, job.is_urgent, job.worker_labels, job.warnings,
  {QUEUE_COLUMNS}
{FROM_KEY}
LEFT JOIN checkpoints AS checkpoint ON checkpoint.name = job.fine_tuned_model
"""
# What the ETag is made of, and nothing of what it stands for: a 304 costs this.
VERSION_BY_KEY = f"SELECT key.*, job.id, job.version, job.state, job.event_seq, {QUEUE_COLUMNS} {FROM_KEY}"
SEQ_OF_EVENT = "SELECT seq FROM job_events WHERE job_id = %(job_id)s AND id = %(event_id)s"
# One statement, so one snapshot: whether the job is over, and whether these are its last events, belong together.
EVENTS_AFTER = f"""
SELECT
  job.state, job.event_seq,
  event.seq, event.id, event.created_at, event.level, event.type, event.message, event.data
FROM jobs AS job
LEFT JOIN LATERAL (
  SELECT * FROM job_events WHERE job_id = job.id AND seq > %(seq)s ORDER BY seq LIMIT {MAX_EVENTS}
) AS event ON true
WHERE job.id = %(job_id)s
ORDER BY event.seq
"""


async def job_by_key(connections: AsyncConnections, secret: str, job_id: str) -> Any:
    """None for an unknown key; a row without `id` for a job that the key's project does not have.

    The row is a KnownKey as well: whether that key may read the job is for the caller to ask.
    """
    return await fetch_with_key(connections, JOB_BY_KEY, secret, {"job_id": job_id})


async def version_by_key(connections: AsyncConnections, secret: str, job_id: str) -> Any:
    """As `job_by_key`: a KnownKey with {id, version, state, event_seq, queue_position}."""
    return await fetch_with_key(connections, VERSION_BY_KEY, secret, {"job_id": job_id})


async def seq_of_event(connections: AsyncConnections, job_id: str, event_id: str) -> int | None:
    row = await connections.fetch_one(SEQ_OF_EVENT, {"job_id": job_id, "event_id": event_id})
    return None if row is None else int(row.seq)


async def events_after(connections: AsyncConnections, job_id: str, seq: int) -> list[Any]:
    """The next events, at most PAGE, each with the job's `state` and `event_seq`; one row without `id` if none are."""
    return await connections.fetch_all(EVENTS_AFTER, {"job_id": job_id, "seq": seq})
