"""Scores of all rows -> the summary of the evaluation, and the rows of the results file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.domain.datasets.warnings import LineCount
from app.domain.error_text.json_text import counted
from app.domain.evaluations.graders import BINARY_TYPES, EvaluationSettings, Grader, LabelAccuracy, StringCheck
from app.domain.evaluations.results import score_range
from app.domain.evaluations.rows import MAX_NAME_CHARACTERS, REFERENCE_ANSWER, EvaluationRow, label_of
from app.domain.evaluations.spec import GradingSpec, ModelAnswer, Scored
from app.domain.evaluations.summary import (
    AnswerCounts,
    AnswersByModel,
    ConfusionByModel,
    ConfusionMatrix,
    Difference,
    EvaluationSummary,
    FieldAccuracy,
    GraderSummary,
    Promotion,
    Score,
    ScoreDistribution,
    decide,
)
from app.domain.evaluations.templates import compared_text, uses_answer
from worker.evaluations.scoring import NO_ANSWER

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
RESAMPLES = 10_000
SEED = 0
MIN_ROWS = 2
BINS = 10  # of a distribution
MAX_CLASSES, MIN_ROWS_PER_CLASS = 20, 2  # expected answers of a string check that are taken for classes
BASE, ADAPTER, REFERENCE = "base", "adapter", "reference"
ENDED_AT_LIMIT = "ended at max_new_tokens"


def paired_difference(left: Sequence[float], right: Sequence[float]) -> Difference:
    """The mean of `left - right` over the rows, with its 95 % interval. Raises ValueError without rows.

    Both models answered the same rows, so their scores are correlated. Scores of 0 and 1: Newcombe's method 10
    (Statistics in Medicine 17, 1998, pages 2635 to 2650), which combines the two Wilson intervals with the correlation
    of the pairs. Unlike a bootstrap it has a width when all rows agree, and it keeps its coverage with few rows. Other
    scores: percentiles of the bootstrap over rows, with a fixed seed.
    """
    if not left:
        raise ValueError("a difference needs at least one row")
    mean = math.fsum(a - b for a, b in zip(left, right, strict=True)) / len(left)
    is_binary = all(score in (0.0, 1.0) for score in (*left, *right))
    low: float | None = None
    high: float | None = None
    if len(left) >= MIN_ROWS:
        low, high = _newcombe(left, right) if is_binary else _bootstrap(left, right)
    method = "paired_wilson" if is_binary else "paired_bootstrap"
    return Difference(mean=mean, low=low, high=high, rows=len(left), method=method)


def _newcombe(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    n = len(left)
    both = sum(a == b == 1 for a, b in zip(left, right, strict=True))
    only_left, only_right = int(sum(left)) - both, int(sum(right)) - both
    neither = n - both - only_left - only_right
    p, q = (both + only_left) / n, (both + only_right) / n
    (p_low, p_high), (q_low, q_high) = _wilson(p, n), _wilson(q, n)
    phi = _correlation(both, only_left, only_right, neither)
    below = math.sqrt(max(0.0, (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2))
    above = math.sqrt(max(0.0, (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2))
    return max(-1.0, p - q - below), min(1.0, p - q + above)


def _wilson(p: float, n: int) -> tuple[float, float]:
    centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return (centre - half) / scale, (centre + half) / scale


def _correlation(both: int, only_left: int, only_right: int, neither: int) -> float:
    """The correlation of the pairs, with Newcombe's correction for continuity if it is positive."""
    product = (both + only_left) * (only_right + neither) * (both + only_right) * (only_left + neither)
    if not product:
        return 0.0
    difference = float(both * neither - only_left * only_right)
    if difference > 0:
        difference = max(0.0, difference - (both + only_left + only_right + neither) / 2)
    return difference / math.sqrt(product)


