"""The queue and the workers: an admin key sees everything, other keys their own jobs, and counts of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.scheduling import fair_queue, queue_view, workers
from app.db.tables import Evaluation, Job, QueuePlace, Worker
from app.domain.jobs.states import JobState
from app.domain.scheduling.fair_share import ProjectShare


@dataclass(frozen=True)
class WorkerView:
    """A worker; `job_id` and `evaluation_id` are None if it has none, or the caller may not see it."""

    row: Worker
    models: Sequence[str]
    is_busy: bool
    job_id: str | None
    evaluation_id: str | None
    is_admin_view: bool

    @property
    def id(self) -> str:
        return public_worker_id(self.row.id)


@dataclass(frozen=True)
class Holders:
    """{worker id: (id, project id)} of the jobs and of the evaluations that workers hold."""

    jobs: Mapping[str, tuple[str, str]]
    evaluations: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class QueueView:
    counts: dict[tuple[str, bool], int]  # (state, own) -> jobs
    running: Sequence[Row[Any]]
    waiting: Sequence[tuple[Job, QueuePlace | None]]
    last_position: int
    shares: Sequence[ProjectShare]  # of the caller's project; for an admin of all projects
    workers: Sequence[WorkerView]
    evaluations: Sequence[Evaluation]
    is_admin_view: bool

    def count(self, state: JobState, own: bool) -> int:
        return self.counts.get((state, own), 0)


def view_workers(session: Session, project_id: str, is_admin: bool) -> list[WorkerView]:
    """The workers with a heartbeat within the last minute."""
    holders = Holders(queue_view.lease_owners(session), queue_view.evaluation_owners(session))
    model_names = {row.name for row in models.list_base(session, None if is_admin else project_id)}
    return [_worker_view(row, holders, model_names, project_id, is_admin) for row in workers.alive(session)]


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
        evaluations=queue_view.unfinished_evaluations(session, visible_project_id, limit),
        is_admin_view=is_admin,
    )


def public_worker_id(name: str) -> str:
    """A public id that does not reveal the host's name, which the worker's name contains."""
    return f"worker_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _worker_view(row: Worker, holders: Holders, model_names: set[str], project_id: str, is_admin: bool) -> WorkerView:
    def visible(held: tuple[str, str] | None) -> str | None:
        return held[0] if held is not None and (is_admin or held[1] == project_id) else None

    job, evaluation = holders.jobs.get(row.id), holders.evaluations.get(row.id)
    return WorkerView(
        row=row,
        models=[name for name in row.about.get("models") or () if name in model_names],
        is_busy=job is not None or evaluation is not None,
        job_id=visible(job),
        evaluation_id=visible(evaluation),
        is_admin_view=is_admin,
    )
