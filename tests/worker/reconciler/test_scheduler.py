"""The scheduling tick: preemption of a long job, queue positions, jobs that no worker can run."""

from __future__ import annotations

import pytest
from sqlalchemy import func, text, update

from app.db.engine import transaction
from app.db.jobs import claims
from app.db.scheduling import workers
from app.db.tables import Job, QueuePlace
from app.domain.scheduling.worker_capacity import worker_capacity
from tests.deadline import until
from tests.factories import make_file, make_job, make_project, validate_job
from tests.sentences import Reviewed
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.jobs.test_interruptions import slow
from tests.worker.worker_harness import OWNER, StepLog, WorkerHarness
from worker.reconciler.scheduler import QueueScheduler

DESCRIPTION = {"kind": "cpu", "device": "a CPU", "memory_bytes": 8 << 30, "models": ["tiny"], "labels": ["site=berlin"]}


@pytest.fixture
def scheduler(harness: WorkerHarness) -> QueueScheduler:
    settings = harness.resources.settings
    settings.give_way, settings.give_way_after_seconds = True, 0.0
    return QueueScheduler(harness.resources)


def register_worker(harness: WorkerHarness, name: str = OWNER, **about: object) -> None:
    with transaction(harness.sessions) as session:
        workers.heartbeat(session, name, "gpu", "test", 1, DESCRIPTION | about)


def update_job(harness: WorkerHarness, job: Job, **columns: object) -> None:
    with transaction(harness.sessions) as session:
        session.execute(update(Job).where(Job.id == job.id).values(**columns))


def queue_position(harness: WorkerHarness, job: Job) -> QueuePlace:
    with transaction(harness.sessions) as session:
        return session.get_one(QueuePlace, job.id)


class TestPreemption:
    def test_a_long_job_is_preempted_at_a_step_and_resumes_there(
        self, harness: WorkerHarness, scheduler: QueueScheduler, step_log: StepLog
    ) -> None:
        long = harness.create_queued_job()
        register_worker(harness)
        thread = harness.start_next_job(slow(step_log, steps=150, step_seconds=0.1, eta_seconds=3600.0))
        until(lambda: harness.has_reached(long, 3), "some steps")
        urgent = harness.create_queued_job()
        update_job(harness, urgent, urgent=True)
        until(lambda: scheduler.refresh() or harness.job(long).state == "queued", "a preemption")
        thread.join(10)

        preempted = harness.job(long)
        assert (preempted.reason, preempted.desired, preempted.yield_requested_at) == ("gave_way", "run", None)
        assert (preempted.times_yielded, preempted.crash_streak) == (1, 0)
        *_, requested, stopped = [event for event in harness.events(long) if event.type == "message"]
        assert urgent.id in requested.message
        assert requested.data == {"reason": "gave_way", "urgent_job": urgent.id}
        assert stopped.data["reason"] == "gave_way"

        harness.run_next_job(TrainerPlan(steps=2))
        assert (harness.job(urgent).state, harness.job(long).state) == ("succeeded", "queued")
        harness.run_next_job(slow(step_log, steps=150, step_seconds=0.0))
        assert harness.job(long).state == "succeeded"
        first, second = step_log.steps().values()
        assert first + second == list(range(1, 151))

    @pytest.mark.parametrize("give_way", [True, False], ids=["an urgent job that is not due", "the setting is off"])
    def test_no_job_is_preempted(self, harness: WorkerHarness, scheduler: QueueScheduler, give_way: bool) -> None:
        harness.resources.settings.give_way = give_way
        later = {"run_after": func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 1)} if give_way else {}
        long = self.running(harness, **later)
        scheduler.refresh()
        assert harness.job(long).yield_requested_at is None

    def test_the_preemption_request_ends_with_the_attempt_and_keeps_desired(
        self, harness: WorkerHarness, scheduler: QueueScheduler
    ) -> None:
        long = self.running(harness)
        scheduler.refresh()
        requested = harness.job(long)
        assert (requested.yield_requested_at is not None, requested.desired, requested.state) == (
            True,
            "run",
            "running",
        )
        scheduler.refresh()
        assert sum("preempts this job" in message for message in harness.messages(long)) == 1
        harness.cancel(long)
        assert harness.job(long).yield_requested_at is None

    @pytest.mark.parametrize(("needed_gb", "is_preempted"), [(5, True), (15, False)])
    def test_an_urgent_job_preempts_a_slot_only_if_it_fits_there(
        self, harness: WorkerHarness, scheduler: QueueScheduler, needed_gb: int, is_preempted: bool
    ) -> None:
        about = {"kind": "cuda", "memory_bytes": 24 * 10**9, "slots_per_gpu": 2, "gpu_uuids": ["GPU-1"]}
        jobs = [harness.create_queued_job() for _ in range(2)]
        for number, job in enumerate(jobs):
            update_job(harness, job, needed_cuda_bytes=5 * 10**9)
            register_worker(harness, f"gpu{number}", **about)
            with transaction(harness.sessions) as session:
                assert claims.claim(session, "train", f"gpu{number}", 60, worker_capacity(DESCRIPTION | about))
            update_job(harness, job, phase="training", planned_seconds=36_000.0)
        urgent = harness.create_queued_job()
        update_job(harness, urgent, urgent=True, needed_cuda_bytes=needed_gb * 10**9)
        scheduler.refresh()
        requests = [harness.job(job).yield_requested_at for job in jobs]
        assert sum(request is not None for request in requests) == is_preempted
        assert ("a whole GPU" in (queue_position(harness, urgent).waiting_for or "")) is not is_preempted

    def test_the_event_does_not_name_an_urgent_job_of_another_project(
        self, harness: WorkerHarness, scheduler: QueueScheduler, reviewed: Reviewed
    ) -> None:
        long = self.running(harness, priority=-1)
        with transaction(harness.sessions) as session:
            session.execute(update(Job).where(Job.urgent).values(urgent=False))
            other = make_project(session, "other")
            job = make_job(session, other, make_file(session, harness.resources.storage, other))
            validate_job(session)
            session.execute(update(Job).where(Job.id == job.id).values(urgent=True))
        scheduler.refresh()
        event = harness.events(long)[-1]
        reviewed(event.message)
        assert event.data == {"reason": "gave_way", "urgent_job": None}

    def running(self, harness: WorkerHarness, **of_urgent: object) -> Job:
        """A long job that trains, and an urgent one that is queued."""
        long = harness.create_queued_job()
        harness.claim()
        update_job(harness, long, phase="training", planned_seconds=36_000.0)
        update_job(harness, harness.create_queued_job(), urgent=True, **of_urgent)
        register_worker(harness)
        return long


