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
from tests.worker import worker_process
from tests.worker.fake_trainer import Plan
from tests.worker.jobs.test_interruptions import slow
from tests.worker.worker_harness import Bench, Witness, is_alive

Start = Callable[..., subprocess.Popen[bytes]]
ROOT = Path(__file__).resolve().parents[2]
QUIET = ("--without-gossip", "--without-mingle", "-l", "INFO")


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(plan: Plan = Plan(), queue: str = "gpu", **changed: object) -> subprocess.Popen[bytes]:  # noqa: B008
        process = worker_process.start(settings.model_copy(update=changed), plan.command(), queue, f"{queue}0")
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    for log in tmp_path.glob("*.log"):
        print(log.read_text())


def test_a_job_is_validated_and_trained_by_hints_alone(bench: Bench, start: Start) -> None:
    start(queue="cpu", poll_seconds=60.0)
    start(Plan(steps=3), queue="gpu", poll_seconds=60.0)
    bench.until(lambda: len(alive(bench)) == 2, "the workers")
    job = bench.created()
    assert WorkerNotifier(bench.resources.settings.redis_url).send("cpu")
    bench.until(lambda: bench.job(job).state == "succeeded", "the success")


def test_without_redis_the_workers_find_the_job_themselves(bench: Bench, start: Start) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    cpu = start(queue="cpu", redis_url=nowhere)
    gpu = start(Plan(steps=3), queue="gpu", redis_url=nowhere)
    job = bench.created()
    bench.until(lambda: bench.job(job).state == "succeeded", "the success")
    for process in (cpu, gpu):
        process.terminate()
        assert process.wait(10) == 0


def test_a_killed_worker_takes_its_trainer_along_and_its_successor_goes_on(
    bench: Bench, start: Start, witness: Witness
) -> None:
    job = bench.queued()
    plan = slow(witness, steps=60, snapshot_every=5)
    worker = start(plan)
    trainer = witness.pid()
    bench.until(lambda: bench.has_reached(job, 11), "a snapshot")
    worker.kill()
    bench.until(lambda: not is_alive(trainer), "the trainer's end")
    start(plan)
    bench.until(lambda: bench.job(job).state == "succeeded", "the success")
    done = bench.job(job)
    assert (done.train_attempts, done.crash_streak) == (2, 0)
    assert any(message.startswith("The worker gpu0@test#") for message in bench.messages(job))
    assert [row["step"] for row in bench.metrics(job)] == list(range(1, 61))
    assert witness.steps()["3"][0] > 5


def test_sigterm_drains_and_ends_with_zero(bench: Bench, start: Start, witness: Witness) -> None:
    job = bench.queued()
    plan = slow(witness)
    worker = start(plan)
    trainer = witness.pid()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    assert not is_alive(trainer)
    drained = bench.job(job)
    assert (drained.state, drained.reason, drained.crash_streak) == ("queued", "drained", 0)
    assert alive(bench) == []


def test_an_idle_worker_leaves_at_once_and_takes_its_row_away(bench: Bench, start: Start) -> None:
    worker = start(poll_seconds=60.0)
    bench.until(lambda: alive(bench), "the worker's row")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert alive(bench) == []


def test_a_workers_row_says_where_it_runs(bench: Bench, start: Start) -> None:
    worker = start()
    with transaction(bench.sessions) as session:
        (row,) = bench.until(lambda: workers.alive(session), "the worker's row")
    assert (row.queue, row.pid) == ("gpu", worker.pid)
    assert row.id.startswith("gpu0@test#")
    assert row.about["device"]
    assert row.about["versions"]["celery"]


def test_a_stopped_worker_that_wakes_up_fenced_changes_nothing(bench: Bench, start: Start, witness: Witness) -> None:
    """SIGSTOP for longer than the lease: the job goes on elsewhere, and the sleeper finds that out when it wakes."""
    job = bench.queued()
    plan = slow(witness)
    sleeper = start(plan, lease_ttl_seconds=1.0, self_fence_seconds=0.6, self_fence_kill_seconds=0.8)
    trainer = witness.pid()
    os.kill(sleeper.pid, signal.SIGSTOP)
    bench.until(lambda: bench.reap(), "the end of the lease")
    bench.claim("gpu1@elsewhere#1")
    told = len(bench.events(job))
    os.kill(sleeper.pid, signal.SIGCONT)
    bench.until(lambda: not is_alive(trainer), "the trainer's end")
    assert len(bench.events(job)) == told
    assert bench.job(job).lease_owner == "gpu1@elsewhere#1"


def test_the_documented_command_starts_a_worker(bench: Bench, settings: Settings) -> None:
    pool = ["-P", "threads", "-c", "1", "-Q", "cpu", "-n", "cpu0@%h"]
    command = ["-m", "celery", "-A", "worker.celery_app", "worker", *pool, *QUIET]
    worker = run(settings, *command)
    try:
        job = bench.created()
        bench.until(lambda: bench.job(job).state == "queued", "the validation")
        assert run(settings, "-m", "worker.health", "cpu").wait(10) == 0
        assert run(settings, "-m", "worker.health", "gpu").wait(10) == 1
    finally:
        worker.terminate()
        assert worker.wait(15) == 0


def test_the_reconciler_takes_a_lost_job_back_and_ends_with_zero(bench: Bench, settings: Settings) -> None:
    job = bench.queued()
    bench.claim("gpu0@dead#1", ttl_seconds=0.1)
    reconciler = run(settings, "-m", "worker.reconciler")
    try:
        bench.until(lambda: bench.job(job).state == "queued", "the reaping")
        assert run(settings, "-m", "worker.health", "reconciler").wait(10) == 0
    finally:
        reconciler.terminate()
        assert reconciler.wait(10) == 0


def run(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    """As in production: by its module's name, with settings from the environment."""
    ours = {
        f"TUNERY_{name.upper()}": str(getattr(settings, name))
        for name in ("data_dir", "poll_seconds", "lease_ttl_seconds", "reap_grace_seconds", "reconcile_seconds")
    }
    urls = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    log = (settings.data_dir.parent / "run.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | urls | ours, stdout=log, stderr=log
        )


def alive(bench: Bench) -> list[str]:
    with transaction(bench.sessions) as session:
        return [worker.id for worker in workers.alive(session)]
