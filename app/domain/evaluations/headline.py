"""The main result of an evaluation: the numbers and the sentence that lists, pages, cards and commands show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.error_text.json_text import counted
from app.domain.evaluations.graders import BINARY_TYPES
from app.domain.evaluations.summary import Difference, SummaryPart

FEW_ROWS = 500  # from here on a tenth of a point is more than a fifth of a row


class ModelResult(SummaryPart):
    """The scores of one model."""

    right: int | None
    """Rows with the score 1; null if a score is between 0 and 1."""
    rows: int
    """Rows with a score."""
    mean: float | None
    """The mean score; null if no row has one."""


class Headline(SummaryPart):
    """The main result: that of the grader of `promote_if`, else of the first grader."""

    grader: str
    """The grader's name."""
    adapter: ModelResult
    """The base model with the adapter."""
    base: ModelResult
    """The base model."""
    difference: Difference | None
    """Adapter minus base, with the 95 % interval; 0.01 is a point."""
    text: str
    """The result in two sentences."""
    brief: str
    """The result in a few words, for lists."""


def headline(summary: Mapping[str, Any] | None) -> Headline | None:
    """The main result of a stored EvaluationSummary, of any release; None without one, or without graders."""
    graders = summary["graders"] if summary else ()
    if not summary or not graders:
        return None
    promotion = summary.get("promotion")
    grader = next((one for one in graders if promotion and one["name"] == promotion["grader"]), graders[0])
    difference = None if grader["difference"] is None else Difference.model_validate(grader["difference"])
    is_binary = grader["type"] in BINARY_TYPES or _is_right_or_wrong(grader, difference)
    adapter, base = (_result(grader[model], is_binary) for model in ("adapter", "base"))
    texts = _right_texts(adapter, base) if is_binary else _mean_texts(grader["name"], adapter, base)
    parts = [texts[0], _difference_text(difference, is_binary) if difference else ""]
    return Headline(
        grader=grader["name"],
        adapter=adapter,
        base=base,
        difference=difference,
        text=" ".join(filter(None, parts)),
        brief=texts[1],
    )


def record_of(evaluation_id: str, file_id: str, summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The entry `evaluation` of a manifest: ids and headline; None without a headline."""
    found = headline(summary)
    return None if found is None else {"id": evaluation_id, "file": file_id, **found.model_dump(mode="json")}


def _is_right_or_wrong(grader: Mapping[str, Any], difference: Difference | None) -> bool:
    """Whether a grader with scores between 0 and 1, such as of the fields of objects, gave only 0 and 1."""
    if difference is None or difference.method != "paired_wilson":
        return False
    return bool(grader["adapter"]["rows"] == grader["base"]["rows"] == difference.rows)


def _result(score: Mapping[str, Any], is_binary: bool) -> ModelResult:
    right = round((score["mean"] or 0) * score["rows"]) if is_binary else None
    return ModelResult(right=right, rows=score["rows"], mean=score["mean"])


def _right_texts(adapter: ModelResult, base: ModelResult) -> tuple[str, str]:
    of_base = f"{base.right:,}" if base.right else "none"
    if base.rows != adapter.rows:
        of_base += f" of {base.rows:,}"
    right = f"{adapter.right:,} of {counted(adapter.rows, 'held-out row')} right"
    return f"{right}; the base model: {of_base}.", f"{adapter.right:,} of {adapter.rows:,} right, base {of_base}"


def _mean_texts(grader: str, adapter: ModelResult, base: ModelResult) -> tuple[str, str]:
    means = ["none" if one.mean is None else f"{one.mean:.3f}" for one in (adapter, base)]
    rows = counted(adapter.rows, "held-out row")
    text = f"Mean score of {grader} on {rows}: {means[0]}; the base model: {means[1]}."
    return text, f"{grader} {means[0]}, base {means[1]}"


def _difference_text(difference: Difference, is_binary: bool) -> str:
    """In points for shares of rows; another score keeps its own unit."""
    digits = 0 if difference.rows < FEW_ROWS else 1

    def text(value: float) -> str:
        return f"{round(100 * value, digits) or 0:.{digits}f}" if is_binary else f"{value:.3f}"

    mean = text(difference.mean)
    unit = "" if not is_binary else " point" if mean == "1" else " points"
    if difference.low is None or difference.high is None:
        return f"Difference {mean}{unit}."
    return f"Difference {mean}{unit}, 95 % interval {text(difference.low)} to {text(difference.high)}."
