"""The evaluations that the form of the dashboard can request."""

from __future__ import annotations

import pytest

from app.domain.evaluations.graders import EvaluationSettings
from app.web.pages.jobs.panels.evaluations import GRADERS


@pytest.mark.parametrize("name", GRADERS)
def test_the_api_accepts_every_grader(name: str) -> None:
    _, graders = GRADERS[name]
    assert len(EvaluationSettings.model_validate({"graders": graders}).graders) == len(graders)
