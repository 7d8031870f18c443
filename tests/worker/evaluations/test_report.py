"""The report in Markdown explains each of its numbers."""

from __future__ import annotations

import io
import json

from app.domain.evaluations.graders import EvaluationRequest
from app.domain.evaluations.rows import EvaluationRow, read_rows
from tests.sentences import Reviewed
from tests.worker.evaluations.graded import graded
from worker.evaluations.report import report
from worker.evaluations.summarize import summarize

SIMILARITY = {
    "type": "text_similarity",
    "name": "similar",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference_answer }}",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.9,
}


def report_of(*rows: tuple[str, str, str], **options: object) -> str:
    """`rows` are (expected, base, adapter)."""
    lines = [json.dumps({"prompt": f"question {number}", "completion": row[0]}) for number, row in enumerate(rows)]
    read = [row for row in read_rows(io.BytesIO("\n".join(lines).encode()), 1 << 20) if isinstance(row, EvaluationRow)]
    settings = EvaluationRequest.model_validate({"file": "file-x", **options}).settings()
    outcome = graded(settings, read, [row[1] for row in rows], [row[2] for row in rows])
    return report(summarize(outcome), outcome)


def test_a_report_has_the_share_of_passed_rows_and_the_expected_answers(reviewed: Reviewed) -> None:
    text = report_of(("yes", "no", "yes"), ("no", "no", "no"), graders=[SIMILARITY])
    reviewed(text)


def test_a_report_without_a_threshold_has_no_share() -> None:
    text = report_of(("a", "a", "b"), graders=[{"type": "label_accuracy", "name": "label"}])
    assert "passed" not in text
    assert "| 1.000 | 0.000 | -1.000 |" in text  # one row has no interval
