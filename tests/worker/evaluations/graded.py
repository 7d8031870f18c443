"""The outcome of an evaluation with given answers, graded in this process."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.evaluations.graders import EvaluationSettings
from app.domain.evaluations.rows import EvaluationRow
from app.domain.evaluations.spec import ModelAnswer
from worker.evaluations.scoring import score_answers
from worker.evaluations.summarize import ADAPTER, BASE, Outcome


def graded(
    settings: EvaluationSettings, rows: Sequence[EvaluationRow], base: Sequence[str], adapter: Sequence[str]
) -> Outcome:
    answers = {BASE: [ModelAnswer(text) for text in base], ADAPTER: [ModelAnswer(text) for text in adapter]}
    scores = {grader.name: score_answers(grader, rows, answers) for grader in settings.graders}
    return Outcome(rows, len(rows), answers, scores, "16 bits", "cpu", 1.0)
