"""When will each queued job start? A simulation of the queue with planned durations.

The order is that of the claim: urgent jobs first, then the project with the smallest share, within a project by
priority, then by age. On a GPU that several slots share, a job that needs it whole waits until it is free, and no later
job passes it. Approximations: durations are estimates, no job or worker arrives or leaves during the
simulation, and a job's whole duration counts towards its project's share when the job starts.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from app.domain.scheduling.fair_share import (
    DEFAULT_DURATION_SECONDS,
    HALF_LIFE_SECONDS,
    MAX_HALF_LIVES,
    ProjectShare,
)
from app.domain.scheduling.worker_capacity import (
    JobRequirements,
    WorkerCapacity,
    fits,
    missing_requirements,
    whole_gpu_reason,
)

UNLIMITED_CAPACITY = WorkerCapacity("cuda", 1 << 62, models=None, labels=None)
UNLIMITED_CLASS = frozenset({0})


@dataclass(frozen=True)
class WorkerSlot:
    """The slot of a worker: when it is free, and the project of the job that it runs now."""

    capacity: WorkerCapacity
    free_in_seconds: float = 0.0
    project_id: str | None = None
    reserved_bytes: int = 0  # by that job, on each of the slot's GPUs, if other slots share them


# A forecast makes 50,000 of each, and a frozen dataclass takes four times as long to make.
class QueuedJob(NamedTuple):
    job_id: str
    project_id: str
    seq: int
    requirements: JobRequirements
    priority: int = 0
    is_urgent: bool = False
    seconds: float | None = None  # left of its estimated duration
    pause_seconds: float = 0.0  # until a worker may claim it: the pause after an attempt without a result

    def order(self) -> tuple[bool, int, int]:
        """The sort key within its project."""
        return (not self.is_urgent, -self.priority, self.seq)


class JobForecast(NamedTuple):
    job_id: str
    project_id: str
    position: int
    start_in_seconds: float | None  # None: no worker can run it
    waiting_for: str | None  # in a sentence: the missing requirement, or that only a whole shared GPU fits the job


# A job, and the numbers of the worker classes (distinct capacities) that meet its requirements.
ClassifiedJob = tuple[QueuedJob, frozenset[int]]


@dataclass
class _ProjectQueue:
    """The queued jobs of one project during the simulation: one queue for each set of worker classes that fit."""

    share: float
    weight: float
    jobs_allowed: int | None  # jobs that it may still start; None: no limit
    queues: dict[frozenset[int], deque[QueuedJob]] = field(default_factory=dict)
    version: int = 0  # of its candidates in the heaps; older ones are stale

    @classmethod
    def of(cls, project: ProjectShare) -> _ProjectQueue:
        allowed = None if project.max_running is None else project.max_running - project.running
        return cls(project.share, project.weight, allowed)

    @property
    def is_at_limit(self) -> bool:
        return self.jobs_allowed is not None and self.jobs_allowed <= 0

    def next_queue(self, worker_class: int) -> deque[QueuedJob] | None:
        """The queue whose first job is the project's next one on a slot of this class."""
        best: deque[QueuedJob] | None = None
        for classes, queue in self.queues.items():
            if queue and worker_class in classes and (best is None or queue[0].order() < best[0].order()):
                best = queue
        return best


class _SlotState(NamedTuple):
    """A slot during the simulation: the number of its worker class, and what its last job reserved on its GPUs."""

    worker_class: int
    capacity: WorkerCapacity
    reserved_bytes: int = 0


def forecast(
    slots: Sequence[WorkerSlot],
    queued: Iterable[QueuedJob],
    shares: Iterable[ProjectShare],
    half_life: float = HALF_LIFE_SECONDS,
) -> list[JobForecast]:
    """All queued jobs in the expected order of their starts; the jobs that no worker can run come last."""
    share_by_project = {share.project_id: share for share in shares}
    capacities = list({_worker_class(slot.capacity): None for slot in slots})
    classes = _WorkerClasses(capacities)
    jobs = [(job, classes.matching(job.requirements)) for job in queued]
    started = _QueueSimulation(slots, capacities, jobs, share_by_project, half_life).run()
    started_ids = {job.job_id for job, _ in started}
    # The others are ordered as if one worker without limits ran them, each project without its limit of running jobs.
    others = [(job, UNLIMITED_CLASS) for job, _ in jobs if job.job_id not in started_ids]
    unlimited = {
        name: ProjectShare(name, share.usage, share.held, share.weight) for name, share in share_by_project.items()
    }
    not_started = _QueueSimulation(
        [WorkerSlot(UNLIMITED_CAPACITY)], [UNLIMITED_CAPACITY], others, unlimited, half_life
    ).run()
    return [
        *(
            JobForecast(job.job_id, job.project_id, position, start, classes.whole_gpu_reason(job.requirements))
            for position, (job, start) in enumerate(started, 1)
        ),
        *(
            JobForecast(job.job_id, job.project_id, position, None, classes.missing(job.requirements))
            for position, (job, _) in enumerate(not_started, len(started) + 1)
        ),
    ]


