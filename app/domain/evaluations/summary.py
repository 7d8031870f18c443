"""The summary of an evaluation, as the worker stores it and the API returns it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["paired_wilson", "paired_bootstrap"]


class SummaryPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerCounts(SummaryPart):
    """The answers of one model."""

    answered: Annotated[int, Field(description="Rows with an answer.")]
    failed: Annotated[int, Field(description="Rows without an answer; the results file has the reason of each.")]
    cut: Annotated[int, Field(description="Answers that ended at `max_new_tokens`.")]
    empty: Annotated[int, Field(description="Answers without any text.")]
    tokens: Annotated[int | None, Field(description="Generated tokens; null if the endpoint does not report them.")]


class AnswersByModel(SummaryPart):
    """The answers by model."""

    base: Annotated[AnswerCounts, Field(description="The base model.")]
    adapter: Annotated[AnswerCounts, Field(description="The base model with the adapter.")]
    reference: Annotated[AnswerCounts | None, Field(description="The reference; null without one.")] = None


class Score(SummaryPart):
    """The scores of one model by one grader."""

    mean: Annotated[float | None, Field(description="Mean over the scored rows; null if no row has a score.")]
    rows: Annotated[int, Field(description="Rows with a score.")]
    failed_rows: Annotated[int, Field(description="Rows without a score; the results file has the reason of each.")]
    pass_rate: Annotated[float | None, Field(description="Share of the scores from `pass_threshold` on, if set.")] = (
        None
    )


class Difference(SummaryPart):
    """The mean difference of two models' scores of the same rows."""

    mean: Annotated[float, Field(description="The mean difference.")]
    low: Annotated[float | None, Field(description="Lower bound of the 95 % interval; null for fewer than two rows.")]
    high: Annotated[float | None, Field(description="Upper bound of the 95 % interval.")]
    rows: Annotated[int, Field(description="Rows with a score of both models.")]
    method: Annotated[
        Method,
        Field(description="`paired_wilson` for scores of 0 and 1 (Newcombe 1998, method 10), else `paired_bootstrap`."),
    ]


class ConfusionMatrix(SummaryPart):
    """How often each label was answered, by the expected label."""

    labels: Annotated[list[str], Field(description="The labels: the rows, and all columns but the last.")]
    counts: Annotated[
        list[list[int]],
        Field(description="A row for each expected label; the last column counts answers that are none of the labels."),
    ]


class ConfusionByModel(SummaryPart):
    """The confusion matrices by model."""

    base: Annotated[ConfusionMatrix, Field(description="The base model.")]
    adapter: Annotated[ConfusionMatrix, Field(description="The base model with the adapter.")]
    reference: Annotated[ConfusionMatrix | None, Field(description="The reference; null without one.")] = None


class FieldAccuracy(SummaryPart):
    """The share of rows in which one field is right."""

    field: Annotated[str, Field(description="The field.")]
    rows: Annotated[int, Field(description="Rows whose expected object has the field.")]
    base: Annotated[float, Field(description="The base model.")]
    adapter: Annotated[float, Field(description="The base model with the adapter.")]
    reference: Annotated[float | None, Field(description="The reference; null without one.")] = None


class GraderSummary(SummaryPart):
    """The result of one grader."""

    name: Annotated[str, Field(description="The grader's name.")]
    type: Annotated[str, Field(description="The grader's type.")]
    base: Annotated[Score, Field(description="The base model.")]
    adapter: Annotated[Score, Field(description="The base model with the adapter.")]
    reference: Annotated[Score | None, Field(description="The reference; null without one.")] = None
    difference: Annotated[Difference | None, Field(description="Adapter minus base.")] = None
    reference_difference: Annotated[Difference | None, Field(description="Adapter minus reference.")] = None
    confusion: Annotated[ConfusionByModel | None, Field(description="For `label_accuracy`.")] = None
    fields: Annotated[list[FieldAccuracy] | None, Field(description="For `json_fields`.")] = None


class Promotion(SummaryPart):
    """The result of `promote_if`."""

    grader: Annotated[str, Field(description="The grader that decides.")]
    margin: Annotated[float, Field(description="The margin of the request.")]
    allowed: Annotated[bool, Field(description="Whether the adapter may be delivered.")]
    reason: Annotated[str, Field(description="The numbers behind the decision.")]


class EvaluationSummary(SummaryPart):
    """The result of an evaluation."""

    rows: Annotated[int, Field(description="Evaluated rows.")]
    rows_in_file: Annotated[int, Field(description="Rows of the file.")]
    precision: Annotated[str, Field(description="The precision of the base model in all answers.")]
    device: Annotated[str, Field(description="The device.")]
    seconds: Annotated[float, Field(description="Duration of the generation.")]
    seconds_per_answer: Annotated[float, Field(description="The same for one answer.")]
    answers: Annotated[AnswersByModel, Field(description="The answers by model.")]
    graders: Annotated[list[GraderSummary], Field(description="A result for each grader.")]
    promotion: Annotated[Promotion | None, Field(description="The result of `promote_if`; null without it.")] = None
    warnings: Annotated[list[str], Field(description="What limits the comparison.")] = []
