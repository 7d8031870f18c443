"""When will each waiting job start? The queue, played to its end with planned durations.

The rule is that of the claim: urgent jobs first, then the project with the least share, within it priority, then age.
What is approximate: durations are plans, nobody comes or leaves meanwhile, a whole job is charged when it starts.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.domain.fair_share import HALF_LIFE_SECONDS, MOST_HALF_LIVES, UNPLANNED_SECONDS, Standing
from app.domain.offers import Need, Offer, fits, what_lacks

ANYTHING = Offer("cuda", 1 << 62, models=None, labels=None)


@dataclass(frozen=True)
class Slot:
    """A place to work at. `free_in_seconds` is what is left of the job it has; `project_id` that job's."""

    offer: Offer
    free_in_seconds: float = 0.0
    project_id: str | None = None


@dataclass(frozen=True)
class Waiting:
    job_id: str
    project_id: str
    seq: int
    need: Need
    priority: int = 0
    is_urgent: bool = False
    seconds: float | None = None  # what is left of its plan

    @property
    def order(self) -> tuple[bool, int, int]:
        """Within its project."""
        return (not self.is_urgent, -self.priority, self.seq)


@dataclass(frozen=True)
class Placed:
    job_id: str
    project_id: str
    position: int
    start_in_seconds: float | None  # None: nobody knows
    waiting_for: str | None


@dataclass
class _Project:
    """One project while the queue is played. Its jobs stand in a line for each set of offers that fit them."""

    share: float
    weight: float
    room: int | None
    lines: dict[frozenset[int], deque[Waiting]] = field(default_factory=dict)
    stamp: int = 0

    @property
    def is_full(self) -> bool:
        return self.room is not None and self.room <= 0


def forecast(
    slots: Sequence[Slot],
    waiting: Iterable[Waiting],
    standings: Iterable[Standing],
    half_life: float = HALF_LIFE_SECONDS,
) -> list[Placed]:
    """Every waiting job, in the order in which they are expected to start; those that nobody can take come last."""
    jobs = sorted(waiting, key=lambda job: job.order)
    known = {standing.project_id: standing for standing in standings}
    offers = list({slot.offer: None for slot in slots})
    lacks = {need: what_lacks(offers, need) for need in {job.need for job in jobs}}
    able = [job for job in jobs if lacks[job.need] is None]
    starts = _Play(slots, able, known, half_life).run()
    rest = [job for job in jobs if job.job_id not in starts]
    order = [*starts, *_Play([Slot(ANYTHING)], rest, _without_limits(known), half_life).run()]
    by_id = {job.job_id: job for job in jobs}
    return [
        Placed(job_id, by_id[job_id].project_id, number, starts.get(job_id), lacks[by_id[job_id].need])
        for number, job_id in enumerate(order, 1)
    ]


class _Play:
    def __init__(
        self, slots: Sequence[Slot], jobs: Sequence[Waiting], known: dict[str, Standing], half_life: float
    ) -> None:
        self.half_life = half_life
        self.offers = list({slot.offer: None for slot in slots})
        self.numbers = {offer: number for number, offer in enumerate(self.offers)}
        self.projects = _line_up(jobs, known, self.offers)
        self.turns: list[list[tuple[bool, float, int, int, str]]] = [[] for _ in self.offers]
        self.left = len(jobs)
        self.idle: list[Slot] = []
        # (when, number, the slot that is free then, the project that has room for one more)
        self.moments = [(slot.free_in_seconds, number, slot, slot.project_id) for number, slot in enumerate(slots)]
        heapq.heapify(self.moments)
        for project_id in self.projects:
            self._enter(project_id)

    def run(self) -> dict[str, float]:
        """Job -> seconds until it starts, in that order."""
        starts: dict[str, float] = {}
        number = len(self.moments)
        while self.left and self.moments:
            now, _, slot, ended = heapq.heappop(self.moments)
            for free in (slot, *self._freed_by(ended)):
                job = self._next(free.offer)
                if job is None:
                    self.idle.append(free)
                    continue
                starts[job.job_id] = now
                seconds = UNPLANNED_SECONDS if job.seconds is None else job.seconds
                self._charge(job, now, seconds * free.offer.gpus)
                number += 1
                heapq.heappush(self.moments, (now + max(1.0, seconds), number, free, job.project_id))
        return starts

    def _freed_by(self, ended: str | None) -> list[Slot]:
        """Slots that had nothing to do, now that a job of a project which was full has ended."""
        project = self.projects.get(ended or "")
        if project is None or project.room is None:
            return []
        was_full, project.room = project.is_full, project.room + 1
        if not was_full:
            return []
        self._enter(ended or "")
        idle, self.idle = self.idle, []
        return idle

    def _next(self, offer: Offer) -> Waiting | None:
        kind = self.numbers[offer]
        turns = self.turns[kind]
        while turns:
            _, _, _, stamp, project_id = heapq.heappop(turns)
            project = self.projects[project_id]
            if stamp == project.stamp and not project.is_full and (line := _head(project, kind)):
                self.left -= 1
                return line.popleft()
        return None

    def _charge(self, job: Waiting, now: float, gpu_seconds: float) -> None:
        """In GPU seconds of the beginning: everybody's usage fades alike, so what comes later weighs more."""
        project = self.projects[job.project_id]
        project.share += gpu_seconds / project.weight * 2.0 ** min(MOST_HALF_LIVES, now / self.half_life)
        if project.room is not None:
            project.room -= 1
        self._enter(job.project_id)

    def _enter(self, project_id: str) -> None:
        """Give a project its turn anew for every kind of slot; turns with an older stamp are void."""
        project = self.projects[project_id]
        project.stamp += 1
        for kind, turns in enumerate(self.turns):
            if line := _head(project, kind):
                head = line[0]
                turn = (not head.is_urgent, project.share, head.seq, project.stamp, project_id)
                heapq.heappush(turns, turn)


def _line_up(jobs: Sequence[Waiting], known: dict[str, Standing], offers: Sequence[Offer]) -> dict[str, _Project]:
    projects: dict[str, _Project] = {}
    fitting = {
        need: frozenset(number for number, offer in enumerate(offers) if fits(offer, need))
        for need in {job.need for job in jobs}
    }
    for job in jobs:
        if job.project_id not in projects:
            standing = known.get(job.project_id) or Standing(job.project_id)
            room = None if standing.max_running is None else standing.max_running - standing.running
            projects[job.project_id] = _Project(standing.share, standing.weight, room)
        projects[job.project_id].lines.setdefault(fitting[job.need], deque()).append(job)
    return projects


def _head(project: _Project, kind: int) -> deque[Waiting] | None:
    """The line whose first job would be the project's next on a slot with the offer of this number."""
    lines = [line for kinds, line in project.lines.items() if line and kind in kinds]
    return min(lines, key=lambda line: line[0].order, default=None)


def _without_limits(known: dict[str, Standing]) -> dict[str, Standing]:
    return {name: Standing(name, standing.usage, standing.held, standing.weight) for name, standing in known.items()}
