"""Scores of one answer by one grader. Graders that ask a model are in `endpoint_graders`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import sacrebleu
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer

from app.domain.evaluations.graders import (
    Grader,
    JsonFields,
    JsonValid,
    LabelAccuracy,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)
from app.domain.evaluations.rows import EvaluationRow, label_of, parse_json_object
from app.domain.evaluations.templates import MissingField, render


@dataclass(frozen=True)
class Scored:
    """The score of an answer; None with the reason if there is none."""

    value: float | None
    error: str | None = None
    fields: dict[str, bool] | None = None  # of `json_fields`: whether each is right
    label: str | None = None  # of `label_accuracy`: the answer as it is compared


def score(grader: Grader, row: EvaluationRow, output: str) -> Scored:
    """The score of an answer. An answer without a field that the grader needs scores 0.

    `score_model` is not handled here.
    """
    assert not isinstance(grader, ScoreModel)
    try:
        text = render(grader.input, row.item, output)
        reference = "" if isinstance(grader, JsonValid) else render(grader.reference, row.item, output)
    except MissingField as error:  # of the answer: the fields of the rows were checked before
        return Scored(0.0, str(error))
    match grader:
        case StringCheck():
            return Scored(float(COMPARISONS[grader.operation](text, reference)))
        case TextSimilarity():
            return Scored(similarity(grader.evaluation_metric, text, reference))
        case LabelAccuracy():
            label = label_of(text, grader)
            return Scored(float(label == label_of(reference, grader)), label=label)
        case JsonValid():
            return Scored(float(parse_json_object(text) is not None))
        case JsonFields():
            return _field_score(grader, text, reference)


def similarity(metric: str, text: str, reference: str) -> float:
    """0 to 1; case and white space count, except that BLEU and ROUGE tokenize both texts."""
    if metric == "fuzzy_match":
        return fuzz.ratio(text, reference) / 100
    if metric == "bleu":
        return sacrebleu.sentence_bleu(text, [reference]).score / 100
    name = metric.replace("rouge_l", "rougeL").replace("rouge_", "rouge")
    return float(_rouge(name).score(reference, text)[name].fmeasure)


COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


@cache
def _rouge(name: str) -> RougeScorer:
    return RougeScorer([name], use_stemmer=False)


def _field_score(grader: JsonFields, text: str, reference: str) -> Scored:
    expected, answered = parse_json_object(reference) or {}, parse_json_object(text) or {}
    names = grader.fields or list(expected)
    fields = {name: name in answered and _is_equal(answered[name], expected[name]) for name in names}
    return Scored(sum(fields.values()) / len(fields) if fields else float(answered == expected), fields=fields)


def _is_equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and is not true."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_is_equal, left, right))
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right):
        return True
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
