"""Response bodies of workers and the queue; fields for admin keys are null for other keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row

from app.api.schemas.common import Body, ListBody, unix_seconds, unix_seconds_or_none
from app.db.tables import Evaluation, Job, QueuePlace
from app.domain.jobs.states import JobState
from app.domain.scheduling.fair_share import ProjectShare
from app.domain.scheduling.worker_capacity import worker_capacity
from app.services.queue import QueueView, WorkerView, public_worker_id


class WorkerDevice(Body):
    kind: str | None
    name: str | None
    memory_bytes: int | None
    count: int
    slots_per_gpu: int
    slot_bytes: int | None


class WorkerBody(Body):
    id: str
    object: Literal["worker"]
    queue: Literal["gpu", "cpu"]
    status: Literal["idle", "busy"]
    device: WorkerDevice
    models: list[str]
    labels: list[str]
    job_id: str | None
    evaluation_id: str | None
    started_at: int
    seen_at: int
    name: str | None
    hostname: str | None
    pid: int | None
    versions: dict[str, str | None] | None


class WorkerList(ListBody):
    data: list[WorkerBody]


class JobCounts(Body):
    validating: int
    waiting: int
    running: int


class WorkerCounts(Body):
    alive: int
    busy: int


class RunningBody(Body):
    id: str
    project_id: str
    model: str
    worker_id: str
    priority: int
    urgent: bool
    phase: str | None
    started_at: int
    expected_finish: int
    gives_way: bool


class WaitingBody(Body):
    id: str
    project_id: str
    model: str
    position: int
    expected_start: int | None
    waiting_for: str | None
    phase: str | None
    priority: int
    urgent: bool
    worker_labels: list[str]
    planned_seconds: float | None
    created_at: int


class QueuedEvaluation(Body):
    id: str
    fine_tuning_job_id: str
    project_id: str
    model: str
    status: Literal["queued", "running"]
    worker_id: str | None
    created_at: int
    started_at: int | None
    answers: int | None
    total_answers: int | None
    estimated_seconds: float | None


class StandingBody(Body):
    project_id: str
    gpu_seconds: float
    held_gpu_seconds: float
    share_weight: float
    share: float
    running_jobs: int
    max_running_jobs: int | None


class QueueBody(Body):
    object: Literal["queue"]
    workers: WorkerCounts
    own: JobCounts
    others: JobCounts
    running: list[RunningBody]
    waiting: list[WaitingBody]
    has_more: bool
    evaluations: list[QueuedEvaluation]
    projects: list[StandingBody]


def render_worker(view: WorkerView) -> dict[str, Any]:
    row, about, capacity = view.row, view.row.about, worker_capacity(view.row.about)
    admin_fields = {"name": row.id, "hostname": row.hostname, "pid": row.pid, "versions": about.get("versions")}
    return {
        "id": view.id,
        "object": "worker",
        "queue": row.queue,
        "status": "busy" if view.is_busy else "idle",
        "device": {
            "kind": about.get("kind"),
            "name": about.get("device"),
            "memory_bytes": about.get("memory_bytes"),
            "count": capacity.gpus,
            "slots_per_gpu": capacity.slots_per_gpu if capacity.shares_gpus else 1,
            "slot_bytes": capacity.slot_bytes if capacity.shares_gpus else None,
        },
        "models": list(view.models),
        "labels": about.get("labels") or [],
        "job_id": view.job_id,
        "evaluation_id": view.evaluation_id,
        "started_at": unix_seconds(row.started_at),
        "seen_at": unix_seconds(row.seen_at),
    } | {key: value if view.is_admin_view else None for key, value in admin_fields.items()}


def render_queue(view: QueueView, limit: int) -> dict[str, Any]:
    gpu_workers = [worker for worker in view.workers if worker.row.queue == "gpu"]
    return {
        "object": "queue",
        "workers": {"alive": len(gpu_workers), "busy": sum(worker.is_busy for worker in gpu_workers)},
        "own": _counts(view, True),
        "others": _counts(view, False),
        "running": [_running(row) for row in view.running],
        "waiting": [_waiting(job, place, view.last_position) for job, place in view.waiting[:limit]],
        "has_more": len(view.waiting) > limit,
        "evaluations": [_evaluation(row) for row in view.evaluations[:limit]],
        "projects": _standings(view.shares),
    }


def _counts(view: QueueView, own: bool) -> dict[str, int]:
    names = {"validating": JobState.VALIDATING, "waiting": JobState.QUEUED, "running": JobState.RUNNING}
    return {name: view.count(state, own) for name, state in names.items()}


def _running(row: Row[Any]) -> dict[str, Any]:
    started_at: datetime = row.started_at
    return {
        "id": row.id,
        "project_id": row.project_id,
        "model": row.base_model,
        "worker_id": public_worker_id(row.lease_owner),
        "priority": row.priority,
        "urgent": row.is_urgent,
        "phase": row.phase,
        "started_at": unix_seconds(started_at),
        "expected_finish": unix_seconds(row.expected_finish_at),
        "gives_way": row.gives_way,
    }


def _waiting(job: Job, place: QueuePlace | None, last_position: int) -> dict[str, Any]:
    return {
        "id": job.id,
        "project_id": job.project_id,
        "model": job.base_model,
        "position": place.position if place else last_position + 1,
        "expected_start": unix_seconds_or_none(place.expected_start_at) if place else None,
        "waiting_for": place.waiting_for if place else None,
        "phase": job.phase,
        "priority": job.priority,
        "urgent": job.is_urgent,
        "worker_labels": job.worker_labels,
        "planned_seconds": job.planned_seconds,
        "created_at": unix_seconds(job.created_at),
    }


def _evaluation(row: Evaluation) -> dict[str, Any]:
    progress = row.progress or {}
    return {
        "id": row.id,
        "fine_tuning_job_id": row.job_id,
        "project_id": row.project_id,
        "model": row.base_model,
        "status": row.state,
        "worker_id": public_worker_id(row.lease_owner) if row.lease_owner else None,
        "created_at": unix_seconds(row.created_at),
        "started_at": unix_seconds_or_none(row.started_at) if row.lease_owner else None,
        "answers": progress.get("answers"),
        "total_answers": progress.get("total_answers"),
        "estimated_seconds": row.plan.get("estimated_seconds"),
    }


def _standings(standings: Sequence[ProjectShare]) -> list[dict[str, Any]]:
    return [
        {
            "project_id": standing.project_id,
            "gpu_seconds": round(standing.usage, 1),
            "held_gpu_seconds": round(standing.held, 1),
            "share_weight": standing.weight,
            "share": round(standing.share, 1),
            "running_jobs": standing.running,
            "max_running_jobs": standing.max_running,
        }
        for standing in sorted(standings, key=lambda standing: (standing.share, standing.project_id))
    ]
