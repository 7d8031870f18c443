"""The queue and the workers: an admin key sees everything, other keys their own jobs, and counts of the others."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.scheduling import fair_queue, queue_view, workers
from app.db.tables import Evaluation, Job, Worker
from app.domain.jobs.states import JobState

SHOWN_STATES = {"validating": JobState.VALIDATING, "waiting": JobState.QUEUED, "running": JobState.RUNNING}


def view_workers(session: Session, project_id: str, is_admin: bool) -> list[Worker]:
    """The workers with a heartbeat within the last minute, with what they hold."""
    holders = [queue_view.lease_owners(session, table) for table in (Job, Evaluation)]
    names = {row.name for row in models.list_base(session, None if is_admin else project_id)}
    rows = workers.alive(session)
    for row in rows:
        row.models = [name for name in row.about.get("models") or () if name in names]
        row.is_busy = any(row.id in held for held in holders)
        visible = [held.get(row.id, ("", "")) for held in holders]
        row.job_id, row.evaluation_id = (
            held_id if held_id and (is_admin or owner_id == project_id) else None for held_id, owner_id in visible
        )
    return rows


def view_queue(session: Session, project_id: str, is_admin: bool, limit: int, half_life_seconds: float) -> Any:
    """The queue as QueueBody shows it, with at most `limit` waiting jobs and evaluations."""
    visible_project_id = None if is_admin else project_id
    counts = queue_view.counts(session, project_id)
    gpu_workers = [row for row in view_workers(session, project_id, is_admin) if row.queue == "gpu"]
    waiting = queue_view.waiting(session, visible_project_id, limit + 1)
    shares = fair_queue.project_shares(session, half_life_seconds)
    shown_shares = [each for each in shares if is_admin or each.project_id == project_id]
    return {
        "workers": {"alive": len(gpu_workers), "busy": sum(row.is_busy for row in gpu_workers)},
        "own": {name: counts.get((state, True), 0) for name, state in SHOWN_STATES.items()},
        "others": {name: counts.get((state, False), 0) for name, state in SHOWN_STATES.items()},
        "running": queue_view.running(session, visible_project_id),
        "waiting": waiting[:limit],
        "has_more": len(waiting) > limit,
        "evaluations": queue_view.unfinished_evaluations(session, visible_project_id, limit),
        "projects": sorted(shown_shares, key=lambda each: (each.share, each.project_id)),
    }


def public_worker_id(name: str) -> str:
    """A public id that does not reveal the host's name, which the worker's name contains."""
    return f"worker_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
