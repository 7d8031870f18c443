"""Bodies of evaluations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, JobPart, UnixTime
from app.domain.evaluations.graders import EvaluationPlan, EvaluationSettings
from app.domain.evaluations.headline import Headline
from app.domain.evaluations.results import RowVerdict
from app.domain.evaluations.summary import EvaluationSummary


class EvaluationError(Body):
    code: str
    """The reason: see the page of evaluations."""
    message: str


class EvaluationProgress(Body):
    answers: int
    """Generated answers, of both models."""
    total_answers: int
    """Twice the number of rows."""


class EvaluationBody(JobPart):
    """Base model and adapter answer the same held-out rows on one loaded base model; graders compare the answers."""

    object: Literal["fine_tuning.job.evaluation"] = "fine_tuning.job.evaluation"
    started_at: UnixTime | None
    """Seconds since 1970; null until a worker has started it."""
    finished_at: UnixTime | None
    """Seconds since 1970; null until it has ended."""
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = Field(validation_alias="state")
    """The state."""
    file: str = Field(validation_alias="file_id")
    """The file of held-out rows."""
    model: str
    """The evaluated model: the job's result, or one of its checkpoints."""
    checkpoint: str = Field(validation_alias="checkpoint_id")
    """The evaluated checkpoint."""
    step_number: int
    base_model: str
    settings: EvaluationSettings
    """The requested evaluation and its graders, with all defaults."""
    plan: EvaluationPlan
    """Rows, tokens and time."""
    progress: EvaluationProgress | None
    """The number of answers so far; null before the first."""
    estimated_finish: UnixTime | None = Field(validation_alias="expected_finish")
    """When the last answer is expected, in seconds since 1970; before the first one, an upper estimate. Null unless it
    runs, and while it is unknown."""
    attempts: int = Field(validation_alias="attempt")
    """How often a worker has started it."""
    precision: str | None
    """The precision in which the base model answered; null before."""
    results_file: str | None = Field(validation_alias="results_file_id")
    """Questions, answers and scores: a JSON object per row."""
    report_file: str | None = Field(validation_alias="report_file_id")
    """A report in Markdown."""
    headline: Headline | None
    """The main result in numbers and in a sentence; null until it has succeeded, and without graders."""
    summary: EvaluationSummary | None
    """The result; null until it has succeeded."""
    error: EvaluationError | None
    """Why it failed; null in every other state."""


class RowAnswer(Body):
    """The answer of one model."""

    text: str | None
    """The answer; null without one."""
    tokens: int | None
    """Its tokens; null if they are unknown."""
    cut: bool
    """Whether it ended at the limit of new tokens."""
    error: str | None
    """Why there is no answer."""


class EvaluationRowBody(Body):
    """One held-out row with the answers to it and their scores."""

    object: Literal["fine_tuning.job.evaluation.row"] = "fine_tuning.job.evaluation.row"
    id: str
    """The number of the row among the evaluated ones, from 1 on."""
    line: int
    """The line in the file of held-out rows."""
    verdict: RowVerdict
    """By the grader of the headline. `got_worse`: the adapter's score is below that of the base model. Of the others,
    `right`: it is the highest possible one, or at least the grader's `pass_threshold`; `still_wrong`: it is not;
    `unscored`: a score is missing."""
    messages: list[dict[str, Any]]
    """The messages of the prompt; empty for a plain prompt, and for an evaluation of an earlier release."""
    question: str
    """The plain prompt, or the last message."""
    reference_answer: Any
    """The expected answer; null if the row has none."""
    answers: dict[str, RowAnswer]
    """The answers by model: base, adapter, and reference if there is one."""
    scores: dict[str, dict[str, float | None]]
    """The scores by grader and model; null is a missing one."""
    errors: dict[str, dict[str, str]]
    """The reasons of missing scores, and of some that are 0, by grader and model."""
