"""The scheduling tick of the reconciler: count usage, forecast queue positions, request preemptions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.scheduling import fair_queue, queue_positions, workers
from app.domain.scheduling.forecast import JobForecast, forecast
from app.domain.scheduling.preemption import PreemptionPolicy, select_preemptions
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
        running_seconds = [job.seconds_left for job in queue.running]
        forecasts = forecast(list(queue.capacities.values()), running_seconds, queue.waiting, queue.shares)
        with transaction(self.resources.sessions) as session:
            queue_positions.write_positions(session, forecasts)
        with transaction(self.resources.sessions) as session:
            queue_positions.append_wait_events(session, WAIT_EVENT_DELAY_SECONDS)
        if self.settings.give_way:
            self._request_preemptions(queue, forecasts)

    def _request_preemptions(self, queue: _QueueSnapshot, forecasts: Sequence[JobForecast]) -> None:
        policy = PreemptionPolicy(self.settings.give_way_after_seconds, self.settings.give_way_limit)
        startable = {each.job_id for each in forecasts if each.start_in_seconds is not None}
        urgent = [job for job in queue.waiting if job.is_urgent and job.pause_seconds <= 0 and job.job_id in startable]
        allowed = {
            each.project_id: each.max_running - each.running for each in queue.shares if each.max_running is not None
        }
        for each in select_preemptions(urgent, queue.free_capacities, queue.running, allowed, policy):
            with transaction(self.resources.sessions) as session:
                if queue_positions.request_preemption(session, each):
                    log.info("preemption requested", job=each.victim.job_id, urgent_job=each.urgent.job_id)


class _QueueSnapshot:
    """Workers, running and queued jobs, and the usage of projects, read in one transaction."""

    def __init__(self, session: Session, half_life_seconds: float) -> None:
        self.capacities = {row.id: worker_capacity(row.about) for row in workers.gpu_workers(session)}
        self.shares = fair_queue.project_shares(session, half_life_seconds)
        shares = {each.project_id: each.share for each in self.shares}
        self.running = queue_positions.running_jobs(session, self.capacities, shares)
        self.waiting = fair_queue.waiting_jobs(session, half_life_seconds)

    @property
    def free_capacities(self) -> list[WorkerCapacity]:
        """What idle workers offer now: of a GPU that is partly reserved one slot."""
        owners = {job.lease_owner for job in self.running}
        reserved: Counter[str] = Counter()
        for job in self.running:
            reserved.update(dict.fromkeys(self.capacities[job.lease_owner].gpu_uuids, job.reserved_bytes))
        free = []
        for capacity in (capacity for owner, capacity in self.capacities.items() if owner not in owners):
            held = max((reserved[uuid] for uuid in capacity.gpu_uuids), default=0)
            if capacity.has_room_for_slot(held):
                free.append(capacity.as_slot if held else capacity)
        return free
