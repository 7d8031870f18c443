"""Bodies of evaluations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.api.schemas.common import Body, JobPart, UnixTime
from app.domain.evaluations.graders import EvaluationPlan, EvaluationSettings
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
    attempts: int = Field(validation_alias="attempt")
    """How often a worker has started it."""
    precision: str | None
    """The precision in which the base model answered; null before."""
    results_file: str | None = Field(validation_alias="results_file_id")
    """Questions, answers and scores: a JSON object per row."""
    report_file: str | None = Field(validation_alias="report_file_id")
    """A report in Markdown."""
    summary: EvaluationSummary | None
    """The result; null until it has succeeded."""
    error: EvaluationError | None
    """Why it failed; null in every other state."""