def _bootstrap(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    difference_N = np.asarray(left, dtype=float) - np.asarray(right, dtype=float)
    random = np.random.default_rng(SEED)
    means = [random.choice(difference_N, difference_N.size).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Outcome:
    """Everything that was measured. Answers and scores are in the order of `rows`."""

    evaluation: GradingSpec
    rows: Sequence[EvaluationRow]
    answers: Mapping[str, Sequence[ModelAnswer]]  # by model: base, adapter, and reference if there is one
    scores: Mapping[str, Mapping[str, Sequence[Scored]]]  # by grader and model


def summarize(outcome: Outcome) -> EvaluationSummary:
    evaluation, settings = outcome.evaluation, outcome.evaluation.settings
    graders = [_summarize_grader(outcome, grader) for grader in settings.graders]
    generated = 2 * len(outcome.rows)
    return EvaluationSummary(
        rows=len(outcome.rows),
        rows_in_file=evaluation.rows_in_file,
        precision=evaluation.precision,
        device=evaluation.device,
        seconds=round(evaluation.seconds, 3),
        seconds_per_answer=round(evaluation.seconds / generated, 6),
        answers=AnswersByModel(**{model: _count(answers) for model, answers in outcome.answers.items()}),
        graders=graders,
        promotion=_promotion(settings, graders),
        warnings=list(_warnings(outcome)),
    )


def result_rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A JSON object per row: the prompt, its last message, the expected answer, answers, scores, and the reasons of
    missing scores."""
    return (_result_row(outcome, index, row) for index, row in enumerate(outcome.rows))


def _result_row(outcome: Outcome, index: int, row: EvaluationRow) -> dict[str, Any]:
    answers = {model: answers[index] for model, answers in outcome.answers.items()}
    scores = {
        grader: {model: scored[index] for model, scored in by_model.items()}
        for grader, by_model in outcome.scores.items()
    }
    return {
        "line": row.line,
        "messages": list(row.messages),
        "question": row.question,
        "reference_answer": row.item.get(REFERENCE_ANSWER),
        "answers": {
            model: {"text": each.text, "tokens": each.tokens, "cut": each.is_cut, "error": each.error}
            for model, each in answers.items()
        },
        "scores": {
            grader: {model: each.value for model, each in by_model.items()} for grader, by_model in scores.items()
        },
        "errors": {
            grader: {model: each.error for model, each in by_model.items() if each.error}
            for grader, by_model in scores.items()
            if any(each.error for each in by_model.values())
        },
    }


def _count(answers: Sequence[ModelAnswer]) -> AnswerCounts:
    texts = [answer for answer in answers if answer.text is not None]
    tokens = [answer.tokens for answer in texts if answer.tokens is not None]
    return AnswerCounts(
        answered=len(texts),
        failed=len(answers) - len(texts),
        cut=sum(answer.is_cut for answer in texts),
        empty=sum(not answer.text for answer in texts),
        tokens=sum(tokens) if len(tokens) == len(texts) else None,
    )


def _summarize_grader(outcome: Outcome, grader: Grader) -> GraderSummary:
    scores = outcome.scores[grader.name]
    by_model = {model: _score(scored, getattr(grader, "pass_threshold", None)) for model, scored in scores.items()}
    has_reference = REFERENCE in scores
    return GraderSummary(
        name=grader.name,
        type=grader.type,
        **by_model,
        difference=_difference(scores[ADAPTER], scores[BASE]),
        reference_difference=_difference(scores[ADAPTER], scores[REFERENCE]) if has_reference else None,
        confusion=_confusion(outcome, grader),
        distribution=None if grader.type in BINARY_TYPES else _distribution(grader, scores),
        fields=_fields(scores) if grader.type == "json_fields" else None,
    )


def _score(scored: Sequence[Scored], threshold: float | None) -> Score:
    values = [each.value for each in scored if each.value is not None]
    passed = sum(value >= threshold for value in values) if threshold is not None else 0
    return Score(
        mean=math.fsum(values) / len(values) if values else None,
        rows=len(values),
        failed_rows=len(scored) - len(values),
        pass_rate=passed / len(values) if values and threshold is not None else None,
    )


def _difference(left: Sequence[Scored], right: Sequence[Scored]) -> Difference | None:
    pairs = [
        (a.value, b.value) for a, b in zip(left, right, strict=True) if a.value is not None and b.value is not None
    ]
    return paired_difference(*zip(*pairs, strict=True)) if pairs else None


def _confusion(outcome: Outcome, grader: Grader) -> ConfusionByModel | None:
    """Of `label_accuracy`, and of a string check of equal texts whose expected answers are few and short."""
    if isinstance(grader, LabelAccuracy):
        expected = [label_of(compared_text(grader.reference, row.item), grader) for row in outcome.rows]
        labels = list(dict.fromkeys(label_of(label, grader) for label in grader.labels or ())) or sorted(set(expected))
    elif isinstance(grader, StringCheck) and grader.operation == "eq" and not uses_answer(grader.reference):
        expected = [compared_text(grader.reference, row.item) for row in outcome.rows]
        labels = sorted(set(expected))
        is_long = any(len(label) > MAX_NAME_CHARACTERS for label in labels)
        if is_long or len(labels) > min(MAX_CLASSES, len(expected) // MIN_ROWS_PER_CLASS):
            return None
    else:
        return None
    index = {label: number for number, label in enumerate(labels)}

    def matrix(scored: Sequence[Scored]) -> ConfusionMatrix:
        counts = [[0] * (len(labels) + 1) for _ in labels]
        for label, each in zip(expected, scored, strict=True):
            if each.value is not None:
                counts[index[label]][index.get(each.label or "", len(labels))] += 1
        return ConfusionMatrix(labels=labels, counts=counts)

    return ConfusionByModel(**{model: matrix(scored) for model, scored in outcome.scores[grader.name].items()})


def _distribution(grader: Grader, scores: Mapping[str, Sequence[Scored]]) -> ScoreDistribution:
    low, high = score_range(grader)
    counts = {model: [0] * BINS for model in (BASE, ADAPTER)}
    for model, found in counts.items():
        for scored in scores[model]:
            if scored.value is not None:
                found[min(max(int(BINS * (scored.value - low) / (high - low)), 0), BINS - 1)] += 1
    return ScoreDistribution(low=low, high=high, **counts)


def _fields(scores: Mapping[str, Sequence[Scored]]) -> list[FieldAccuracy]:
    def accuracy(model: str, field: str) -> tuple[float, int]:
        right = [each.fields[field] for each in scores[model] if each.fields is not None and field in each.fields]
        return (sum(right) / len(right) if right else 0.0), len(right)

    names = dict.fromkeys(name for each in scores[ADAPTER] for name in each.fields or ())
    return [
        FieldAccuracy(
            field=name,
            rows=accuracy(ADAPTER, name)[1],
            **{model: accuracy(model, name)[0] for model in scores},
        )
        for name in names
    ]


def _promotion(settings: EvaluationSettings, graders: Sequence[GraderSummary]) -> Promotion | None:
    if settings.promote_if is None:
        return None
    grader = next(each for each in graders if each.name == settings.promote_if.grader)
    missing_scores = grader.base.failed_rows + grader.adapter.failed_rows
    verdict = decide(settings.promote_if, grader.model_dump(), missing_scores)
    return Promotion(
        grader=grader.name,
        margin=settings.promote_if.margin,
        allowed=bool(verdict.is_allowed),
        reason=verdict.reason,
    )


def _warnings(outcome: Outcome) -> list[str]:
    warnings = []
    empty = LineCount()
    for row in outcome.rows:
        if row.has_empty_reference:
            empty.add(row.line)
    if empty.count:
        warnings.append(f"Rows with an empty expected answer: {empty}.")
    if len(outcome.rows) < (rows_in_file := outcome.evaluation.rows_in_file):
        text = f"{len(outcome.rows):,} of {rows_in_file:,} rows were selected at random, always the same ones"
        warnings.append(f"{text}; a larger max_rows evaluates more.")
    settings = outcome.evaluation.settings
    are_labels = settings.graders and all(isinstance(grader, LabelAccuracy) for grader in settings.graders)
    is_only_labels = are_labels and settings.max_new_tokens >= MAX_NAME_CHARACTERS  # a longer answer is no label
    for model, answers in outcome.answers.items():
        counts = _count(answers)
        if counts.cut and not is_only_labels:
            cut = counted(counts.cut, "answer")
            warnings.append(f"{cut} of {model} {ENDED_AT_LIMIT}; a larger one may change scores.")
        if counts.failed:
            reason = next(answer.error for answer in answers if answer.text is None)
            warnings.append(f"Rows without an answer of {model}: {counts.failed}; the first reason: {reason}")
    for grader, by_model in outcome.scores.items():
        failures = [each.error for scored in by_model.values() for each in scored if each.value is None]
        unexplained = [why for why in failures if why and why != NO_ANSWER]
        if unexplained:
            warnings.append(f"Missing scores of {grader}: {len(unexplained)}; the first reason: {unexplained[0]}")
    return warnings
