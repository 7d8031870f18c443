"""The scheduling tick of the reconciler: count usage, forecast queue positions, request preemptions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.scheduling import fair_queue, queue_positions, workers
from app.db.scheduling.queue_positions import RunningAttempt
from app.domain.scheduling.forecast import JobForecast, QueuedJob, WorkerSlot, forecast
from app.domain.scheduling.preemption import PreemptionPolicy, RunningJob, UrgentJob, select_preemptions
from app.domain.scheduling.worker_capacity import WorkerCapacity, worker_capacity
from app.log import get_logger
from worker.node.resources import Resources

WAIT_EVENT_DELAY_SECONDS = 60  # a restart of the workers causes no event
IDLE_FACTOR = 10  # idle time after a forecast, as a multiple of its duration: 50,000 queued jobs take a second or two

log = get_logger(__name__)


class QueueScheduler:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.settings = resources.settings
        self._next_at = 0.0

    def tick(self) -> None:
        """Refresh, unless the last refresh took so long that it is too early. Raises DATABASE_UNAVAILABLE."""
        began = time.monotonic()
        if began < self._next_at:
            return
        self.refresh()
        self._next_at = time.monotonic() + IDLE_FACTOR * (time.monotonic() - began)

    def refresh(self) -> None:
        half_life_seconds = self.settings.fair_share_half_life_seconds
        with transaction(self.resources.sessions) as session:
            fair_queue.count_usage(session, half_life_seconds)
        with transaction(self.resources.sessions) as session:
            queue = _QueueSnapshot(session, half_life_seconds)
        forecasts = forecast(queue.slots, queue.waiting, queue.shares.values(), half_life_seconds)
        with transaction(self.resources.sessions) as session:
            queue_positions.write_positions(session, forecasts)
        with transaction(self.resources.sessions) as session:
            queue_positions.append_wait_events(session, WAIT_EVENT_DELAY_SECONDS)
        if self.settings.give_way:
            self._request_preemptions(queue, forecasts)

    def _request_preemptions(self, queue: _QueueSnapshot, forecasts: Sequence[JobForecast]) -> None:
        policy = PreemptionPolicy(self.settings.give_way_after_seconds, self.settings.give_way_limit)
        urgent = queue.urgent(forecasts)
        preemptions = select_preemptions(
            urgent, queue.free_capacities, queue.running_jobs, queue.free_job_counts, policy
        )
        attempts = {job.id: job.attempt for job in queue.running}
        for each in preemptions:
            with transaction(self.resources.sessions) as session:
                if queue_positions.request_preemption(session, each, attempts[each.victim.job_id]):
                    log.info("preemption requested", job=each.victim.job_id, urgent_job=each.urgent.job_id)


class _QueueSnapshot:
    """Workers, running and queued jobs, and the usage of projects, read in one transaction."""

    def __init__(self, session: Session, half_life_seconds: float) -> None:
        self.capacities = {row.id: worker_capacity(row.about) for row in workers.gpu_workers(session)}
        self.running = queue_positions.running_attempts(session)
        self.waiting = queue_positions.waiting_jobs(session)
        self.shares = {each.project_id: each for each in fair_queue.project_shares(session, half_life_seconds)}

    @property
    def slots(self) -> list[WorkerSlot]:
        slots = {owner: WorkerSlot(capacity) for owner, capacity in self.capacities.items()}
        for job in self.running:
            if job.lease_owner in slots:
                capacity = self.capacities[job.lease_owner]
                slots[job.lease_owner] = WorkerSlot(capacity, job.seconds_left, job.project_id, job.reserved_bytes)
        return list(slots.values())

    @property
    def free_capacities(self) -> list[WorkerCapacity]:
        """What idle workers offer now: of a GPU that is partly reserved one slot."""
        owners = {job.lease_owner for job in self.running}
        reserved: Counter[str] = Counter()
        for job in self.running:
            if job.lease_owner in self.capacities:
                reserved.update(dict.fromkeys(self.capacities[job.lease_owner].gpu_uuids, job.reserved_bytes))
        free = []
        for capacity in (capacity for owner, capacity in self.capacities.items() if owner not in owners):
            held = max((reserved[uuid] for uuid in capacity.gpu_uuids), default=0)
            if capacity.has_room_for_slot(held):
                free.append(capacity.as_slot if held else capacity)
        return free

    @property
    def free_job_counts(self) -> dict[str, int]:
        """How many more jobs each project with a limit may run."""
        return {
            name: each.max_running - each.running for name, each in self.shares.items() if each.max_running is not None
        }

    @property
    def running_jobs(self) -> list[RunningJob]:
        """The running jobs as candidates for preemption."""
        return [
            RunningJob(
                job.id,
                job.project_id,
                self._capacity_of(job),
                self.shares[job.project_id].share if job.project_id in self.shares else 0.0,
                job.ran_seconds,
                job.seconds_left,
                job.priority,
                job.is_urgent,
                job.is_preemption_requested,
                job.can_be_preempted,
                job.preemption_count,
            )
            for job in self.running
            if job.lease_owner in self.capacities
        ]

    def _capacity_of(self, job: RunningAttempt) -> WorkerCapacity:
        """What becomes free with the job: its slot, or the whole GPU if it has that."""
        capacity = self.capacities[job.lease_owner]
        return capacity.as_slot if job.reserved_bytes < capacity.memory_bytes else capacity

    def urgent(self, forecasts: Sequence[JobForecast]) -> list[UrgentJob]:
        """Urgent jobs that some worker could run now, in queue order."""
        by_id: dict[str, QueuedJob] = {
            job.job_id: job for job in self.waiting if job.is_urgent and job.pause_seconds <= 0
        }
        return [
            UrgentJob(each.job_id, each.project_id, by_id[each.job_id].requirements)
            for each in forecasts
            if each.job_id in by_id and each.start_in_seconds is not None
        ]
