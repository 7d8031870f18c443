"""Preemption: selects the running jobs that stop for urgent jobs: as few as free enough GPUs, and none that ran too
briefly or was preempted too often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.domain.scheduling.forecast import QueuedJob
from app.domain.scheduling.worker_capacity import WorkerCapacity, fits

ENDS_SOON_SECONDS = 120.0  # a job that ends within this time is not stopped: stopping and resuming cost as much


@dataclass(frozen=True)
class PreemptionPolicy:
    min_run_seconds: float  # an attempt runs at least this long before it can be preempted
    max_preemptions: int  # of one job


@dataclass(frozen=True)
class RunningJob:
    job_id: str
    project_id: str
    capacity: WorkerCapacity  # what becomes free with the job: its slot, or the whole GPU if it has that
    share: float  # of its project
    ran_seconds: float
    seconds_left: float
    lease_owner: str = ""
    attempt: int = 1
    priority: int = 0
    is_urgent: bool = False
    is_preempting: bool = False  # its preemption has been requested
    is_stoppable: bool = True  # its trainer is training, and no pause or cancel is requested
    preemption_count: int = 0
    reserved_bytes: int = 0  # on each of the GPUs that the slot shares with others; 0 without sharing

    @property
    def frees_its_slot(self) -> bool:
        return self.is_preempting or self.seconds_left <= ENDS_SOON_SECONDS


@dataclass(frozen=True)
class Preemption:
    """A running job that stops at its next step, and the urgent job that gets its slot."""

    victim: RunningJob
    urgent: QueuedJob


def select_preemptions(
    urgent: Sequence[QueuedJob],
    free: Sequence[WorkerCapacity],
    running: Sequence[RunningJob],
    jobs_allowed: Mapping[str, int],
    policy: PreemptionPolicy,
) -> list[Preemption]:
    """The preemptions that must be requested now.

    `urgent` is in the order of the queue. `jobs_allowed` is the number of jobs that each project with a limit may
    still start.
    """
    free, running, jobs_allowed = list(free), list(running), dict(jobs_allowed)
    preemptions = []
    for job in urgent:
        is_at_limit = jobs_allowed.get(job.project_id, 1) <= 0
        if not is_at_limit and (capacity := next((each for each in free if fits(each, job.requirements)), None)):
            free.remove(capacity)
        elif victim := _victim(job, running, is_at_limit, policy):
            running.remove(victim)
            if not victim.frees_its_slot:
                preemptions.append(Preemption(victim, job))
        else:
            continue
        if job.project_id in jobs_allowed and not is_at_limit:
            jobs_allowed[job.project_id] -= 1
    return preemptions


def _victim(
    job: QueuedJob, running: Sequence[RunningJob], is_at_limit: bool, policy: PreemptionPolicy
) -> RunningJob | None:
    """The job whose slot `job` gets: one that frees its slot anyway, else one of the project with the largest share.

    A project at its limit gets a slot only from one of its own jobs.
    """
    fitting = [
        each
        for each in running
        if fits(each.capacity, job.requirements) and (not is_at_limit or each.project_id == job.project_id)
    ]
    if ending := [each for each in fitting if each.frees_its_slot]:
        return ending[0]
    preemptible = [
        each
        for each in fitting
        if each.is_stoppable
        and not each.is_urgent
        and each.ran_seconds >= policy.min_run_seconds
        and each.preemption_count < policy.max_preemptions
    ]
    return max(preemptible, key=lambda each: (each.share, -each.priority, each.seconds_left), default=None)
