"""/v1/fine_tuning/jobs/{id}/evaluations: answers of base model and adapter to held-out rows, compared by graders."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.evaluations import EvaluationBody, EvaluationList
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import After, Limit, list_page
from app.domain.evaluations.graders import CreateEvaluation
from app.services.jobs import evaluations

MAX_EVALUATIONS = 100

router = APIRouter(
    prefix="/v1/fine_tuning/jobs/{job_id}/evaluations", tags=["Evaluations"], route_class=IdempotentRoute
)


@router.post("", response_model=EvaluationBody, summary="Evaluate an adapter")
def create_evaluation(
    job_id: str, body: JsonBody[CreateEvaluation], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Returns at once with the status `queued`. A worker checks all rows before it generates the first answer."""
    request = body
    notifier, endpoints = app_state.worker_notifier, app_state.settings.endpoints
    return evaluations.create(session, notifier, caller.project_id, job_id, request, endpoints)


@router.get("", response_model=EvaluationList, summary="List evaluations of a job")
def list_evaluations(
    job_id: str, caller: CallerDep, session: SessionDep, after: After = None, limit: Limit = 20
) -> Any:
    """Newest first."""
    limit = min(limit, MAX_EVALUATIONS)
    page = evaluations.page(session, caller.project_id, job_id, limit + 1, after)
    return list_page(page, limit)


@router.get("/{evaluation_id}", response_model=EvaluationBody, summary="Get an evaluation")
def get_evaluation(job_id: str, evaluation_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Once it has `succeeded`: the summary, and two files, the results per row as JSON lines and a report in
    Markdown; download them from `/v1/files/{id}/content`."""
    return evaluations.get(session, caller.project_id, job_id, evaluation_id)


@router.post("/{evaluation_id}/cancel", response_model=EvaluationBody, summary="Cancel an evaluation")
def cancel_evaluation(job_id: str, evaluation_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Cancels at once, also a running one. Cancelling a cancelled evaluation returns it again."""
    return evaluations.cancel(session, caller.project_id, job_id, evaluation_id)
