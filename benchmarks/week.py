"""One week of a queue, event by event: by the service's own claim on a real PostgreSQL, or first come, first served."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import claims
from app.db.jobs.leases import Lease
from app.db.scheduling import fair_queue, queue_positions
from app.db.tables import File, Job, Project
from app.domain.jobs.states import Reason
from app.domain.scheduling.preemption import PreemptionPolicy, RunningJob, select_preemptions
from app.domain.scheduling.worker_capacity import WorkerCapacity
from benchmarks.traffic import Arrival
from benchmarks.virtual_time import set_clock

LEASE_SECONDS = 90 * 86_400.0
STEP_SECONDS = 20.0  # until a preempted job has stopped
RESUME_SECONDS = 30.0  # what starting again costs
ROUND_SECONDS = 5.0  # of the reconciler, which counts usage and requests preemptions


class Queue(Protocol):
    """The policy that selects the next job."""

    def add(self, number: int, arrival: Arrival, now: float) -> None: ...
    def take(self, slot: int, offer: WorkerCapacity, now: float) -> int | None: ...
    def end(self, number: int, now: float) -> None: ...
    def preempt(self, number: int, now: float) -> None: ...
    def to_interrupt(self, held: dict[int, int], offers: Sequence[WorkerCapacity], now: float) -> list[int]: ...


@dataclass
class Run:
    """The result of one arrival."""

    arrival: Arrival
    left: float
    first_start: float | None = None
    started: float = 0.0
    ended: float | None = None
    pieces: list[tuple[float, float]] = field(default_factory=list)  # when it had a GPU
    attempt: int = 0

    @property
    def wait(self) -> float:
        """The total time without a GPU."""
        assert self.ended is not None
        return self.ended - self.arrival.at - sum(end - start for start, end in self.pieces)


def simulate(arrivals: Sequence[Arrival], gpus: Sequence[int], queue: Queue) -> list[Run]:
    offers = [WorkerCapacity("cuda", memory) for memory in gpus]
    runs = [Run(arrival, arrival.seconds) for arrival in arrivals]
    held: dict[int, int] = {}  # slot -> run
    moments: list[tuple[float, int, str, int, int]] = []
    for number, arrival in enumerate(arrivals):
        heapq.heappush(moments, (arrival.at, number, "arrive", number, 0))
    while moments:
        now, _, what, number, attempt = heapq.heappop(moments)
        run = runs[number]
        if what == "arrive":
            queue.add(number, arrivals[number], now)
        elif run.attempt != attempt or number not in held.values():
            continue  # of an attempt that was interrupted, or that ended before it was
        else:
            del held[next(slot for slot, holder in held.items() if holder == number)]
            run.pieces.append((run.started, now))
            if what == "end":
                run.ended = now
                queue.end(number, now)
            else:
                run.left = max(1.0, run.left - (now - run.started)) + RESUME_SECONDS
                queue.preempt(number, now)
        for number, slot in _fill(queue, held, offers, now):
            _start(runs[number], number, now, moments)
            held[slot] = number
        for number in queue.to_interrupt(held, offers, now + ROUND_SECONDS):
            stop_at = now + ROUND_SECONDS + STEP_SECONDS
            heapq.heappush(moments, (stop_at, number, "preempt", number, runs[number].attempt))
    return runs


def _fill(
    queue: Queue, held: dict[int, int], offers: Sequence[WorkerCapacity], now: float
) -> Iterator[tuple[int, int]]:
    """Small cards first, so that the large ones stay free for large jobs."""
    for slot, offer in enumerate(offers):
        if slot not in held:
            number = queue.take(slot, offer, now)
            if number is not None:
                yield number, slot


def _start(run: Run, number: int, now: float, moments: list[tuple[float, int, str, int, int]]) -> None:
    run.attempt += 1
    run.started = now
    if run.first_start is None:
        run.first_start = now
    heapq.heappush(moments, (now + run.left, number, "end", number, run.attempt))


class FirstComeFirstServed:
    """The oldest job of any project that fits."""

    def __init__(self) -> None:
        self.waiting: dict[int, Arrival] = {}

    def add(self, number: int, arrival: Arrival, now: float) -> None:  # noqa: ARG002
        self.waiting[number] = arrival

    def take(self, slot: int, offer: WorkerCapacity, now: float) -> int | None:  # noqa: ARG002
        fitting = [number for number, job in self.waiting.items() if job.needed_bytes <= offer.usable_bytes]
        if not fitting:
            return None
        del self.waiting[min(fitting)]
        return min(fitting)

    def end(self, number: int, now: float) -> None: ...

    def preempt(self, number: int, now: float) -> None: ...

    def to_interrupt(self, *_: object) -> list[int]:
        return []


class TheService:
    """app.db.jobs.claims and app.db.scheduling.fair_queue as they are, in a PostgreSQL whose clock we set."""

    def __init__(
        self, engine: Engine, arrivals: Sequence[Arrival], half_life: float, policy: PreemptionPolicy | None
    ) -> None:
        self.session = Session(engine, expire_on_commit=False)
        self.half_life = half_life
        self.policy = policy
        self.jobs: dict[int, str] = {}
        self.numbers: dict[str, int] = {}
        self.leases: dict[int, Lease] = {}
        self._insert_projects(arrivals)

    def _insert_projects(self, arrivals: Sequence[Arrival]) -> None:
        for name in sorted({arrival.project for arrival in arrivals}):
            self.session.add(Project(id=name, name=name))
            self.session.flush()
            self.session.add(
                File(
                    id=f"file-{name}", project_id=name, purpose="fine-tune", filename="x", bytes=1, sha256="",
                    storage_key="x",
                )
            )  # fmt: skip
        self.session.commit()

    def add(self, number: int, arrival: Arrival, now: float) -> None:
        job_id = new_id("ftjob")
        self.jobs[number], self.numbers[job_id] = job_id, number
        with self._at(now):
            self.session.add(
                Job(
                    id=job_id, project_id=arrival.project, base_model="m", training_file_id=f"file-{arrival.project}",
                    spec={}, state="queued", urgent=arrival.is_urgent, needed_cuda_bytes=arrival.needed_bytes,
                    planned_seconds=arrival.planned_seconds,
                )
            )  # fmt: skip

    def take(self, slot: int, offer: WorkerCapacity, now: float) -> int | None:
        with self._at(now):
            job = claims.claim(self.session, "train", f"gpu{slot}", LEASE_SECONDS, offer, self.half_life)
        if job is None:
            return None
        number = self.numbers[job.id]
        self.leases[number] = Lease(job.id, job.attempt, f"gpu{slot}")
        return number

    def end(self, number: int, now: float) -> None:
        with self._at(now):
            claims.finish_held_attempt(self.session, self.leases.pop(number), Reason.DONE, "done", adapter_sha256="x")
            fair_queue.count_usage(self.session, self.half_life)

    def preempt(self, number: int, now: float) -> None:
        with self._at(now):
            claims.finish_held_attempt(self.session, self.leases.pop(number), Reason.PREEMPTED, "preempted")

    def to_interrupt(self, held: dict[int, int], offers: Sequence[WorkerCapacity], now: float) -> list[int]:
        if self.policy is None:
            return []
        with self._at(now):
            urgent = [job for job in fair_queue.waiting_jobs(self.session, self.half_life) if job.is_urgent]
            free = [offer for slot, offer in enumerate(offers) if slot not in held]
            chosen = select_preemptions(urgent, free, self._holders(offers) if urgent else [], {}, self.policy)
            for each in chosen:
                assert queue_positions.request_preemption(self.session, each)
        return [self.numbers[each.victim.job_id] for each in chosen]

    def _holders(self, offers: Sequence[WorkerCapacity]) -> list[RunningJob]:
        shares = {each.project_id: each.share for each in fair_queue.project_shares(self.session, self.half_life)}
        capacities = {f"gpu{slot}": offer for slot, offer in enumerate(offers)}
        running = queue_positions.running_jobs(self.session, capacities, shares)
        return [replace(job, is_stoppable=True) for job in running]

    def _at(self, now: float) -> _Moment:
        return _Moment(self.session, now)


class _Moment:
    """One transaction at one moment."""

    def __init__(self, session: Session, now: float) -> None:
        self.session, self.now = session, now

    def __enter__(self) -> None:
        set_clock(self.session, self.now)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.session.commit()
        else:
            self.session.rollback()
