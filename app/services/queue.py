"""The queue and the workers: an admin key sees everything, other keys their own jobs, and counts of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from app.db import models
from app.db.scheduling import fair_queue, queue_view, workers
from app.db.tables import Job, QueuePlace, Worker
from app.domain.jobs.states import JobState
from app.domain.scheduling.fair_share import ProjectShare


@dataclass(frozen=True)
class WorkerView:
    """A worker; `job_id` is None if the caller may not see the job."""

    row: Worker
    models: Sequence[str]
    is_busy: bool
    job_id: str | None
    is_admin_view: bool

    @property
    def id(self) -> str:
        return public_worker_id(self.row.id)


@dataclass(frozen=True)
class QueueView:
    counts: dict[tuple[str, bool], int]  # (state, own) -> jobs
    running: Sequence[Row[Any]]
    waiting: Sequence[tuple[Job, QueuePlace | None]]
    last_position: int
    shares: Sequence[ProjectShare]  # of the caller's project; for an admin of all projects
    workers: Sequence[WorkerView]
    is_admin_view: bool

    def count(self, state: JobState, own: bool) -> int:
        return self.counts.get((state, own), 0)


def view_workers(session: Session, project_id: str, is_admin: bool) -> list[WorkerView]:
    """The workers with a heartbeat within the last minute."""
    lease_owners = queue_view.lease_owners(session)
    model_names = {row.name for row in models.list_base(session, None if is_admin else project_id)}
    return [
        _worker_view(row, lease_owners.get(row.id), model_names, project_id, is_admin) for row in workers.alive(session)
    ]


def view_queue(session: Session, project_id: str, is_admin: bool, limit: int, half_life_seconds: float) -> QueueView:
    visible_project_id = None if is_admin else project_id
    shares = fair_queue.project_shares(session, half_life_seconds)
    return QueueView(
        counts=queue_view.counts(session, project_id),
        running=queue_view.running(session, visible_project_id),
        waiting=queue_view.waiting(session, visible_project_id, limit),
        last_position=queue_view.last_position(session),
        shares=[each for each in shares if is_admin or each.project_id == project_id],
        workers=view_workers(session, project_id, is_admin),
        is_admin_view=is_admin,
    )


def public_worker_id(name: str) -> str:
    """A public id that does not reveal the host's name, which the worker's name contains."""
    return f"worker_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _worker_view(
    row: Worker, held: tuple[str, str] | None, model_names: set[str], project_id: str, is_admin: bool
) -> WorkerView:
    job_id, owner = held or (None, None)
    return WorkerView(
        row=row,
        models=[name for name in row.about.get("models") or () if name in model_names],
        is_busy=held is not None,
        job_id=job_id if is_admin or owner == project_id else None,
        is_admin_view=is_admin,
    )
