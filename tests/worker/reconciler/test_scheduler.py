"""The scheduling tick: preemption of a long job, queue positions, jobs that no worker can run."""

from __future__ import annotations

import pytest
from sqlalchemy import func, text, update

from app.db.engine import transaction
from app.db.scheduling import queue_positions, workers
from app.db.tables import Job, QueuePlace
from tests.worker.fake_trainer import Plan
from tests.worker.jobs.test_interruptions import slow
from tests.worker.worker_harness import OWNER, Bench, Witness
from worker.reconciler.scheduler import QueueScheduler

DESCRIPTION = {"kind": "cpu", "device": "a CPU", "memory_bytes": 8 << 30, "models": ["tiny"], "labels": ["site=berlin"]}


@pytest.fixture
def scheduler(bench: Bench) -> QueueScheduler:
    settings = bench.resources.settings
    settings.give_way, settings.give_way_after_seconds = True, 0.0
    return QueueScheduler(bench.resources)


def register_worker(bench: Bench, name: str = OWNER, **about: object) -> None:
    with transaction(bench.sessions) as session:
        workers.heartbeat(session, name, "gpu", "test", 1, DESCRIPTION | about)


def update_job(bench: Bench, job: Job, **columns: object) -> None:
    with transaction(bench.sessions) as session:
        session.execute(update(Job).where(Job.id == job.id).values(**columns))


def queue_position(bench: Bench, job: Job) -> QueuePlace:
    with transaction(bench.sessions) as session:
        return queue_positions.get_positions(session, [job.id])[job.id]


class TestGivingWay:
    def test_a_long_job_stops_at_a_step_for_an_urgent_one_and_goes_on_where_it_was(
        self, bench: Bench, scheduler: QueueScheduler, witness: Witness
    ) -> None:
        long = bench.queued()
        register_worker(bench)
        thread = bench.work_aside(slow(witness, steps=150, step_seconds=0.1, eta_seconds=3600.0))
        bench.until(lambda: bench.has_reached(long, 3), "some steps")
        urgent = bench.queued()
        update_job(bench, urgent, is_urgent=True)
        bench.until(lambda: scheduler.refresh() or bench.job(long).state == "queued", "giving way")
        thread.join(10)

        gone = bench.job(long)
        assert (gone.reason, gone.desired, gone.yield_requested_at) == ("gave_way", "run", None)
        assert (gone.times_yielded, gone.crash_streak) == (1, 0)
        messages = bench.messages(long)
        assert "The job will give way to an urgent one at its next step, and go on from there later" in messages
        assert messages[-1].startswith("The job gave way to an urgent one at step ")

        bench.work(Plan(steps=2))
        assert (bench.job(urgent).state, bench.job(long).state) == ("succeeded", "queued")
        bench.work(slow(witness, steps=150, step_seconds=0.0))
        assert bench.job(long).state == "succeeded"
        first, second = witness.steps().values()
        assert first + second == list(range(1, 151))

    def test_nobody_is_asked_for_an_urgent_job_that_may_not_start_yet(
        self, bench: Bench, scheduler: QueueScheduler
    ) -> None:
        long = self.running(bench, run_after=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 1))
        scheduler.refresh()
        assert bench.job(long).yield_requested_at is None

    def test_nobody_is_asked_where_the_operator_did_not_allow_it(self, bench: Bench, scheduler: QueueScheduler) -> None:
        bench.resources.settings.give_way = False
        long = self.running(bench)
        scheduler.refresh()
        assert bench.job(long).yield_requested_at is None

    def test_the_wish_ends_with_the_attempt_and_leaves_the_users_alone(
        self, bench: Bench, scheduler: QueueScheduler
    ) -> None:
        long = self.running(bench)
        scheduler.refresh()
        asked = bench.job(long)
        assert (asked.yield_requested_at is not None, asked.desired, asked.state) == (True, "run", "running")
        scheduler.refresh()
        assert sum("give way" in message for message in bench.messages(long)) == 1
        bench.cancel(long)
        assert bench.job(long).yield_requested_at is None

    def running(self, bench: Bench, **of_urgent: object) -> Job:
        """A long one that trains, and an urgent one that waits."""
        long = bench.queued()
        bench.claim()
        update_job(bench, long, phase="training", planned_seconds=36_000.0)
        update_job(bench, bench.queued(), is_urgent=True, **of_urgent)
        register_worker(bench)
        return long


class TestPlaces:
    def test_each_job_has_a_place_and_a_start_until_it_runs(self, bench: Bench, scheduler: QueueScheduler) -> None:
        first, second = bench.queued(), bench.queued()
        update_job(bench, first, planned_seconds=500.0)
        register_worker(bench)
        scheduler.refresh()
        assert [queue_position(bench, job).position for job in (first, second)] == [1, 2]
        starts = [queue_position(bench, job).expected_start_at for job in (first, second)]
        assert starts[0] is not None
        assert starts[1] is not None
        assert (starts[1] - starts[0]).total_seconds() == pytest.approx(500, abs=1)
        scheduler.refresh()
        assert [queue_position(bench, job).expected_start_at for job in (first, second)] == starts
        bench.claim()
        scheduler.refresh()
        assert queue_position(bench, second).position == 1

    def test_a_job_that_nobody_can_take_waits_and_says_so_once_and_when_it_is_over(
        self, bench: Bench, scheduler: QueueScheduler
    ) -> None:
        job = bench.queued()
        update_job(bench, job, worker_labels=["site=rome"])
        register_worker(bench)
        scheduler.refresh()
        assert "has the labels site=rome" in (queue_position(bench, job).waiting_for or "")
        assert not any("site=rome" in message for message in bench.messages(job))
        with transaction(bench.sessions) as session:
            session.execute(text("UPDATE queue_places SET waiting_since = waiting_since - interval '61 seconds'"))
        scheduler.refresh()
        scheduler.refresh()
        assert sum("site=rome" in message for message in bench.messages(job)) == 1
        assert bench.job(job).state == "queued"
        register_worker(bench, labels=["site=rome"])
        scheduler.refresh()
        assert queue_position(bench, job).waiting_for is None
        assert bench.messages(job)[-1] == "There is a worker again that can take the job"
