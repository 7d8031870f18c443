"""The report of an evaluation in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.error_text.json_text import counted
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.evaluations.rows import REFERENCE_ANSWER
from app.domain.evaluations.summary import ConfusionMatrix, Difference, EvaluationSummary, GraderSummary, Score
from worker.evaluations.summarize import ENDED_AT_LIMIT, Outcome

MAX_EXAMPLES = 5  # rows in which base and adapter differ most
MAX_CELL_CHARACTERS = 300
ANSWERS = (
    "answered: rows with an answer; failed: rows without one; empty: answers without text; cut: answers that "
    f"{ENDED_AT_LIMIT}; tokens: those of all answers, if each has a count."
)
SCORES = "A score is the mean over the rows that have one; a difference, over the rows that have both."
PASSED = "passed: the share of the scores that are at least the grader's pass_threshold."
FIELDS = "The share of the rows with the field in which the answer's value is the expected one."
CHANGE = "change: the adapter's score minus the base's."
CONFUSION = "A line for each expected label of the evaluated rows, a column for each answer."


def report(summary: EvaluationSummary, outcome: Outcome) -> str:
    evaluation = outcome.evaluation
    reference = _reference_name(evaluation.settings)
    models = ["base", "adapter", *(["reference"] if reference else [])]
    lines = [
        f"# Evaluation of {evaluation.model}",
        "",
        f"- evaluation: `{evaluation.id}` of job `{evaluation.job_id}`, file `{evaluation.file_id}`",
        f"- base model: `{evaluation.base_model}`, loaded in {summary.precision}, for the answers of base and adapter",
        *([f"- reference: `{reference}`"] if reference else []),
        f"- rows: {summary.rows:,} of {summary.rows_in_file:,}",
        f"- generation: greedy, {summary.seconds:.0f} s on {summary.device}",
        "",
        *_promotion(summary),
        *_answers(summary, models),
        *_scores(summary, models),
    ]
    for grader in summary.graders:
        lines += _details(grader, models)
    lines += _examples(summary, outcome)
    if summary.warnings:
        lines += ["## Warnings", "", *(f"- {text}" for text in summary.warnings), ""]
    lines += [
        "Intervals are 95 % intervals of the mean paired difference over rows: for scores of 0 and 1 Newcombe's "
        "method 10, else a bootstrap with 10,000 resamples and a fixed seed, which is too narrow below some 20 rows. "
        "One row has no interval.",
        "",
    ]
    return "\n".join(lines)


def summary_sentence(summary: EvaluationSummary) -> str:
    """The result in a sentence, for the job's events."""
    parts = [
        f"{grader.name}: base {_number(grader.base)}, adapter {_number(grader.adapter)}"
        + (f" ({_interval(grader.difference)})" if grader.difference else "")
        for grader in summary.graders
    ]
    text = "; ".join(parts) or "No graders"
    text += f". {counted(summary.rows, 'row')}; the base answered in {summary.precision}"
    if summary.promotion is not None:
        text += f". Delivery is {'allowed' if summary.promotion.allowed else 'not allowed'}: {summary.promotion.reason}"
    return text


def _reference_name(evaluation: EvaluationSettings) -> str | None:
    reference = evaluation.reference
    if reference is None:
        return None
    return reference.model or f"recorded answers in {reference.field}"


def _promotion(summary: EvaluationSummary) -> list[str]:
    if summary.promotion is None:
        return []
    verdict = "The adapter may be delivered" if summary.promotion.allowed else "The adapter is not delivered"
    return [f"**{verdict}**: {summary.promotion.reason}.", ""]


def _answers(summary: EvaluationSummary, models: Sequence[str]) -> list[str]:
    rows = []
    for model in models:
        counts = getattr(summary.answers, model)
        tokens = "" if counts.tokens is None else f"{counts.tokens:,}"
        rows.append([model, counts.answered, counts.failed, counts.empty, counts.cut, tokens])
    return ["## Answers", "", *_table(["model", "answered", "failed", "empty", "cut", "tokens"], rows), "", ANSWERS, ""]


