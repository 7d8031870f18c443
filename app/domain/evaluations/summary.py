"""The summary of an evaluation, as the worker stores it and the API returns it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

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
    """Answers that ended at `max_new_tokens`."""
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
    """For `label_accuracy`."""
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
