"""The outcome of an evaluation with given answers, graded in this process."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.evaluations.graders import EvaluationSettings
from app.domain.evaluations.rows import EvaluationRow
from app.domain.evaluations.spec import GradingSpec, ModelAnswer
from worker.evaluations.scoring import score_answers
from worker.evaluations.summarize import ADAPTER, BASE, Outcome


def graded(
    settings: EvaluationSettings, rows: Sequence[EvaluationRow], base: Sequence[str], adapter: Sequence[str]
) -> Outcome:
    answers = {BASE: [ModelAnswer(text) for text in base], ADAPTER: [ModelAnswer(text) for text in adapter]}
    scores = {grader.name: score_answers(grader, rows, answers) for grader in settings.graders}
    evaluation = GradingSpec(
        id="fteval-1", job_id="ftjob-1", file_id="file-x", model="ft:x", base_model="x", settings=settings,
        rows_in_file=len(rows), precision="16 bits", device="cpu", seconds=1.0,
    )  # fmt: skip
    return Outcome(evaluation, rows, answers, scores)
