"""/v1/fine_tuning/jobs/{id}/evaluations: answers of base model and adapter to held-out rows, compared by graders."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.api.auth import JobDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import list_of
from app.api.schemas.evaluations import EvaluationBody, EvaluationRowBody
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import PageDep, list_page
from app.db.tables import Evaluation
from app.domain.evaluations.graders import CreateEvaluation
from app.domain.evaluations.results import RowVerdict
from app.services import resources
from app.services.jobs import evaluations

Filter = Annotated[
    Literal["got_worse", "still_wrong"] | None, Query(description="Only rows with this verdict. Default: all.")
]

router = APIRouter(
    prefix="/v1/fine_tuning/jobs/{job_id}/evaluations", tags=["Evaluations"], route_class=IdempotentRoute
)


@router.post("", response_model=EvaluationBody, summary="Evaluate an adapter")
def create_evaluation(
    body: JsonBody[CreateEvaluation], job: JobDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Returns at once with the status `queued`. A worker checks all rows before it generates the first answer."""
    return evaluations.create(session, app_state.worker_notifier, job, body, app_state.settings.endpoints)


@router.get("", response_model=list_of(EvaluationBody), summary="List evaluations of a job")
def list_evaluations(job: JobDep, session: SessionDep, page: PageDep) -> Any:
    """Newest first."""
    return list_page(resources.page(session, Evaluation, *page, Evaluation.job_id == job.id), page.limit)


@router.get("/{evaluation_id}", response_model=EvaluationBody, summary="Get an evaluation")
def get_evaluation(evaluation_id: str, job: JobDep, session: SessionDep) -> Any:
    """Once it has `succeeded`: the summary, and two files, the results per row as JSON lines and a report in
    Markdown; download them from `/v1/files/{id}/content`."""
    return resources.get(session, Evaluation, evaluation_id, Evaluation.job_id == job.id)


@router.get("/{evaluation_id}/rows", response_model=list_of(EvaluationRowBody), summary="List rows of an evaluation")
def list_evaluation_rows(
    evaluation_id: str, job: JobDep, session: SessionDep, app_state: AppStateDep, page: PageDep, filter: Filter = None
) -> Any:
    """The prompt, the answers and their scores of each row, in the order of the file; none until the evaluation has
    succeeded. A page has at most 8 MiB, so it
    may have fewer rows than `limit`."""
    evaluation = get_evaluation(evaluation_id, job, session)
    rows, has_more = evaluations.read_rows(session, app_state.storage, evaluation, page, filter and RowVerdict(filter))
    return list_page(rows, len(rows)) | {"has_more": has_more}


@router.post("/{evaluation_id}/cancel", response_model=EvaluationBody, summary="Cancel an evaluation")
def cancel_evaluation(evaluation_id: str, job: JobDep, session: SessionDep) -> Any:
    """Cancels at once, also a running one. Cancelling a cancelled evaluation returns it again."""
    return evaluations.cancel(session, get_evaluation(evaluation_id, job, session))
