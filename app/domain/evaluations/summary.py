"""The result of an evaluation: mean scores of base model and adapter per grader, and the decision on a promotion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.domain.error_text.json_text import counted
from app.domain.evaluations.graders import PromoteIf
from app.domain.jobs.states import WorkState

REPEAT = "remove the cause, which the report has, and repeat the evaluation"
REMEDY = "more rows narrow the interval, and a larger margin accepts more loss"


@dataclass(frozen=True)
class DeliveryVerdict:
    """`is_allowed` is None while the evaluation has not ended."""

    is_allowed: bool | None
    reason: str


def decide(promote_if: PromoteIf, grader: Mapping[str, Any], missing_scores: int) -> DeliveryVerdict:
    """Apply the condition to the summary of its grader.

    The mean of the adapter must be at least that of the base, and the lower bound of the 95 % interval of the paired
    difference above minus the margin.
    """
    name, difference = promote_if.grader, grader["difference"]
    if missing_scores:
        text = f"{name} has no score for {counted(missing_scores, 'answer')} of base and adapter; {REPEAT}"
        return DeliveryVerdict(False, text)
    if difference is None or difference["low"] is None:
        return DeliveryVerdict(False, f"{name} has too few rows for an interval; evaluate more rows")
    base, adapter, low = grader["base"]["mean"], grader["adapter"]["mean"], difference["low"]
    means = f"{name}: adapter {adapter:.4g}, base {base:.4g}"
    if adapter < base:
        return DeliveryVerdict(False, f"{means}; the adapter is below the base")
    bound = 0 - promote_if.margin  # -0.0 would be shown as -0
    interval = f"the interval of the difference begins at {low:+.4g}"
    if not low > bound:
        return DeliveryVerdict(False, f"{means}; {interval}, which is not above {bound:.4g}: {REMEDY}")
    return DeliveryVerdict(True, f"{means}; {interval}, above {bound:.4g}")


def delivery_verdict(is_requested: bool, state: WorkState | None, summary: Mapping[str, Any] | None) -> DeliveryVerdict:
    """The verdict on a delivery.

    `is_requested`: whether a condition exists; `state` and `summary` are those of the evaluation that has it.
    """
    if not is_requested:
        return DeliveryVerdict(True, "no condition was set")
    if state is None or state in (WorkState.QUEUED, WorkState.RUNNING):
        return DeliveryVerdict(None, "the evaluation has not ended yet")
    if state != WorkState.SUCCEEDED or summary is None or summary.get("promotion") is None:
        return DeliveryVerdict(False, f"the evaluation ended with the status {state}, so the condition is not met")
    promotion = summary["promotion"]
    return DeliveryVerdict(bool(promotion["allowed"]), str(promotion["reason"]))


Method = Literal["paired_wilson", "paired_bootstrap"]


class SummaryPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class AnswerCounts(SummaryPart):
    """The answers of one model."""

    answered: int
    """Rows with an answer."""
    failed: int
    """Rows without an answer; the results file has the reason of each."""
    cut: int
    """Answers that ended at the limit of new tokens."""
    empty: int
    """Answers without any text."""
    tokens: int | None
    """Generated tokens; null if the endpoint does not report them."""


class AnswersByModel(SummaryPart):
    """The answers by model."""

    base: AnswerCounts
    """The base model."""
    adapter: AnswerCounts
    """The base model with the adapter."""
    reference: AnswerCounts | None = None
    """The reference; null without one."""


class Score(SummaryPart):
    """The scores of one model by one grader."""

    mean: float | None
    """Mean over the scored rows; null if no row has a score."""
    rows: int
    """Rows with a score."""
    failed_rows: int
    """Rows without a score; the results file has the reason of each."""
    pass_rate: float | None = None
    """Share of the scores from `pass_threshold` on, if set."""


class Difference(SummaryPart):
    """The mean difference of two models' scores of the same rows."""

    mean: float
    """The mean difference."""
    low: float | None
    """Lower bound of the 95 % interval; null for fewer than two rows."""
    high: float | None
    """Upper bound of the 95 % interval."""
    rows: int
    """Rows with a score of both models."""
    method: Method
    """`paired_wilson` for scores of 0 and 1 (Newcombe 1998, method 10), else `paired_bootstrap`."""


class ConfusionMatrix(SummaryPart):
    """How often each label was answered, by the expected label."""

    labels: list[str]
    """The labels: the rows, and all columns but the last."""
    counts: list[list[int]]
    """A row for each expected label; the last column counts answers that are none of the labels."""


class ConfusionByModel(SummaryPart):
    """The confusion matrices by model."""

    base: ConfusionMatrix
    """The base model."""
    adapter: ConfusionMatrix
    """The base model with the adapter."""
    reference: ConfusionMatrix | None = None
    """The reference; null without one."""


class ScoreDistribution(SummaryPart):
    """How often which score occurred, by model; a score on a bound of two parts belongs to the upper one."""

    low: float
    """The lowest possible score."""
    high: float
    """The highest possible score."""
    base: list[int]
    """Rows of the base model in each of ten equal parts of this range."""
    adapter: list[int]
    """The same of the adapter."""


class FieldAccuracy(SummaryPart):
    """The share of rows in which one field is right."""

    field: str
    """The field."""
    rows: int
    """Rows whose expected object has the field."""
    base: float
    """The base model."""
    adapter: float
    """The base model with the adapter."""
    reference: float | None = None
    """The reference; null without one."""


class GraderSummary(SummaryPart):
    """The result of one grader."""

    name: str
    """The grader's name."""
    type: str
    """The grader's type."""
    base: Score
    """The base model."""
    adapter: Score
    """The base model with the adapter."""
    reference: Score | None = None
    """The reference; null without one."""
    difference: Difference | None = None
    """Adapter minus base."""
    reference_difference: Difference | None = None
    """Adapter minus reference."""
    confusion: ConfusionByModel | None = None
    """For `label_accuracy`, and a `string_check` of few expected answers."""
    distribution: ScoreDistribution | None = None
    """For graders with scores between 0 and 1; null for an evaluation of an earlier release."""
    fields: list[FieldAccuracy] | None = None
    """For `json_fields`."""


class Promotion(SummaryPart):
    """The result of `promote_if`."""

    grader: str
    """The grader that decides."""
    margin: float
    """The margin of the request."""
    allowed: bool
    """Whether the adapter may be delivered."""
    reason: str
    """The numbers behind the decision."""


class EvaluationSummary(SummaryPart):
    """The result of an evaluation."""

    rows: int
    """Evaluated rows."""
    rows_in_file: int
    """Rows of the file."""
    precision: str
    """The precision of the base model in all answers."""
    device: str
    """The device."""
    seconds: float
    """Duration of the generation."""
    seconds_per_answer: float
    """The same for one answer."""
    answers: AnswersByModel
    """The answers, by model."""
    graders: list[GraderSummary]
    """A result for each grader."""
    promotion: Promotion | None = None
    """The result of `promote_if`; null without it."""
    warnings: list[str] = []
    """What limits the comparison."""
