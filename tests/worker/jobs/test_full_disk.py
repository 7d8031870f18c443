"""A disk that other programs fill during a training: no step is lost, and the job succeeds when there is space.

With real file systems, once with work directories and storage on one, once on two.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, update

from app.db.engine import transaction
from app.db.tables import Job
from app.settings import Settings
from tests.deadline import until
from tests.factories import chat_lines
from tests.full_disk import SmallDisk, small_disk
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.jobs.test_real_trainer import allow_slow_training, train, weights_of
from tests.worker.worker_harness import OWNER, StepLog, WorkerHarness
from worker.jobs.supervisor import JobSupervisor
from worker.node import disk_space
from worker.reconciler import cleanup
from worker.validation import Validator

MB = 1_000_000
STATE_BYTES = MB // 2  # with its directory, less than the space reserved for a job on the tiny model


@pytest.fixture(params=["one file system", "storage on its own"])
def disk(request: pytest.FixtureRequest, settings: Settings) -> Iterator[SmallDisk]:
    """Request it before `harness`, which opens the storage there."""
    path = settings.data_dir if request.param == "one file system" else settings.storage_dir
    with small_disk(path, 40 * MB) as disk:
        yield disk


@pytest.fixture
def storage_disk(settings: Settings) -> Iterator[SmallDisk]:
    with small_disk(settings.storage_dir, 40 * MB) as disk:
        yield disk


def plan_of(step_log: StepLog, go: Path, **more: Any) -> TrainerPlan:
    """A plan that waits for `go` before its first step; its last snapshot fits into the reserved space, its result
    not."""
    sizes = {"state_bytes": STATE_BYTES, "weights_bytes": MB}
    defaults: dict[str, Any] = {"steps": 4, "step_log": str(step_log.path), "wait_for": str(go), "last_snapshot": True}
    return TrainerPlan(**(defaults | sizes | more))


def train_while_full(harness: WorkerHarness, disk: SmallDisk, job: Job, plan: TrainerPlan) -> None:
    """Run the job, and fill the disk after the attempt has started and before the first step."""
    thread = harness.start_next_job(plan)
    until(lambda: harness.job(job).phase == "training", "the start")
    disk.fill()
    assert plan.wait_for is not None
    Path(plan.wait_for).touch()
    thread.join(30)
    assert not thread.is_alive()


def end_the_pause(harness: WorkerHarness, job: Job) -> None:
    with transaction(harness.sessions) as session:
        session.execute(update(Job).where(Job.id == job.id).values(run_after=func.clock_timestamp()))


class TestFullAtTheLastStep:
    def test_the_job_waits_for_storage_and_no_step_is_repeated(
        self, disk: SmallDisk, harness: WorkerHarness, step_log: StepLog, tmp_path: Path
    ) -> None:
        job, plan = harness.create_queued_job(), plan_of(step_log, tmp_path / "go")
        train_while_full(harness, disk, job, plan)

        waiting = harness.job(job)
        assert (waiting.state, waiting.phase, waiting.reason) == ("queued", "waiting_for_storage", "storage_full")
        assert (waiting.crash_streak, waiting.lease_owner, waiting.error_code) == (0, None, None)
        (snapshot,) = harness.snapshots(job)
        assert snapshot.step == 4
        event = harness.events(job)[-1]
        assert event.level == "warn"
        assert event.data["needed_bytes"] > event.data["free_bytes"] >= 0
        assert harness.run_next_job(plan) is False  # the GPU is free for other jobs

        disk.empty()
        end_the_pause(harness, job)
        assert harness.run_next_job(plan)
        done = harness.job(job)
        assert (done.state, done.phase) == ("succeeded", None)
        assert step_log.all_steps() == [1, 2, 3, 4]
        assert [row["step"] for row in harness.metrics(job)] == [1, 2, 3, 4]
        assert harness.snapshots(job) == []
        assert list(harness.resources.storage.staging.iterdir()) == []

    def test_a_shutdown_on_a_full_disk_keeps_the_last_step(
        self, disk: SmallDisk, harness: WorkerHarness, step_log: StepLog, tmp_path: Path
    ) -> None:
        job = harness.create_queued_job()
        plan = plan_of(step_log, tmp_path / "go", steps=1000, step_seconds=0.02, weights_bytes=0)
        thread = harness.start_next_job(plan)
        until(lambda: harness.job(job).phase == "training", "the start")
        disk.fill()
        (tmp_path / "go").touch()
        until(lambda: harness.has_reached(job, 2), "a step")
        harness.resources.stop.set()
        thread.join(30)
        drained = harness.job(job)
        assert (drained.state, drained.reason) == ("queued", "drained")
        assert harness.snapshots(job)[0].step == step_log.all_steps()[-1]


class TestFullAtTheStart:
    def test_the_job_waits_and_does_not_start(
        self, disk: SmallDisk, harness: WorkerHarness, step_log: StepLog, tmp_path: Path
    ) -> None:
        job = harness.create_queued_job()
        disk.fill()
        harness.run_next_job(plan_of(step_log, tmp_path / "go"))
        waiting = harness.job(job)
        assert (waiting.state, waiting.phase, waiting.crash_streak) == ("queued", "waiting_for_storage", 0)
        end_the_pause(harness, job)
        harness.run_next_job(TrainerPlan(faults={"*": {"SIGTERM": "a crash", "1": "exit:70"}}))
        assert (harness.job(job).phase, harness.job(job).crash_streak) == ("waiting_for_storage", 0)
        assert step_log.all_steps() == []
        disk.empty()
        end_the_pause(harness, job)
        (tmp_path / "go").touch()
        harness.run_next_job(plan_of(step_log, tmp_path / "go"))
        assert harness.job(job).state == "succeeded"

    def test_space_reserved_by_a_killed_worker_is_released(
        self, storage_disk: SmallDisk, harness: WorkerHarness
    ) -> None:
        job = harness.create_queued_job()
        claimed = harness.claim()
        held = disk_space.storage_reserve_path(harness.resources, job.id, claimed.attempt)
        left = disk_space.storage_reserve_path(harness.resources, job.id, claimed.attempt - 1)
        for path in (held, left):
            disk_space.allocate(path, MB)
        cleanup.delete_staged_files(harness.resources.storage.staging)
        cleanup.delete_reserved_space(harness.resources)
        assert held.exists()
        assert not left.exists()


@pytest.mark.timeout(400)
@pytest.mark.extended("real trainers on a full disk; the tests above have a fake one")
class TestRealTrainer:
    """The adapter is bit for bit that of a job without a full disk, and no step has two events."""

    @pytest.mark.parametrize(
        "disk", ["one file system", pytest.param("storage on its own", marks=pytest.mark.slow)], indirect=True
    )
    def test_a_real_trainer_resumes_after_a_disk_full_at_the_last_step(
        self, disk: SmallDisk, harness: WorkerHarness
    ) -> None:
        """With r = 4 the result would fit into the reserved space, next to the snapshot."""
        body = {"hyperparameters": {"n_epochs": 1, "batch_size": 1}, "lora": {"r": 32}}
        allow_slow_training(harness)
        harness.resources.settings.snapshot_interval_seconds = 3600
        uninterrupted, filled = (harness.create_job(chat_lines(120), body=body) for _ in range(2))
        while Validator(harness.resources, "cpu0@test#1").run_next():
            pass
        train(harness)

        thread = harness.start_supervisor(JobSupervisor(harness.resources, OWNER, harness.trainer_lock))
        attempt = harness.resources.settings.work_dir / filled.id / "attempt-2"
        first = attempt / "runs" / filled.id / "snapshots" / "step-000000"
        until(first.exists, "the snapshot before the first step", 100)  # on disk: rows come later than steps
        disk.fill()
        thread.join(150)
        waiting = harness.job(filled)
        assert (waiting.state, waiting.phase) == ("queued", "waiting_for_storage"), harness.messages(filled)
        assert harness.snapshots(filled)[0].step == 120

        disk.empty()
        end_the_pause(harness, filled)
        train(harness)
        for job in (uninterrupted, filled):
            done = harness.job(job)
            assert done.state == "succeeded", harness.messages(job)
            steps = [event.data["step"] for event in harness.events(job) if event.type == "metrics"]
            assert done.progress is not None
            assert steps == list(range(1, done.progress["total_steps"] + 1))
        assert weights_of(harness, uninterrupted) == weights_of(harness, filled)
