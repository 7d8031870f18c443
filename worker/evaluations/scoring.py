"""Scores of one answer by one grader. Graders that ask a model are in `endpoints`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

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
from app.domain.evaluations.spec import ModelAnswer, Scored
from app.domain.evaluations.templates import MissingField, TextRefused, compared_text

NO_ANSWER = "there is no answer to score"


def score_answers(
    grader: Grader, rows: Sequence[EvaluationRow], answers: Mapping[str, Sequence[ModelAnswer]]
) -> dict[str, list[Scored]]:
    """The score of each answer by model, in the order of the rows."""
    return {
        model: [
            score(grader, row, answer.text) if answer.text is not None else Scored(None, NO_ANSWER)
            for row, answer in zip(rows, by_row, strict=True)
        ]
        for model, by_row in answers.items()
    }


def score(grader: Grader, row: EvaluationRow, output: str) -> Scored:
    """The score of an answer. An answer without a field that the grader needs scores 0; a text that is too long to
    compare has no score.

    `score_model` is not handled here.
    """
    assert not isinstance(grader, ScoreModel)
    try:
        text = compared_text(grader.input, row.item, output)
        reference = "" if isinstance(grader, JsonValid) else compared_text(grader.reference, row.item, output)
    except MissingField as error:  # of the answer: the fields of the rows were checked before
        return Scored(0.0, str(error))
    except TextRefused as error:
        return Scored(None, str(error))
    match grader:
        case StringCheck():
            return Scored(float(COMPARISONS[grader.operation](text, reference)), label=text)
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
    """0 to 1; case and white space count, except that BLEU and ROUGE tokenize both texts.

    A library is imported when it is needed: all of them take a second.
    """
    if metric == "fuzzy_match":
        return fuzz.ratio(text, reference) / 100
    if metric == "bleu":
        import sacrebleu

        return sacrebleu.sentence_bleu(text, [reference]).score / 100
    if metric == "rouge_l":
        return _rouge_l(text, reference)
    from rouge_score.rouge_scorer import RougeScorer

    name = metric.replace("_", "")
    return float(RougeScorer([name], use_stemmer=False).score(reference, text)[name].fmeasure)


def _rouge_l(text: str, reference: str) -> float:
    """The F measure of rouge-score's `rougeL`, whose table of the longest common subsequence has an entry for each pair
    of words: 20 GB for the longest texts."""
    from rouge_score.tokenize import tokenize

    words, expected = tokenize(text, None), tokenize(reference, None)
    common = LCSseq.similarity(expected, words)
    return 2 * common / (len(words) + len(expected)) if common else 0.0


COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def _field_score(grader: JsonFields, text: str, reference: str) -> Scored:
    expected, answered = parse_json_object(reference) or {}, parse_json_object(text) or {}
    names = grader.fields or list(expected)
    try:
        fields = {name: name in answered and _is_equal(answered[name], expected[name]) for name in names}
    except RecursionError:
        return Scored(None, "the JSON is nested too deeply to be compared")
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
