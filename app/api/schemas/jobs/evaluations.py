"""Request and response bodies of evaluations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, unix_seconds, unix_seconds_or_none
from app.db.tables import Evaluation
from app.domain.evaluations.graders import EvaluationRequest, EvaluationSettings
from app.domain.evaluations.plan import EvaluationPlan
from app.domain.evaluations.summary import EvaluationSummary


class CreateEvaluation(EvaluationRequest):
    checkpoint: Annotated[str | None, Field(max_length=256)] = None
    """Id or model name of a kept checkpoint. Default: the job's result."""


class EvaluationError(Body):
    code: str
    """The reason: see the page of evaluations."""
    message: str


class EvaluationProgress(Body):
    answers: int
    """Generated answers, of both models."""
    total_answers: int
    """Twice the number of rows."""


class EvaluationBody(Body):
    """Base model and adapter answer the same held-out rows on one loaded base model; graders compare the answers."""

    id: str
    object: Literal["fine_tuning.job.evaluation"]
    created_at: int
    started_at: int | None
    """Seconds since 1970; null until a worker has started it."""
    finished_at: int | None
    """Seconds since 1970; null until it has ended."""
    fine_tuning_job_id: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    """The state."""
    file: str
    """The file of held-out rows."""
    model: str
    """The evaluated model: the job's result, or one of its checkpoints."""
    checkpoint: str
    """The evaluated checkpoint."""
    step_number: int
    base_model: str
    settings: EvaluationSettings
    """The requested evaluation and its graders, with all defaults."""
    plan: EvaluationPlan
    """Rows, tokens and time."""
    progress: EvaluationProgress | None
    """The number of answers so far; null before the first."""
    attempts: int
    """How often a worker has started it."""
    precision: str | None
    """The precision in which the base model answered; null before."""
    results_file: str | None
    """Questions, answers and scores: a JSON object per row."""
    report_file: str | None
    """A report in Markdown."""
    summary: EvaluationSummary | None
    """The result; null until it has succeeded."""
    error: EvaluationError | None
    """Why it failed; null in every other state."""


class EvaluationList(ListBody):
    data: list[EvaluationBody]


def render_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "id": evaluation.id,
        "object": "fine_tuning.job.evaluation",
        "created_at": unix_seconds(evaluation.created_at),
        "started_at": unix_seconds_or_none(evaluation.started_at),
        "finished_at": unix_seconds_or_none(evaluation.finished_at),
        "fine_tuning_job_id": evaluation.job_id,
        "status": evaluation.state,
        "file": evaluation.file_id,
        "model": evaluation.model,
        "checkpoint": evaluation.checkpoint_id,
        "step_number": evaluation.step_number,
        "base_model": evaluation.base_model,
        "settings": evaluation.settings,
        "plan": evaluation.plan,
        "progress": evaluation.progress,
        "attempts": evaluation.attempt,
        "precision": evaluation.precision,
        "results_file": evaluation.results_file_id,
        "report_file": evaluation.report_file_id,
        "summary": evaluation.summary,
        "error": (
            {"code": evaluation.error_code, "message": evaluation.error_message or ""}
            if evaluation.error_code
            else None
        ),
    }
