"""When will each waiting job start? The queue, played to its end with planned durations.

The rule is that of the claim: urgent jobs first, then the project with the least share, within it priority, then age.
What is approximate: durations are plans, nobody comes or leaves meanwhile, a whole job is charged when it starts.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from app.domain.scheduling.fair_share import HALF_LIFE_SECONDS, MOST_HALF_LIVES, UNPLANNED_SECONDS, Standing
from app.domain.scheduling.worker_capacity import Need, Offer, fits, what_lacks

ANYTHING = Offer("cuda", 1 << 62, models=None, labels=None)
ALL_OF_ONE = frozenset({0})


@dataclass(frozen=True)
class Slot:
    """A place to work at. `free_in_seconds` is what is left of the job it has; `project_id` that job's."""

    offer: Offer
    free_in_seconds: float = 0.0
    project_id: str | None = None


# A forecast makes 50,000 of each, and a frozen dataclass takes four times as long to make.
class Waiting(NamedTuple):
    job_id: str
    project_id: str
    seq: int
    need: Need
    priority: int = 0
    is_urgent: bool = False
    seconds: float | None = None  # what is left of its plan
    pause_seconds: float = 0.0  # until a worker may take it: after an attempt that ended without a result

    def order(self) -> tuple[bool, int, int]:
        """Within its project."""
        return (not self.is_urgent, -self.priority, self.seq)


class Placed(NamedTuple):
    job_id: str
    project_id: str
    position: int
    start_in_seconds: float | None  # None: nobody knows
    waiting_for: str | None


Fitted = tuple[Waiting, frozenset[int]]  # a job, and the numbers of the offers that fit it


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
    known = {standing.project_id: standing for standing in standings}
    offers = list({slot.offer: None for slot in slots})
    kinds = _Kinds(offers)
    jobs = [(job, kinds.of(job.need)) for job in waiting]
    started = _Play(slots, offers, jobs, known, half_life).run()
    placed = {job.job_id for job, _ in started}
    rest = [(job, ALL_OF_ONE) for job, _ in jobs if job.job_id not in placed]
    anywhere = _Play([Slot(ANYTHING)], [ANYTHING], rest, _without_limits(known), half_life).run()
    return [
        *(Placed(job.job_id, job.project_id, number, start, None) for number, (job, start) in enumerate(started, 1)),
        *(
            Placed(job.job_id, job.project_id, number, None, kinds.lack(job.need))
            for number, (job, _) in enumerate(anywhere, len(started) + 1)
        ),
    ]