def _worker_class(capacity: WorkerCapacity) -> WorkerCapacity:
    """The capacity that equal slots of different GPUs have in common."""
    return replace(capacity, gpu_uuids=("shared",)) if capacity.shares_gpus else replace(capacity, gpu_uuids=())


class _WorkerClasses:
    """The worker classes that meet given requirements, cached: thousands of jobs have a few distinct requirements."""

    def __init__(self, capacities: Sequence[WorkerCapacity]) -> None:
        self._capacities = capacities
        self._matching: dict[JobRequirements, frozenset[int]] = {}
        self._missing: dict[JobRequirements, str | None] = {}
        self._whole: dict[JobRequirements, str | None] = {}

    def matching(self, requirements: JobRequirements) -> frozenset[int]:
        classes = self._matching.get(requirements)
        if classes is None:
            classes = frozenset(
                number for number, capacity in enumerate(self._capacities) if fits(capacity, requirements)
            )
            self._matching[requirements] = classes
        return classes

    def missing(self, requirements: JobRequirements) -> str | None:
        if requirements not in self._missing:
            self._missing[requirements] = missing_requirements(self._capacities, requirements)
        return self._missing[requirements]

    def whole_gpu_reason(self, requirements: JobRequirements) -> str | None:
        if requirements not in self._whole:
            self._whole[requirements] = whole_gpu_reason(self._capacities, requirements)
        return self._whole[requirements]


