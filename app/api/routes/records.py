"""/v1/fine_tuning/jobs/{id}/events, /checkpoints, /metrics, /attempts and /logs: the records of a job.

/v1/fine_tuning/loss_curves: the loss curves of several jobs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from starlette.responses import Response

from app.api.auth import CallerDep, JobDep
from app.api.dependencies import SessionDep
from app.api.openapi import responses
from app.api.schemas.common import list_of
from app.api.schemas.records import AttemptList, CheckpointBody, EventBody, LossCurveList, StepMetricsBody
from app.api.transport.etags import checkpoints_etag, etag_headers, events_etag, log_etag, not_modified
from app.api.transport.file_response import matches_etag
from app.api.transport.pagination import list_page, paged
from app.db.tables import Attempt, JobEvent
from app.domain.jobs.events import results_csv
from app.errors import BadRequest
from app.services import resources
from app.services.jobs import records
from app.services.resources import Page

MAX_CURVES = 100
MAX_ATTEMPT = (1 << 31) - 1  # the maximum of the column

EventPageDep = Annotated[Page, paged(maximum=1_000)]
CheckpointPageDep = Annotated[Page, paged(default=10)]
Form = Annotated[Literal["json", "csv"], Query(alias="format", description="json or csv.")]
MaxPoints = Annotated[
    int | None,
    Query(
        ge=2,
        le=100_000,
        description="Maximum number of steps; the selection keeps the shape of the loss curve, both ends, and from 100 "
        "on the lowest and the highest loss, gradient norm, speed and memory.",
    ),
]
AttemptNumber = Annotated[
    int | None, Query(ge=1, le=MAX_ATTEMPT, description="The number of the attempt. Default: the last one.")
]
Lines = Annotated[int | None, Query(ge=1, description="Only this many lines from the end.")]

JobIds = Annotated[
    str,
    Query(
        alias="jobs",
        description=f"Ids of at most {MAX_CURVES} jobs, separated by commas.",
    ),
]
CurvePoints = Annotated[
    int, Query(alias="max_points", ge=2, le=200, description="Maximum number of points of a curve.")
]

router = APIRouter(prefix="/v1/fine_tuning", tags=["Fine-tuning"])


@router.get(
    "/jobs/{job_id}/events",
    response_model=list_of(EventBody),
    responses=responses.NOT_MODIFIED,
    summary="List events of a job",
)
def list_events(
    request: Request,
    response: Response,
    job: JobDep,
    session: SessionDep,
    page: EventPageDep,
    type: Annotated[
        Literal["message", "metrics"] | None, Query(description="Only events of this type. Default: both.")
    ] = None,
) -> Any:
    """Newest first: messages, and the metrics of every step."""
    if unchanged := _unchanged(request, response, events_etag(job.event_seq)):
        return unchanged
    only = (JobEvent.type == type,) if type is not None else ()
    return list_page(resources.page(session, JobEvent, *page, JobEvent.job_id == job.id, only=only), page.limit)


@router.get(
    "/jobs/{job_id}/checkpoints",
    response_model=list_of(CheckpointBody),
    responses=responses.NOT_MODIFIED,
    summary="List checkpoints of a job",
)
def list_checkpoints(
    request: Request, response: Response, job: JobDep, session: SessionDep, page: CheckpointPageDep
) -> Any:
    """The last three, latest first. `result_files` are the adapter's files, `adapter_archive_file_id` is their tar."""
    if unchanged := _unchanged(request, response, checkpoints_etag(job.event_seq, job.version)):
        return unchanged
    return list_page(records.checkpoint_page(session, job, page), page.limit)


@router.get(
    "/jobs/{job_id}/metrics",
    response_model=StepMetricsBody,
    responses=responses.METRICS,
    summary="Get the metrics of a job",
)
def get_metrics(
    request: Request,
    response: Response,
    job: JobDep,
    session: SessionDep,
    form: Form = "json",
    max_points: MaxPoints = None,
) -> Any:
    """A row per step, oldest first; for a repeated step, the latest run. CSV has the columns of the results file."""
    if unchanged := _unchanged(request, response, etag := events_etag(job.event_seq)):
        return unchanged
    rows, total = records.metrics(session, job.id, max_points)
    if form == "csv":
        return Response(results_csv(rows), headers=etag_headers(etag), media_type="text/csv")
    return StepMetricsBody(fine_tuning_job_id=job.id, total=total, data=rows)


@router.get("/loss_curves", response_model=LossCurveList, summary="Get the loss curves of several jobs")
def get_loss_curves(caller: CallerDep, session: SessionDep, jobs: JobIds, max_points: CurvePoints = 40) -> Any:
    """For lists of jobs: a few evenly spaced steps of each, up to the last one."""
    job_ids = list(dict.fromkeys(word.strip() for word in jobs.split(",") if word.strip()))
    if not 1 <= len(job_ids) <= MAX_CURVES:
        raise BadRequest(f"jobs: {len(job_ids)} ids given; allowed are 1 to {MAX_CURVES}", "jobs")
    return {"data": records.loss_curves(session, caller.project_id, job_ids, max_points)}


@router.get("/jobs/{job_id}/attempts", response_model=AttemptList, summary="List the attempts of a job")
def list_attempts(job: JobDep, session: SessionDep) -> Any:
    """Each check of the files and each training by a worker, oldest first, with the reason for which it ended."""
    return {"data": session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)).all()}


@router.get("/jobs/{job_id}/logs", response_class=Response, responses=responses.LOG, summary="Get the log of a job")
def get_logs(
    request: Request, job: JobDep, session: SessionDep, attempt: AttemptNumber = None, lines: Lines = None
) -> Response:
    """The last 64 KiB of the trainer's standard error; empty before its first output.

    Updated every ten seconds during training and at the end of each attempt. The logs of the last three are kept.
    """
    log = records.log(session, job.id, attempt)
    if log is None:
        return Response(b"", media_type="text/plain")
    etag = log_etag(log.attempt, log.updated_at)
    headers = etag_headers(etag) | {"X-Attempt": str(log.attempt), "X-Cut-Bytes": str(log.cut_bytes)}
    if matches_etag(request.headers, etag):
        return Response(status_code=304, headers=headers)
    text = log.text if lines is None else "\n".join(log.text.rstrip("\n").split("\n")[-lines:]) + "\n"
    return Response(text, headers=headers, media_type="text/plain")


def _unchanged(request: Request, response: Response, etag: str) -> Response | None:
    """A 304 if the client has this ETag; else None, and `response` gets the ETag."""
    if matches_etag(request.headers, etag):
        return not_modified(etag)
    response.headers.update(etag_headers(etag))
    return None
