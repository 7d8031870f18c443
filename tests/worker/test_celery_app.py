"""The worker as it runs in production: Celery, its signals, real processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.db.engine import transaction
from app.db.scheduling import workers
from app.job_queue import WorkerNotifier
from app.settings import Settings
from tests.deadline import until
from tests.processes import is_alive
from tests.worker import worker_process
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.jobs.test_interruptions import slow
from tests.worker.worker_harness import StepLog, WorkerHarness

Start = Callable[..., subprocess.Popen[bytes]]
ROOT = Path(__file__).resolve().parents[2]
QUIET = ("--without-gossip", "--without-mingle", "-l", "INFO")


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(plan: TrainerPlan = TrainerPlan(), queue: str = "gpu", **changed: object) -> subprocess.Popen[bytes]:  # noqa: B008
        process = worker_process.start(settings.model_copy(update=changed), plan.command(), queue, f"{queue}0")
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    for log in tmp_path.glob("*.log"):
        print(log.read_text())


def test_hints_alone_validate_and_train_a_job(harness: WorkerHarness, start: Start) -> None:
    start(queue="cpu", poll_seconds=60.0)
    gpu = start(TrainerPlan(steps=3), queue="gpu", poll_seconds=60.0)
    until(lambda: len(alive(harness)) == 2, "the workers")
    with transaction(harness.sessions) as session:
        row = next(each for each in workers.alive(session) if each.queue == "gpu")
    assert (row.pid, row.id.startswith("gpu0@test#")) == (gpu.pid, True)
    assert row.about["device"]
    assert row.about["versions"]["celery"]
    job = harness.create_job()
    assert WorkerNotifier(harness.resources.settings.redis_url).send("cpu")
    until(lambda: harness.job(job).state == "succeeded", "the success")


@pytest.mark.extended("another start of the real worker")
def test_without_redis_the_workers_poll(harness: WorkerHarness, start: Start) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    cpu = start(queue="cpu", redis_url=nowhere)
    gpu = start(TrainerPlan(steps=3), queue="gpu", redis_url=nowhere)
    job = harness.create_job()
    until(lambda: harness.job(job).state == "succeeded", "the success")
    for process in (cpu, gpu):
        process.terminate()
        assert process.wait(10) == 0


def test_a_killed_workers_trainer_dies_and_a_restarted_worker_resumes_the_job(
    harness: WorkerHarness, start: Start, step_log: StepLog
) -> None:
    job = harness.create_queued_job()
    plan = slow(step_log, steps=60, snapshot_every=5)
    worker = start(plan)
    trainer = step_log.pid()
    until(lambda: harness.has_reached(job, 11), "a snapshot")
    worker.kill()
    until(lambda: not is_alive(trainer), "the trainer's end")
    start(plan)
    until(lambda: harness.job(job).state == "succeeded", "the success")
    done = harness.job(job)
    assert (done.train_attempts, done.crash_streak) == (2, 0)
    assert any(message.startswith("The worker gpu0@test#") for message in harness.messages(job))
    assert [row["step"] for row in harness.metrics(job)] == list(range(1, 61))
    assert step_log.steps()["3"][0] > 5


def test_sigterm_drains_and_exits_with_zero(harness: WorkerHarness, start: Start, step_log: StepLog) -> None:
    job = harness.create_queued_job()
    plan = slow(step_log)
    worker = start(plan)
    trainer = step_log.pid()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    assert not is_alive(trainer)
    drained = harness.job(job)
    assert (drained.state, drained.reason, drained.crash_streak) == ("queued", "drained", 0)
    assert alive(harness) == []


def test_a_suspended_worker_that_resumes_fenced_changes_nothing(
    harness: WorkerHarness, start: Start, step_log: StepLog
) -> None:
    """SIGSTOP for longer than the lease: another worker runs the job, and the suspended one is fenced when it
    resumes."""
    job = harness.create_queued_job()
    plan = slow(step_log)
    sleeper = start(plan, lease_ttl_seconds=1.0, self_fence_seconds=0.6, self_fence_kill_seconds=0.8)
    trainer = step_log.pid()
    os.kill(sleeper.pid, signal.SIGSTOP)
    # A transaction in which the process was stopped keeps its row locked until PostgreSQL ends it, after 20 s.
    until(lambda: harness.reap_expired(), "the end of the lease", 90)
    harness.claim("gpu1@elsewhere#1")
    event_count = len(harness.events(job))
    os.kill(sleeper.pid, signal.SIGCONT)
    until(lambda: not is_alive(trainer), "the trainer's end")
    assert len(harness.events(job)) == event_count
    assert harness.job(job).lease_owner == "gpu1@elsewhere#1"


def test_the_documented_command_starts_a_worker(harness: WorkerHarness, settings: Settings) -> None:
    pool = ["-P", "threads", "-c", "1", "-Q", "cpu", "-n", "cpu0@%h"]
    command = ["-m", "celery", "-A", "worker.celery_app", "worker", *pool, *QUIET]
    worker = run(settings, *command)
    try:
        job = harness.create_job()
        until(lambda: harness.job(job).state == "queued", "the validation")
        assert run(settings, "-m", "worker.health", "cpu").wait(10) == 0
        assert run(settings, "-m", "worker.health", "gpu").wait(10) == 1
    finally:
        worker.terminate()
        assert worker.wait(15) == 0


def test_the_reconciler_requeues_a_lost_job_and_exits_with_zero(harness: WorkerHarness, settings: Settings) -> None:
    job = harness.create_queued_job()
    harness.claim("gpu0@dead#1", ttl_seconds=0.1)
    reconciler = run(settings, "-m", "worker.reconciler")
    try:
        until(lambda: harness.job(job).state == "queued", "the reaping")
        assert run(settings, "-m", "worker.health", "reconciler").wait(10) == 0
    finally:
        reconciler.terminate()
        assert reconciler.wait(10) == 0


def run(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a module as in production, with settings from the environment."""
    settings_variables = {
        f"TUNERY_{name.upper()}": str(getattr(settings, name))
        for name in ("data_dir", "poll_seconds", "lease_ttl_seconds", "reap_grace_seconds", "reconcile_seconds")
    }
    urls = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    log = (settings.data_dir.parent / "run.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | urls | settings_variables, stdout=log, stderr=log
        )


def alive(harness: WorkerHarness) -> list[str]:
    with transaction(harness.sessions) as session:
        return [worker.id for worker in workers.alive(session)]
