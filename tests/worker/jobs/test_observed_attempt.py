"""Attempts in the metrics, and the ids of the job in every log line of its attempt, from all threads."""

from __future__ import annotations

import pytest
import structlog
from prometheus_client import REGISTRY

from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def test_an_attempt_is_counted_when_it_begins_and_with_its_reason_when_it_ends(harness: WorkerHarness) -> None:
    claims, done = (
        value("tunery_claims_total", kind="train"),
        value("tunery_attempts_ended_total", kind="train", reason="done"),
    )
    tokens, steps = value("tunery_trained_tokens_total"), value("tunery_trained_steps_total")
    harness.create_queued_job()
    harness.run_next_job(TrainerPlan(steps=3))
    assert value("tunery_claims_total", kind="train") == claims + 1
    assert value("tunery_attempts_ended_total", kind="train", reason="done") == done + 1
    assert value("tunery_attempts_running", kind="train") == 0
    assert value("tunery_trained_steps_total") == steps + 3
    assert value("tunery_trained_tokens_total") > tokens
    assert value("tunery_training_tokens_per_second") == 0


def test_a_failed_attempt_is_counted_with_its_reason(harness: WorkerHarness) -> None:
    before = value("tunery_attempts_ended_total", kind="train", reason="trainer_crashed")
    harness.create_queued_job()
    harness.run_next_job(TrainerPlan(steps=3, faults={"*": {"2": "signal:SIGSEGV"}}))
    assert value("tunery_attempts_ended_total", kind="train", reason="trainer_crashed") == before + 1


def test_the_threads_of_an_attempt_log_with_the_ids_of_its_job(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.create_queued_job()
    seen: list[dict[str, object]] = []

    def poll(keeper: object) -> None:
        seen.append(structlog.contextvars.get_contextvars())

    monkeypatch.setattr("worker.jobs.lease.LeaseKeeper._poll", poll)
    harness.run_next_job(TrainerPlan(steps=3))
    assert seen
    assert all((each["job"], each["attempt"]) == (job.id, 2) for each in seen)
