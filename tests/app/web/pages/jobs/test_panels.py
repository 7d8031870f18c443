"""What the panels of a job have a text for, and what their forms can request."""

from __future__ import annotations

import pytest

from app.domain.artifacts.exports import ExportType, Quantization
from app.domain.deliveries.served_check import Verdict
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.jobs.states import UNFINISHED_WORK, JobState, Reason, WorkState
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels import deliveries, exports, panel, records
from app.web.pages.jobs.panels.evaluations import GRADERS


def test_each_reason_after_which_a_job_continues_has_a_sentence() -> None:
    failures = {reason for reason in Reason if reason.final_state is JobState.FAILED}
    assert set(Reason) - failures <= records.REASONS.keys()


def test_every_verdict_on_what_a_target_serves_has_a_text() -> None:
    assert deliveries.VERDICTS.keys() == set(Verdict)


def test_every_type_quantization_and_state_of_an_export_has_a_text() -> None:
    assert exports.TYPES.keys() == exports.NAMES.keys() == set(ExportType)
    assert exports.QUANTIZATIONS.keys() == set(Quantization)
    assert wording.TONES.keys() >= set(WorkState)
    assert set(panel.UNFINISHED) == set(UNFINISHED_WORK)


@pytest.mark.parametrize("name", GRADERS)
def test_the_api_accepts_every_grader(name: str) -> None:
    _, graders = GRADERS[name]
    assert len(EvaluationSettings.model_validate({"graders": graders}).graders) == len(graders)
