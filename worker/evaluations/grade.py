"""Grade all answers: `python -m worker.evaluations.grade WORKDIR`, a program with limits of memory and time.

WORKDIR has the files that app.domain.evaluations.spec describes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from app.domain.evaluations.graders import ScoreModel
from app.domain.evaluations.results import GradedEvaluation, index_rows
from app.domain.evaluations.rows import EvaluationRow
from app.domain.evaluations.spec import (
    GRADING,
    OUTBOX,
    REPORT,
    RESULTS,
    ROWS,
    SUMMARY,
    GradingSpec,
    ModelAnswer,
    Scored,
)
from app.domain.jobs.states import ExitCode
from app.system.host import PARENT_PID_VARIABLE, die_with_parent
from worker.evaluations.report import report
from worker.evaluations.scoring import score_answers
from worker.evaluations.summarize import Outcome, result_rows, summarize
from worker.jobs.sanitize import clean


def main(directory: Path) -> int:
    if not die_with_parent(int(os.environ[PARENT_PID_VARIABLE])):
        return ExitCode.INTERNAL
    try:
        write_results(directory)
    except MemoryError:
        return ExitCode.OUT_OF_MEMORY
    return ExitCode.DONE


def write_results(directory: Path) -> None:
    """Score every answer with every grader, and write summary, results and report."""
    spec = GradingSpec.model_validate_json((directory / GRADING).read_bytes())
    outcome = _grade(spec, directory / ROWS)
    summary = summarize(outcome)
    outbox = directory / OUTBOX
    outbox.mkdir()
    with (outbox / RESULTS).open("w+b") as results:
        for row in result_rows(outcome):
            results.write(json.dumps(clean(row), ensure_ascii=False).encode() + b"\n")
        results.seek(0)
        graded = GradedEvaluation(summary=summary, row_index=index_rows(results, spec.settings))
    (directory / SUMMARY).write_text(json.dumps(clean(graded.model_dump(mode="json"))), encoding="utf-8")
    (outbox / REPORT).write_text(report(summary, outcome), encoding="utf-8", errors="replace")


def _grade(spec: GradingSpec, path: Path) -> Outcome:
    rows: list[EvaluationRow] = []
    answers: dict[str, list[ModelAnswer]] = {}
    scores: dict[str, dict[str, list[Scored]]] = {grader.name: {} for grader in spec.settings.graders}
    with path.open("rb") as file:
        for line in file:
            graded = json.loads(line)
            rows.append(EvaluationRow(**graded["row"]))
            for model, answer in graded["answers"].items():
                answers.setdefault(model, []).append(ModelAnswer(**answer))
            for grader, by_model in graded["scores"].items():
                for model, scored in by_model.items():
                    scores[grader].setdefault(model, []).append(Scored(**scored))
    for each in spec.settings.graders:
        if not isinstance(each, ScoreModel):
            scores[each.name] = score_answers(each, rows, answers)
    return Outcome(spec, rows, answers, scores)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
