"""The queue and the workers as a caller may see them: an admin key everything, others their own jobs and counts."""

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
    """`job_id` only where the caller may know it."""

    row: Worker
    models: Sequence[str]
    is_busy: bool
    job_id: str | None
    is_all_seen: bool

    @property
    def id(self) -> str:
        return public_worker_id(self.row.id)


@dataclass(frozen=True)
class QueueView:
    counts: dict[tuple[str, bool], int]  # (state, own) -> jobs
    running: Sequence[Row[Any]]
    waiting: Sequence[tuple[Job, QueuePlace | None]]
    last_position: int
    standings: Sequence[ProjectShare]  # the caller's own, or everybody's
    workers: Sequence[WorkerView]
    is_all_seen: bool

    def count(self, state: JobState, own: bool) -> int:
        return self.counts.get((state, own), 0)


def view_workers(session: Session, project_id: str, is_admin: bool) -> list[WorkerView]:
    """Those that gave a sign of life within the last minute."""
    holders = queue_view.lease_owners(session)
    known = {row.name for row in models.list_base(session, None if is_admin else project_id)}
    return [_worker_view(row, holders.get(row.id), known, project_id, is_admin) for row in workers.alive(session)]


def view_queue(session: Session, project_id: str, is_admin: bool, limit: int, half_life_seconds: float) -> QueueView:
    whose = None if is_admin else project_id
    standings = fair_queue.project_shares(session, half_life_seconds)
    return QueueView(
        counts=queue_view.counts(session, project_id),
        running=queue_view.running(session, whose),
        waiting=queue_view.waiting(session, whose, limit),
        last_position=queue_view.last_position(session),
        standings=[each for each in standings if is_admin or each.project_id == project_id],
        workers=view_workers(session, project_id, is_admin),
        is_all_seen=is_admin,
    )


def public_worker_id(name: str) -> str:
    """The name has the host's in it, which is the operator's business."""
    return f"worker_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _worker_view(
    row: Worker, held: tuple[str, str] | None, known: set[str], project_id: str, is_admin: bool
) -> WorkerView:
    job_id, owner = held or (None, None)
    return WorkerView(
        row=row,
        models=[name for name in row.about.get("models") or () if name in known],
        is_busy=held is not None,
        job_id=job_id if is_admin or owner == project_id else None,
        is_all_seen=is_admin,
    )