class _Kinds:
    """Which offers, by their numbers, fit a need; thousands of jobs have a few needs."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._offers = offers
        self._kinds: dict[Need, frozenset[int]] = {}
        self._lacks: dict[Need, str | None] = {}

    def of(self, need: Need) -> frozenset[int]:
        found = self._kinds.get(need)
        if found is None:
            found = frozenset(number for number, offer in enumerate(self._offers) if fits(offer, need))
            self._kinds[need] = found
        return found

    def lack(self, need: Need) -> str | None:
        """In a sentence; None where one fits."""
        if need not in self._lacks:
            self._lacks[need] = what_lacks(self._offers, need)
        return self._lacks[need]


class _Play:
    def __init__(
        self,
        slots: Sequence[Slot],
        offers: Sequence[Offer],
        jobs: Sequence[Fitted],
        known: Mapping[str, Standing],
        half_life: float,
    ) -> None:
        self.half_life = half_life
        self.later = [job for job in jobs if job[0].pause_seconds > 0 and job[1]]
        self.projects, self.left = _line_up([job for job in jobs if job[0].pause_seconds <= 0], known)
        self.left += len(self.later)
        for job, _ in self.later:
            self.projects.setdefault(job.project_id, _project(known.get(job.project_id) or Standing(job.project_id)))
        self.turns: list[list[tuple[bool, float, int, int, str, deque[Waiting]]]] = [[] for _ in offers]
        self.idle: list[_Free] = []
        # (when, number, the slot that is free then, the project that has room for one more, the job that may start)
        numbers = {offer: number for number, offer in enumerate(offers)}
        self.moments: list[tuple[float, int, _Free | None, str | None, Fitted | None]] = [
            (slot.free_in_seconds, number, _Free(numbers[slot.offer], slot.offer.gpus), slot.project_id, None)
            for number, slot in enumerate(slots)
        ]
        self.moments += [
            (job[0].pause_seconds, number, None, None, job) for number, job in enumerate(self.later, len(slots))
        ]
        heapq.heapify(self.moments)
        for project_id in self.projects:
            self._enter(project_id)

    def run(self) -> list[tuple[Waiting, float]]:
        """Each job that starts, and in how many seconds, in that order."""
        starts: list[tuple[Waiting, float]] = []
        number = len(self.moments)
        while self.left and self.moments:
            now, _, slot, ended, arrived = heapq.heappop(self.moments)
            for free in self._arrive(arrived) if slot is None else (slot, *self._freed_by(ended)):
                job = self._next(free.kind)
                if job is None:
                    self.idle.append(free)
                    continue
                starts.append((job, now))
                seconds = UNPLANNED_SECONDS if job.seconds is None else job.seconds
                self._charge(job, now, seconds * free.gpus)
                number += 1
                heapq.heappush(self.moments, (now + max(1.0, seconds), number, free, job.project_id, None))
        return starts

    def _arrive(self, arrived: Fitted | None) -> list[_Free]:
        """The pause of a job is over: it joins its line. The slots that had nothing to do."""
        assert arrived is not None
        job, kinds = arrived
        line = self.projects[job.project_id].lines.setdefault(kinds, deque())
        line.insert(bisect_left(line, job.order(), key=Waiting.order), job)
        self._enter(job.project_id)
        idle, self.idle = self.idle, []
        return idle

    def _freed_by(self, ended: str | None) -> list[_Free]:
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

    def _next(self, kind: int) -> Waiting | None:
        turns = self.turns[kind]
        while turns:
            _, _, _, stamp, project_id, line = heapq.heappop(turns)
            project = self.projects[project_id]
            if stamp == project.stamp and not project.is_full:
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
                turn = (not head.is_urgent, project.share, head.seq, project.stamp, project_id, line)
                heapq.heappush(turns, turn)


class _Free(NamedTuple):
    """A slot while the queue is played: the number of its offer, and its GPUs."""

    kind: int
    gpus: int


def _line_up(jobs: Sequence[Fitted], known: Mapping[str, Standing]) -> tuple[dict[str, _Project], int]:
    """The projects, each line in its order, and how many stand there: those that no offer fits do not."""
    waiting: dict[tuple[str, frozenset[int]], list[Waiting]] = {}
    for job, kinds in jobs:
        if kinds:
            waiting.setdefault((job.project_id, kinds), []).append(job)
    projects: dict[str, _Project] = {}
    for (project_id, kinds), line in waiting.items():
        if project_id not in projects:
            projects[project_id] = _project(known.get(project_id) or Standing(project_id))
        projects[project_id].lines[kinds] = deque(sorted(line, key=Waiting.order))
    return projects, sum(map(len, waiting.values()))


def _project(standing: Standing) -> _Project:
    room = None if standing.max_running is None else standing.max_running - standing.running
    return _Project(standing.share, standing.weight, room)


def _head(project: _Project, kind: int) -> deque[Waiting] | None:
    """The line whose first job would be the project's next on a slot with the offer of this number."""
    first: deque[Waiting] | None = None
    for kinds, line in project.lines.items():
        if line and kind in kinds and (first is None or line[0].order() < first[0].order()):
            first = line
    return first


def _without_limits(known: Mapping[str, Standing]) -> dict[str, Standing]:
    return {name: Standing(name, standing.usage, standing.held, standing.weight) for name, standing in known.items()}
