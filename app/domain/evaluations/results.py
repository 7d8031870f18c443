"""The rows of an evaluation: which ones got worse or are still wrong, and where each is in the results file, so that a
page of rows reads only these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, BinaryIO

from app.domain.evaluations.graders import EvaluationSettings, Grader, ScoreModel
from app.domain.evaluations.summary import EvaluationSummary, SummaryPart

MAX_PAGE_BYTES = 8 << 20  # of the rows of a page; a larger row is a page of its own


class RowVerdict(StrEnum):
    """What the adapter made of a row, by the grader of the headline. The first letters differ: an index has these."""

    RIGHT = "right"
    GOT_WORSE = "got_worse"
    STILL_WRONG = "still_wrong"
    UNSCORED = "unscored"


BY_LETTER = {verdict[0]: verdict for verdict in RowVerdict}


class ResultIndex(SummaryPart):
    ends: list[int]
    """The position in the results file at which each row ends, in bytes."""
    verdicts: str
    """The first letter of the verdict on each row."""


class GradedEvaluation(SummaryPart):
    """What the grading returns to the worker."""

    summary: EvaluationSummary
    row_index: ResultIndex


def main_grader(settings: EvaluationSettings) -> Grader | None:
    """The grader of the headline."""
    decisive = settings.promote_if.grader if settings.promote_if else None
    return next((one for one in settings.graders if one.name == decisive), next(iter(settings.graders), None))


def score_range(grader: Grader) -> tuple[float, float]:
    """The lowest and the highest score."""
    return (grader.range[0], grader.range[1]) if isinstance(grader, ScoreModel) else (0.0, 1.0)


def verdict_on(row: Mapping[str, Any], grader: Grader | None) -> RowVerdict:
    """The verdict on a row of the results file. A score from `pass_threshold` on is right, else the highest one."""
    scores = row["scores"][grader.name] if grader is not None else {}
    base, adapter = scores.get("base"), scores.get("adapter")
    if grader is None or base is None or adapter is None:
        return RowVerdict.UNSCORED
    if adapter < base:
        return RowVerdict.GOT_WORSE
    threshold = getattr(grader, "pass_threshold", None)
    is_right = adapter >= (score_range(grader)[1] if threshold is None else threshold)
    return RowVerdict.RIGHT if is_right else RowVerdict.STILL_WRONG


def index_rows(file: BinaryIO, settings: EvaluationSettings) -> ResultIndex:
    """Read a results file from its beginning."""
    grader = main_grader(settings)
    ends: list[int] = []
    verdicts: list[str] = []
    for line in file:
        ends.append((ends[-1] if ends else 0) + len(line))
        verdicts.append(verdict_on(json.loads(line), grader)[0])
    return ResultIndex(ends=ends, verdicts="".join(verdicts))


def page_of(index: ResultIndex, after: int, limit: int, verdict: RowVerdict | None) -> tuple[list[int], bool]:
    """The numbers, counted from 1, of at most `limit` rows after row `after`, of MAX_PAGE_BYTES together; and whether
    others follow."""
    numbers: list[int] = []
    size_bytes = 0
    for number in range(after + 1, len(index.ends) + 1):
        if verdict is not None and index.verdicts[number - 1] != verdict[0]:
            continue
        start, end = span(index, number)
        size_bytes += end - start
        if len(numbers) == limit or (numbers and size_bytes > MAX_PAGE_BYTES):
            return numbers, True
        numbers.append(number)
    return numbers, False


def read_rows(file: BinaryIO, index: ResultIndex, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield these rows of a results file, each with its number as the id, and its verdict.

    Those of an earlier release have no prompt.
    """
    for number in numbers:
        start, end = span(index, number)
        file.seek(start)
        row = {"messages": [], "errors": {}} | json.loads(file.read(end - start))
        yield row | {"id": str(number), "verdict": BY_LETTER[index.verdicts[number - 1]]}


def span(index: ResultIndex, number: int) -> tuple[int, int]:
    """Where the row with this number begins and ends in the results file."""
    return index.ends[number - 2] if number > 1 else 0, index.ends[number - 1]
