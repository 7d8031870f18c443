"""A job's state in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.openapi.examples.all_operations import FINISHED_JOB, NEW_JOB
from app.web.pages.jobs import wording
from app.web.pages.jobs.actions import ACTIONS

RUNNING = NEW_JOB | {
    "status": "running",
    "phase": "training",
    "started_at": 1_000,
    "trained_steps": 30,
    "total_steps": 90,
    "estimated_finish": 1_220,
}


def test_every_status_has_a_label_and_a_sentence() -> None:
    for status in wording.LABELS:
        job = NEW_JOB | {"status": status}
        assert wording.label(job)
        assert wording.sentence(job)


def test_a_job_that_will_pause_says_so_until_it_is_paused() -> None:
    pausing = RUNNING | {"pause_requested": True}
    assert wording.label(pausing) == "Pausing"
    assert wording.sentence(pausing) == "Pausing: the trainer finishes its current step and saves a checkpoint."
    assert [action.name for action in ACTIONS if action.is_offered(pausing)] == ["cancel"]
    assert [action.name for action in ACTIONS if action.is_offered(RUNNING)] == ["pause", "cancel"]


def test_a_running_job_has_its_step_and_the_remaining_time() -> None:
    assert wording.sentence(RUNNING, now=1_100) == "Training: step 30 of 90 steps. About 2 min remain."
    assert wording.elapsed_seconds(RUNNING, now=1_100) == 100
    assert wording.fraction_done(RUNNING) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"queue_position": 3, "expected_start": 1_720}, "Position 3 in the queue, starts in about 10 min."),
        ({"queue_position": 1}, "Next in the queue."),
        (
            {"queue_position": 1, "waiting_for": "No worker has the label a100."},
            "Next in the queue. No worker has the label a100.",
        ),
        ({"waiting_for": "No worker has the label a100."}, "No worker has the label a100."),
        ({"phase": "waiting_for_storage"}, "Waits for disk space; it is retried automatically."),
        ({}, "Waits for a worker."),
    ],
)
def test_a_queued_job_says_what_it_waits_for(changes: dict[str, Any], text: str) -> None:
    assert wording.waiting(NEW_JOB | {"status": "queued"} | changes, now=1_120) == text


def test_a_finished_job_has_steps_tokens_time_and_size() -> None:
    assert wording.sentence(FINISHED_JOB) == "Trained 90 steps on 51,840 tokens in 2 min. The adapter has 9.8 MB."


def test_a_failed_job_has_its_reason_in_a_few_words() -> None:
    error = {"code": "invalid_training_file", "message": "Line 1: ...", "param": None}
    assert wording.failure(NEW_JOB | {"status": "failed", "error": error}) == "invalid training file"
    assert wording.failure(NEW_JOB) is None
