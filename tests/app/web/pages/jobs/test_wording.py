"""A job's state in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from app.web.pages.jobs import wording
from app.web.pages.jobs.job import ACTIONS
from tests.api_objects import FINISHED_JOB, NEW_JOB

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
    assert wording.sentence(RUNNING, now=1_300) == "Training: step 30 of 90 steps."  # longer than estimated
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


STEP_12 = {"attempts": 1, "started_at": 1_000, "trained_steps": 12}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"status": "queued"}, "The files are valid. Waits for a worker."),
        (
            {"status": "queued", "attempts": 1},
            "Interrupted before its first step; it starts again by itself. Waits for",
        ),
        ({"status": "queued"} | STEP_12, "Interrupted at step 12; it continues by itself. Waits for a worker."),
        ({"status": "paused"}, "Paused before its first step. Resume it to start the training."),
        ({"status": "paused"} | STEP_12, "Paused at step 12. Resume it to continue from there."),
        ({"status": "failed"}, "The job failed before its training."),
        ({"status": "failed"} | STEP_12, "The training ended with an error."),
        ({"status": "validating_files", "phase": "waiting_for_storage"}, "The check of the files waits for disk space"),
    ],
)
def test_a_sentence_is_true_whenever_the_job_was_stopped(changes: dict[str, Any], text: str) -> None:
    assert wording.sentence(NEW_JOB | changes).startswith(text)


def test_a_check_that_waits_for_disk_space_has_it_in_its_label() -> None:
    job = NEW_JOB | {"status": "validating_files", "phase": "waiting_for_storage"}
    assert wording.label(job) == "Waiting for disk space"


def test_the_remedy_of_an_error_names_what_the_page_has() -> None:
    error = {
        "remedy": "Change the parameter in `param`; `POST /v1/fine_tuning/jobs/plan` predicts it.",
        "param": "lora.r",
    }
    assert wording.remedy(error) == "Change lora.r; the plan in the form of a new job predicts it."
    assert wording.remedy({"remedy": None, "param": None}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(32.0, "32"), (2e-05, "2e-05"), (3, "3"), (["q_proj", "v_proj"], "q_proj, v_proj"), ([], "none"), (True, "yes")],
)
def test_the_value_of_a_setting_is_one_line(value: Any, text: str) -> None:
    assert wording.setting_text(value) == text


def test_a_finished_job_has_steps_tokens_time_and_size() -> None:
    job = FINISHED_JOB | {"trained_steps": 90, "total_steps": 90, "trained_tokens": 51_840, "training_seconds": 120.0}
    job["adapter"] = FINISHED_JOB["adapter"] | {"bytes": 9_778_176}
    assert wording.sentence(job) == "Trained 90 steps on 51,840 tokens in 2 min. The adapter has 9.8 MB."


def test_a_failed_job_has_its_reason_in_a_few_words() -> None:
    error = {"code": "invalid_training_file", "message": "Line 1: ...", "param": None}
    assert wording.failure(NEW_JOB | {"status": "failed", "error": error}) == "invalid training file"
    assert wording.failure(NEW_JOB) is None