def _scores(summary: EvaluationSummary, models: Sequence[str]) -> list[str]:
    if not summary.graders:
        return []
    has_reference = "reference" in models
    columns = ["grader", *models, "adapter - base", *(["adapter - reference"] if has_reference else [])]
    rows = [
        [
            f"{grader.name} ({grader.type})",
            *(_number(getattr(grader, model)) for model in models),
            _interval(grader.difference),
            *([_interval(grader.reference_difference)] if has_reference else []),
        ]
        for grader in summary.graders
    ]
    return ["## Scores", "", *_table(columns, rows), "", SCORES, "", *_passed(summary, models)]


def _passed(summary: EvaluationSummary, models: Sequence[str]) -> list[str]:
    rows = [
        [f"{grader.name}: passed", *(_share(getattr(grader, model).pass_rate) for model in models)]
        for grader in summary.graders
        if grader.adapter.pass_rate is not None or grader.base.pass_rate is not None
    ]
    return [*_table(["grader", *models], rows), "", PASSED, ""] if rows else []


def _details(grader: GraderSummary, models: Sequence[str]) -> list[str]:
    lines: list[str] = []
    if grader.confusion is not None:
        for model in models:
            matrix: ConfusionMatrix = getattr(grader.confusion, model)
            rows = [[label, *counts] for label, counts in zip(matrix.labels, matrix.counts, strict=True)]
            lines += [f"### {grader.name}: labels answered by {model}", "", CONFUSION, ""]
            lines += [*_table(["expected", *matrix.labels, "(none of these)"], rows), ""]
    if grader.fields is not None:
        fields = [
            [each.field, each.rows, *(f"{getattr(each, model):.3f}" for model in models)] for each in grader.fields
        ]
        lines += [f"### {grader.name}: fields", "", FIELDS, "", *_table(["field", "rows", *models], fields), ""]
    return lines


def _examples(summary: EvaluationSummary, outcome: Outcome) -> list[str]:
    """The rows in which the adapter gains or loses most by the first grader."""
    if not summary.graders:
        return []
    scores = outcome.scores[summary.graders[0].name]
    changes = [
        (adapter.value - base.value, index)
        for index, (base, adapter) in enumerate(zip(scores["base"], scores["adapter"], strict=True))
        if base.value is not None and adapter.value is not None and adapter.value != base.value
    ]
    changes.sort(key=lambda change: (change[0], -change[1]))
    chosen = {"lost": changes[:MAX_EXAMPLES], "gained": changes[::-1][:MAX_EXAMPLES]}
    lines: list[str] = []
    for what, pairs in chosen.items():
        rows = [
            [
                outcome.rows[index].line,
                f"{change:+.2f}",
                outcome.rows[index].question,
                outcome.rows[index].item.get(REFERENCE_ANSWER) or "",
                outcome.answers["base"][index].text or "",
                outcome.answers["adapter"][index].text or "",
            ]
            for change, index in pairs
            if (change > 0) == (what == "gained")
        ]
        if rows:
            lines += [f"## Rows in which the adapter {what} most ({summary.graders[0].name})", "", CHANGE, ""]
            lines += [*_table(["line", "change", "question", "expected", "base", "adapter"], rows), ""]
    return lines


def _number(score: Score) -> str:
    if score.mean is None:
        return "none"
    missing = f" ({score.failed_rows} missing)" if score.failed_rows else ""
    return f"{score.mean:.3f}{missing}"


def _share(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.3f}"


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return "none"
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.3f}"
    return f"{difference.mean:+.3f}, 95 % {difference.low:+.3f} to {difference.high:+.3f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return f"| {' | '.join(_cell(str(cell)) for cell in cells)} |"

    return [line(columns), line(["---"] * len(columns)), *map(line, rows)]


def _cell(text: str) -> str:
    """A text in one line of a table."""
    if len(text) > MAX_CELL_CHARACTERS:
        text = text[:MAX_CELL_CHARACTERS] + " ..."
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
