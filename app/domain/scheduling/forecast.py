"""When will each queued job start? Each job in the order of the queue gets the slots that are free first.

Approximations: durations are the planned ones, no job or worker arrives or leaves, and no job passes an earlier one
except in a slot that the earlier one does not fit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.domain.scheduling.fair_share import DEFAULT_DURATION_SECONDS, ProjectShare
from app.domain.scheduling.worker_capacity import (
    JobRequirements,
    WorkerCapacity,
    fits,
    missing_requirements,
    whole_gpu_reason,
)


@dataclass(frozen=True)
class WorkerSlot:
    """The slot of a worker: when it is free, and the project of the job that it runs now."""

    capacity: WorkerCapacity
    free_in_seconds: float = 0.0
    project_id: str | None = None
    reserved_bytes: int = 0  # by that job, on each of the slot's GPUs, if other slots share them


# A forecast makes thousands of each, and a frozen dataclass takes four times as long to make.
class QueuedJob(NamedTuple):
    job_id: str
    project_id: str
    requirements: JobRequirements
    is_urgent: bool = False
    seconds: float = DEFAULT_DURATION_SECONDS  # left of its planned duration
    pause_seconds: float = 0.0  # until a worker may claim it: the pause after an attempt without a result


class JobForecast(NamedTuple):
    job_id: str
    project_id: str
    position: int
    start_in_seconds: float | None  # None: no worker can run it
    waiting_for: str | None  # in a sentence: the missing requirement, or that only a whole shared GPU fits the job


def forecast(
    slots: Sequence[WorkerSlot], queued: Iterable[QueuedJob], shares: Iterable[ProjectShare]
) -> list[JobForecast]:
    """The jobs with positions and starts. `queued` is in the order of the queue; those without a start come last."""
    capacities = list(dict.fromkeys(slot.capacity for slot in slots))
    free_at = _first_free(slots)
    limits = {
        share.project_id: _Limit(share.max_running - share.running, slots, share.project_id)
        for share in shares
        if share.max_running is not None
    }
    fitting: dict[JobRequirements, tuple[list[list[int]], str | None]] = {}  # a few distinct ones of thousands of jobs
    starts: list[tuple[QueuedJob, float | None, str | None]] = []
    for job in queued:
        if job.requirements not in fitting:
            missing = missing_requirements(capacities, job.requirements)
            reason = missing or whole_gpu_reason(capacities, job.requirements)
            fitting[job.requirements] = list(_slots_of_a_job(slots, job.requirements)), reason
        groups, reason = fitting[job.requirements]
        limit = limits.get(job.project_id)
        allowed_at = 0.0 if limit is None else limit.next_start()
        if not groups or allowed_at is None:
            starts.append((job, None, reason))
            continue
        free, group = min((max([free_at[number] for number in group]), group) for group in groups)
        may_start = max(allowed_at, job.pause_seconds)
        start = max(free, may_start)
        if may_start <= free:  # until the end of a pause, or at a project's limit, later jobs use the slot
            for number in group:
                free_at[number] = free + job.seconds
        if limit is not None:
            heapq.heappush(limit.ends, start + job.seconds)
        starts.append((job, start, reason))
    starts.sort(key=lambda each: each[1] is None)
    return [
        JobForecast(job.job_id, job.project_id, position, start, reason)
        for position, (job, start, reason) in enumerate(starts, 1)
    ]


class _Limit:
    """The limit of running jobs of a project: how many more it may start now, and when others end."""

    def __init__(self, jobs_allowed: int, slots: Sequence[WorkerSlot], project_id: str) -> None:
        self.jobs_allowed = jobs_allowed
        self.ends = sorted(slot.free_in_seconds for slot in slots if slot.project_id == project_id)

    def next_start(self) -> float | None:
        """The earliest start of the project's next job; None if it may start none."""
        if self.jobs_allowed > 0:
            self.jobs_allowed -= 1
            return 0.0
        return heapq.heappop(self.ends) if self.ends else None


def _first_free(slots: Sequence[WorkerSlot]) -> list[float]:
    """The seconds until each slot is free; a job that has whole GPUs keeps all slots there."""
    free_at = [slot.free_in_seconds for slot in slots]
    for slot in slots:
        if slot.reserved_bytes > slot.capacity.slot_bytes:
            for number in _sharing(slots, slot.capacity):
                free_at[number] = max(free_at[number], slot.free_in_seconds)
    return free_at


def _slots_of_a_job(slots: Sequence[WorkerSlot], requirements: JobRequirements) -> Iterator[list[int]]:
    """The slots that a job takes together, for each slot that it fits: one, or all of the slot's GPUs."""
    for number, slot in enumerate(slots):
        if fits(slot.capacity, requirements):
            needs_whole = slot.capacity.needs_whole_gpu(requirements.cuda_bytes)
            yield _sharing(slots, slot.capacity) if needs_whole else [number]


def _sharing(slots: Sequence[WorkerSlot], capacity: WorkerCapacity) -> list[int]:
    uuids = set(capacity.gpu_uuids)
    return [number for number, slot in enumerate(slots) if uuids & set(slot.capacity.gpu_uuids)]
