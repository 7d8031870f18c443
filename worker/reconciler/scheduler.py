"""The reconciler's part in the queue: usage is counted, places are forecast, and who must gives way."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.scheduling import fair_queue, queue_positions, workers
from app.db.scheduling.queue_positions import RunningAttempt
from app.domain.scheduling.fair_share import Standing
from app.domain.scheduling.forecast import Placed, Slot, Waiting, forecast
from app.domain.scheduling.preemption import Holder, Policy, Urgent, who_gives_way
from app.domain.scheduling.worker_capacity import Offer, offer_of
from app.log import get_logger
from worker.node.resources import Resources

PATIENCE_SECONDS = 60  # a restart of the workers is no news
IDLE_SHARE = 10  # so many times as long as a forecast took there is none: 50,000 waiting jobs take a second or two

log = get_logger(__name__)


class QueueKeeper:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.settings = resources.settings
        self._next_at = 0.0

    def look(self) -> None:
        """Everything, unless the last time was so dear that it is too soon. Raises what DATABASE_AWAY names."""
        began = time.monotonic()
        if began < self._next_at:
            return
        self.refresh()
        self._next_at = time.monotonic() + IDLE_SHARE * (time.monotonic() - began)

    def refresh(self) -> None:
        half_life = self.settings.fair_share_half_life_seconds
        with transaction(self.resources.sessions) as session:
            fair_queue.count_usage(session, half_life)
        with transaction(self.resources.sessions) as session:
            scene = _Scene(session, half_life)
        placed = forecast(scene.slots, scene.waiting, scene.standings.values(), half_life)
        with transaction(self.resources.sessions) as session:
            queue_positions.write_positions(session, placed)
        with transaction(self.resources.sessions) as session:
            queue_positions.append_wait_events(session, PATIENCE_SECONDS)
        if self.settings.give_way:
            self._make_room(scene, placed)

    def _make_room(self, scene: _Scene, placed: Sequence[Placed]) -> None:
        policy = Policy(self.settings.give_way_after_seconds, self.settings.give_way_limit)
        asked = who_gives_way(scene.urgent(placed), scene.free, scene.holders, scene.room, policy)
        attempts = {job.id: job.attempt for job in scene.running}
        for holder in asked:
            with transaction(self.resources.sessions) as session:
                if queue_positions.request_preemption(session, holder.job_id, attempts[holder.job_id]):
                    log.info("asked to give way", job=holder.job_id)


class _Scene:
    """Workers, running and waiting jobs, and how projects stand, read in one transaction."""

    def __init__(self, session: Session, half_life: float) -> None:
        self.offers = {row.id: offer_of(row.about) for row in workers.gpu_workers(session)}
        self.running = queue_positions.running_attempts(session)
        self.waiting = queue_positions.waiting_jobs(session)
        self.standings = {each.project_id: each for each in fair_queue.project_shares(session, half_life)}

    @property
    def slots(self) -> list[Slot]:
        held = {job.lease_owner: job for job in self.running}
        return [_slot(offer, held.get(owner)) for owner, offer in self.offers.items()]

    @property
    def free(self) -> list[Offer]:
        held = {job.lease_owner for job in self.running}
        return [offer for owner, offer in self.offers.items() if owner not in held]

    @property
    def room(self) -> dict[str, int]:
        return {
            name: each.max_running - each.running
            for name, each in self.standings.items()
            if each.max_running is not None
        }

    @property
    def holders(self) -> list[Holder]:
        return [_holder(job, self.offers[job.lease_owner], self.standings.get(job.project_id))
                for job in self.running if job.lease_owner in self.offers]  # fmt: skip

    def urgent(self, placed: Sequence[Placed]) -> list[Urgent]:
        """Those that some worker could take now, in the order of the queue."""
        by_id: dict[str, Waiting] = {
            job.job_id: job for job in self.waiting if job.is_urgent and job.pause_seconds <= 0
        }
        return [
            Urgent(each.job_id, each.project_id, by_id[each.job_id].need)
            for each in placed
            if each.job_id in by_id and each.waiting_for is None
        ]


def _slot(offer: Offer, job: RunningAttempt | None) -> Slot:
    return Slot(offer) if job is None else Slot(offer, job.seconds_left, job.project_id)


def _holder(job: RunningAttempt, offer: Offer, standing: Standing | None) -> Holder:
    return Holder(
        job.id, job.project_id, offer, standing.share if standing else 0.0, job.ran_seconds, job.seconds_left,
        job.priority, job.is_urgent, job.is_preemption_requested, job.can_be_preempted, job.times_yielded,
    )  # fmt: skip
