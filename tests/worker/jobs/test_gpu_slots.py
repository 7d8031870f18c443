"""Two slots of one fake card: budgets reach the trainers, and one that runs out of memory leaves the other running."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sqlalchemy import update

from app.db.engine import transaction
from app.db.tables import Job
from app.domain.scheduling.worker_capacity import WorkerCapacity
from tests.deadline import until
from tests.sentences import Reviewed
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.supervisor import JobSupervisor

GB = 10**9
SLOT = WorkerCapacity("cuda", 24 * GB, frozenset({"tiny"}), slots_per_gpu=2, gpu_uuids=("GPU-1",))


def supervisor(
    harness: WorkerHarness, tmp_path: Path, name: str, plan: TrainerPlan, capacity: WorkerCapacity = SLOT
) -> JobSupervisor:
    lock, owner = tmp_path / f"{name}.lock", f"{name}@test#1"
    return JobSupervisor(harness.resources, owner, lock, plan.command(), lambda: capacity)


def create_job(harness: WorkerHarness, needed_bytes: int) -> Job:
    job = harness.create_queued_job()
    with transaction(harness.sessions) as session:
        session.execute(update(Job).where(Job.id == job.id).values(needed_cuda_bytes=needed_bytes))
    return job


def test_out_of_memory_in_one_slot_leaves_the_other_running(
    harness: WorkerHarness, tmp_path: Path, reviewed: Reviewed
) -> None:
    first = create_job(harness, 5 * GB)
    go_on = tmp_path / "go on"
    waiting = supervisor(harness, tmp_path, "gpu0", TrainerPlan(steps=2, wait_for=str(go_on)))
    thread = harness.start_supervisor(waiting)
    until(lambda: harness.job(first).phase == "training", "the first job")

    second = create_job(harness, 5 * GB)
    short = TrainerPlan(steps=2, faults={"*": {"1": "failed:out_of_memory:71"}})
    assert supervisor(harness, tmp_path, "gpu1", short).run_next()
    ended = harness.job(second)
    assert (ended.state, ended.reason, ended.crash_streak) == ("queued", "slot_too_small", 0)
    assert ended.needed_cuda_bytes == SLOT.slot_bytes
    reviewed(harness.messages(second)[-1])
    assert harness.job(first).state == "running"

    assert not supervisor(harness, tmp_path, "gpu1", TrainerPlan(steps=2)).run_next()  # the GPU is not free as a whole
    go_on.touch()
    thread.join(30)
    assert harness.job(first).state == "succeeded"
    assert supervisor(harness, tmp_path, "gpu1", TrainerPlan(steps=2)).run_next()
    assert harness.job(second).state == "succeeded"
    assert [attempt.gpu_share for attempt in harness.attempts(second) if attempt.kind == "train"] == [0.5, 1.0]


def test_out_of_memory_on_a_whole_gpu_fails_the_job(harness: WorkerHarness, tmp_path: Path) -> None:
    job = create_job(harness, 15 * GB)
    short = TrainerPlan(steps=2, faults={"*": {"1": "failed:out_of_memory:71"}})
    assert supervisor(harness, tmp_path, "gpu0", short).run_next()
    assert (harness.job(job).state, harness.job(job).reason) == ("failed", "out_of_memory")


def test_the_trainer_gets_the_budget_of_its_slot(harness: WorkerHarness, tmp_path: Path) -> None:
    budgets = []
    for needed_bytes, capacity in ((5 * GB, SLOT), (15 * GB, SLOT), (5 * GB, replace(SLOT, slots_per_gpu=1))):
        job = create_job(harness, needed_bytes)
        waiting = supervisor(harness, tmp_path, "gpu0", TrainerPlan(steps=1, wait_for=str(tmp_path / job.id)), capacity)
        thread = harness.start_supervisor(waiting)
        until(lambda job=job: harness.job(job).phase == "training", "the trainer")
        (spec,) = (harness.resources.settings.work_dir / job.id).glob("*/spec.json")
        budgets.append(json.loads(spec.read_text())["memory_budget_bytes"])
        (tmp_path / job.id).touch()
        thread.join(30)
    assert budgets == [SLOT.slot_bytes, None, None]
