"""A job's state in plain words."""

from __future__ import annotations

import time
from typing import Any, get_args

import pytest

from app.api.schemas.jobs import EvaluationOfJob
from app.domain.jobs.states import JobState
from app.web.pages.jobs import wording
from app.web.pages.jobs.job import offered_actions
from tests.api_objects import FINISHED_JOB, NEW_JOB
from tests.sentences import Reviewed

AT_STEP_12 = {"attempts": 1, "started_at": 1_000, "trained_steps": 12, "total_steps": 90}
RUNNING = NEW_JOB | AT_STEP_12 | {"status": "running", "phase": "training", "estimated_finish": 1_000}
RESULT = {"trained_steps": 90, "total_steps": 90, "trained_tokens": 51_840, "training_seconds": 120.0}
NO_LABEL = {"waiting_for": "No worker has the label a100."}
STATES: dict[str, dict[str, Any]] = {
    "validating_files": NEW_JOB,
    "validating_files, disk full": NEW_JOB | {"phase": "waiting_for_storage"},
    **{
        f"queued, {name}": NEW_JOB | {"status": "queued"} | changes
        for name, changes in {
            "new": {},
            "next": {"queue_position": 1},
            "third": {"queue_position": 3, "expected_start": 1_000},
            "no label": NO_LABEL,
            "next, no label": {"queue_position": 1} | NO_LABEL,
            "disk full": {"phase": "waiting_for_storage"},
            "interrupted": {"attempts": 1},
            "interrupted at a step": AT_STEP_12,
        }.items()
    },
    "running, claimed": NEW_JOB | {"status": "running"},
    "running, loading": RUNNING | {"phase": "loading"},
    "running": RUNNING,
    "running, pausing": RUNNING | {"pause_requested": True},
    "paused": NEW_JOB | {"status": "paused"},
    "paused at a step": NEW_JOB | AT_STEP_12 | {"status": "paused"},
    "succeeded": FINISHED_JOB | RESULT | {"adapter": FINISHED_JOB["adapter"] | {"bytes": 9_778_176}},
    "failed": NEW_JOB | {"status": "failed"},
    "failed at a step": NEW_JOB | AT_STEP_12 | {"status": "failed"},
    "cancelled": NEW_JOB | {"status": "cancelled"},
}


def test_every_state_of_a_job_has_a_label_and_a_sentence(reviewed: Reviewed) -> None:
    assert {job["status"] for job in STATES.values()} == wording.LABELS.keys() == wording.TONES.keys() == set(JobState)
    for name, job in STATES.items():
        reviewed(f"{name}: {wording.label(job)}: {wording.sentence(job)}")


def test_every_state_of_an_evaluation_without_a_headline_has_a_text(reviewed: Reviewed) -> None:
    assert wording.EVALUATIONS.keys() == set(get_args(EvaluationOfJob.model_fields["status"].annotation))
    for title, text in wording.EVALUATIONS.values():
        reviewed(f"{title}: {text}")


def test_a_pausing_job_can_be_cancelled_and_not_paused_again() -> None:
    assert offered_actions(STATES["running, pausing"]) == ["cancel"]
    assert offered_actions(RUNNING) == ["pause", "cancel"]


def test_the_remaining_time_is_unknown_once_its_estimate_has_passed() -> None:
    later = RUNNING | {"estimated_finish": time.time() + 130}
    assert wording.remaining_seconds(later) == pytest.approx(130, abs=20)
    assert wording.remaining_seconds(RUNNING) is None
    assert wording.fraction_done(RUNNING) == pytest.approx(12 / 90)


def test_the_remedy_of_an_error_names_what_the_page_has(reviewed: Reviewed) -> None:
    remedy = "Change the parameter in `param`; `POST /v1/fine_tuning/jobs/plan` predicts it."
    reviewed(str(wording.remedy({"remedy": remedy, "param": "lora.r"})))
    assert wording.remedy({"remedy": None, "param": None}) is None