class _QueueSimulation:
    """A discrete-event simulation. For each worker class a heap has the next candidate of every project."""

    def __init__(
        self,
        slots: Sequence[WorkerSlot],
        capacities: Sequence[WorkerCapacity],
        jobs: Sequence[ClassifiedJob],
        shares: Mapping[str, ProjectShare],
        half_life: float,
    ) -> None:
        self.half_life = half_life
        paused = [job for job in jobs if job[0].pause_seconds > 0 and job[1]]
        ready = [job for job in jobs if job[0].pause_seconds <= 0 and job[1]]
        self.shared_capacities = [capacity for capacity in capacities if capacity.shares_gpus]
        self.jobs_left = len(ready) + len(paused)
        self.projects = _project_queues(ready, shares)
        for job, _ in paused:
            if job.project_id not in self.projects:
                share = shares.get(job.project_id) or ProjectShare(job.project_id)
                self.projects[job.project_id] = _ProjectQueue.of(share)
        self.candidates: list[list[tuple[bool, float, int, int, str, deque[QueuedJob]]]] = [[] for _ in capacities]
        self.idle: list[_SlotState] = []
        self.reserved_bytes: Counter[str] = Counter()  # by UUID of a shared GPU
        for slot in slots:
            self._reserve(slot.capacity, slot.reserved_bytes)
        # (time, number, the slot that is free then, the project whose job ended, the job whose pause is over)
        numbers = {capacity: number for number, capacity in enumerate(capacities)}
        self.events: list[tuple[float, int, _SlotState | None, str | None, ClassifiedJob | None]] = [
            (
                slot.free_in_seconds,
                number,
                _SlotState(numbers[_worker_class(slot.capacity)], slot.capacity, slot.reserved_bytes),
                slot.project_id,
                None,
            )
            for number, slot in enumerate(slots)
        ]
        self.events += [
            (job[0].pause_seconds, number, None, None, job) for number, job in enumerate(paused, len(slots))
        ]
        heapq.heapify(self.events)
        for project_id in self.projects:
            self._push_candidates(project_id)

    def run(self) -> list[tuple[QueuedJob, float]]:
        """The jobs that start, in that order, each with the seconds until its start."""
        starts: list[tuple[QueuedJob, float]] = []
        number = len(self.events)
        while self.jobs_left and self.events:
            now, _, slot, ended_project_id, resumed = heapq.heappop(self.events)
            free_slots = self._end_pause(resumed) if slot is None else self._release(slot, ended_project_id)
            for free_slot in free_slots:
                job = self._take_next(free_slot)
                if job is None:
                    self.idle.append(free_slot)
                    continue
                starts.append((job, now))
                seconds = DEFAULT_DURATION_SECONDS if job.seconds is None else job.seconds
                capacity, needed_bytes = free_slot.capacity, job.requirements.cuda_bytes
                self._charge(job, now, seconds * capacity.gpus * capacity.gpu_share(needed_bytes))
                if capacity.shares_gpus:
                    free_slot = free_slot._replace(reserved_bytes=capacity.budget_bytes(needed_bytes))
                    self._reserve(capacity, free_slot.reserved_bytes)
                if any(each.needs_whole_gpu(needed_bytes) for each in self.shared_capacities):
                    free_slots += self.idle  # slots that this job kept idle
                    self.idle = []
                number += 1
                heapq.heappush(self.events, (now + max(1.0, seconds), number, free_slot, job.project_id, None))
        return starts

    def _release(self, slot: _SlotState, ended_project_id: str | None) -> list[_SlotState]:
        """End the job of a slot; return the slots that may take a job now."""
        self._reserve(slot.capacity, -slot.reserved_bytes)
        free = [slot._replace(reserved_bytes=0), *self._end_job(ended_project_id)]
        if slot.reserved_bytes:
            uuids = set(slot.capacity.gpu_uuids)
            free += [each for each in self.idle if uuids & set(each.capacity.gpu_uuids)]
            self.idle = [each for each in self.idle if not uuids & set(each.capacity.gpu_uuids)]
        return free

    def _reserve(self, capacity: WorkerCapacity, size_bytes: int) -> None:
        if capacity.shares_gpus:
            for uuid in capacity.gpu_uuids:
                self.reserved_bytes[uuid] += size_bytes

    def _take_next(self, slot: _SlotState) -> QueuedJob | None:
        """The next job of a free slot; None if there is none, or if its memory is not free on the slot's GPUs."""
        capacity = slot.capacity
        reserved = max((self.reserved_bytes[uuid] for uuid in capacity.gpu_uuids), default=0)
        if not capacity.shares_gpus or not reserved:
            return self._pop_next(slot.worker_class)
        if not capacity.has_room_for_slot(reserved):
            return None
        return self._pop_next(slot.worker_class, lambda job: not capacity.needs_whole_gpu(job.requirements.cuda_bytes))

    def _end_pause(self, resumed: ClassifiedJob | None) -> list[_SlotState]:
        """Put a job whose pause is over into its queue; return the idle slots."""
        assert resumed is not None
        job, classes = resumed
        queue = self.projects[job.project_id].queues.setdefault(classes, deque())
        queue.insert(bisect_left(queue, job.order(), key=QueuedJob.order), job)
        self._push_candidates(job.project_id)
        idle, self.idle = self.idle, []
        return idle

    def _end_job(self, project_id: str | None) -> list[_SlotState]:
        """Return the idle slots if the end of this project's job takes it below its limit, else none."""
        project = self.projects.get(project_id or "")
        if project is None or project.jobs_allowed is None:
            return []
        was_at_limit, project.jobs_allowed = project.is_at_limit, project.jobs_allowed + 1
        if not was_at_limit:
            return []
        self._push_candidates(project_id or "")
        idle, self.idle = self.idle, []
        return idle

    def _pop_next(self, worker_class: int, may_start: Callable[[QueuedJob], bool] | None = None) -> QueuedJob | None:
        """The first job that the worker class can run; None if there is none, or if it may not start now."""
        candidates = self.candidates[worker_class]
        while candidates:
            _, _, _, version, project_id, queue = candidates[0]
            project = self.projects[project_id]
            if version == project.version and not project.is_at_limit:
                if may_start is not None and not may_start(queue[0]):
                    return None
                heapq.heappop(candidates)
                self.jobs_left -= 1
                return queue.popleft()
            heapq.heappop(candidates)
        return None

    def _charge(self, job: QueuedJob, now: float, gpu_seconds: float) -> None:
        """Add a started job to its project's share, in GPU seconds of the simulation's start.

        All usage decays at the same rate, so later usage is scaled up instead of decaying every share at each event.
        """
        project = self.projects[job.project_id]
        project.share += gpu_seconds / project.weight * 2.0 ** min(MAX_HALF_LIVES, now / self.half_life)
        if project.jobs_allowed is not None:
            project.jobs_allowed -= 1
        self._push_candidates(job.project_id)

    def _push_candidates(self, project_id: str) -> None:
        """Push a project's next job for every worker class; its older candidates become stale."""
        project = self.projects[project_id]
        project.version += 1
        for worker_class, candidates in enumerate(self.candidates):
            if queue := project.next_queue(worker_class):
                job = queue[0]
                candidate = (not job.is_urgent, project.share, job.seq, project.version, project_id, queue)
                heapq.heappush(candidates, candidate)


def _project_queues(jobs: Sequence[ClassifiedJob], shares: Mapping[str, ProjectShare]) -> dict[str, _ProjectQueue]:
    """The projects of `jobs`, each of their queues in order."""
    by_queue: dict[tuple[str, frozenset[int]], list[QueuedJob]] = {}
    for job, classes in jobs:
        by_queue.setdefault((job.project_id, classes), []).append(job)
    projects: dict[str, _ProjectQueue] = {}
    for (project_id, classes), queue in by_queue.items():
        if project_id not in projects:
            projects[project_id] = _ProjectQueue.of(shares.get(project_id) or ProjectShare(project_id))
        projects[project_id].queues[classes] = deque(sorted(queue, key=QueuedJob.order))
    return projects