class TestQueuePositions:
    def test_each_queued_job_has_a_position_and_an_estimated_start(
        self, harness: WorkerHarness, scheduler: QueueScheduler
    ) -> None:
        first, second = harness.create_queued_job(), harness.create_queued_job()
        update_job(harness, first, planned_seconds=3600.0)
        register_worker(harness)
        scheduler.refresh()
        assert [queue_position(harness, job).position for job in (first, second)] == [1, 2]
        starts = [queue_position(harness, job).expected_start_at for job in (first, second)]
        assert starts[0] is not None
        assert starts[1] is not None
        assert (starts[1] - starts[0]).total_seconds() == pytest.approx(3600, abs=60)
        harness.claim()
        scheduler.refresh()
        assert queue_position(harness, second).position == 1

    def test_a_job_that_no_worker_can_run_has_one_event_and_another_when_one_can(
        self, harness: WorkerHarness, scheduler: QueueScheduler, reviewed: Reviewed
    ) -> None:
        job = harness.create_queued_job()
        update_job(harness, job, worker_labels=["site=rome"])
        register_worker(harness)
        scheduler.refresh()
        assert "site=rome" in (queue_position(harness, job).waiting_for or "")
        assert not any("site=rome" in message for message in harness.messages(job))
        with transaction(harness.sessions) as session:
            session.execute(text("UPDATE queue_places SET waiting_since = waiting_since - interval '61 seconds'"))
        scheduler.refresh()
        scheduler.refresh()
        assert sum("site=rome" in message for message in harness.messages(job)) == 1
        assert harness.job(job).state == "queued"
        register_worker(harness, labels=["site=rome"])
        scheduler.refresh()
        assert queue_position(harness, job).waiting_for is None
        reviewed(harness.messages(job)[-1])
