"""When will each queued job start? When the work before it is done, divided among all slots.

Approximations: durations are the planned ones, no job or worker arrives or leaves, every slot fits every job that one
slot fits, and the limits of projects' running jobs are ignored, except a limit of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from app.domain.scheduling.fair_share import DEFAULT_DURATION_SECONDS, ProjectShare
from app.domain.scheduling.worker_capacity import (
    JobRequirements,
    WorkerCapacity,
    missing_requirements,
    whole_gpu_reason,
)


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
    slots: Sequence[WorkerCapacity],
    running_seconds: Sequence[float],
    queued: Iterable[QueuedJob],
    shares: Iterable[ProjectShare],
) -> list[JobForecast]:
    """The jobs with positions and starts. `queued` is in the order of the queue; those without a start come last.

    `running_seconds` are left of the running jobs.
    """
    capacities = list(dict.fromkeys(slots))
    stopped = {share.project_id for share in shares if share.max_running == 0}

    @cache  # a few distinct ones of thousands of jobs
    def reasons(requirements: JobRequirements) -> tuple[str | None, str | None]:
        missing = missing_requirements(capacities, requirements)
        return missing, missing or whole_gpu_reason(capacities, requirements)

    work_seconds, idle = sum(running_seconds), len(slots) - len(running_seconds)
    starts: list[tuple[QueuedJob, float | None, str | None]] = []
    for job in queued:
        missing, reason = reasons(job.requirements)
        start = None
        if missing is None and job.project_id not in stopped:
            start = max(job.pause_seconds, 0.0 if idle > 0 else work_seconds / len(slots))
            work_seconds, idle = work_seconds + job.seconds, idle - 1
        starts.append((job, start, reason))
    starts.sort(key=lambda each: each[1] is None)
    return [
        JobForecast(job.job_id, job.project_id, position, start, reason)
        for position, (job, start, reason) in enumerate(starts, 1)
    ]
