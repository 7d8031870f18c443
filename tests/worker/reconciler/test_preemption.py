"""Preemption with a worker process, the real trainer, a reconciler, and an urgent job that arrives later.

tests/worker/jobs/test_real_trainer.py has the shorter version: a drained job gives the same adapter.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from app.db.engine import transaction
from app.db.tables import Attempt, Job
from app.domain.jobs.states import TERMINAL
from app.domain.scheduling import preemption
from tests.deadline import until
from tests.factories import chat_lines
from tests.worker import worker_process
from tests.worker.jobs.test_real_trainer import allow_slow_training, weights_of
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.trainer_process import TRAINER_COMMAND
from worker.reconciler.reconciler import Reconciler
from worker.validation import Validator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STEPS = 240  # many, so that a request at step 3 comes before the end: 60 steps took a second on a fast machine
LONG = {"hyperparameters": {"n_epochs": 2, "batch_size": 1}, "lora": {"r": 4}, "quantization": None}
SHORT = {"hyperparameters": {"max_steps": 2}, "lora": {"r": 4}, "quantization": None}
TIMEOUT_SECONDS = 150.0


@pytest.fixture
def service(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WorkerHarness]:
    """One GPU slot in a process of its own, and a reconciler that may preempt a job at any time."""
    allow_slow_training(harness)
    settings = harness.resources.settings
    settings.give_way, settings.give_way_after_seconds, settings.stop_grace_seconds = True, 0.0, TIMEOUT_SECONDS
    monkeypatch.setattr(preemption, "ENDS_SOON_SECONDS", 0.0)  # a tiny model trains for seconds
    reconciler = threading.Thread(target=Reconciler(harness.resources).run)
    harness.threads.append(reconciler)
    worker = worker_process.start(settings, TRAINER_COMMAND, "gpu", "gpu0")
    reconciler.start()
    yield harness
    worker.kill()
    worker.wait()
    print((tmp_path / "gpu0.log").read_text())


def test_a_preempted_job_gives_the_same_adapter_as_an_uninterrupted_one(service: WorkerHarness) -> None:
    uninterrupted, long = (service.create_job(chat_lines(STEPS // 2), body=LONG, suffix="demo") for _ in range(2))
    urgent = service.create_job(body=SHORT)
    validate_all(service)
    service.pause(urgent)  # it is resumed below
    with transaction(service.sessions) as session:
        session.execute(update(Job).where(Job.id == urgent.id).values(urgent=True))
    until(lambda: service.has_reached(long, 3), "a third step", TIMEOUT_SECONDS)
    service.resume(urgent)
    jobs = (uninterrupted, long, urgent)
    until(lambda: all(service.job(job).state in TERMINAL for job in jobs), "three ends", TIMEOUT_SECONDS)

    for job in jobs:
        assert service.job(job).state == "succeeded", service.messages(job)
    preempted = service.job(long)
    assert (preempted.times_yielded, preempted.desired, preempted.crash_streak) == (1, "run", 0)
    (first, second), (between,) = trainings(service, long), trainings(service, urgent)
    assert (first.reason, second.reason) == ("gave_way", "done")
    assert first.ended_at is not None
    assert between.ended_at is not None
    assert first.ended_at <= between.started_at <= between.ended_at <= second.started_at
    steps = [event.data["step"] for event in service.events(long) if event.type == "metrics"]
    assert steps == list(range(1, STEPS + 1))
    assert weights_of(service, long) == weights_of(service, uninterrupted)


def validate_all(service: WorkerHarness) -> None:
    validator = Validator(service.resources, "cpu0@test#1")
    while validator.run_next():
        pass


def trainings(service: WorkerHarness, job: Job) -> list[Attempt]:
    return [attempt for attempt in service.attempts(job) if attempt.kind == "train"]
