"""/v1/fine_tuning/jobs/{id}/adapter and /exports: the trained weights, and merged models and GGUF files."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import JobDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.openapi import responses
from app.api.schemas.common import Deleted, deleted, list_of
from app.api.schemas.exports import ExportBody
from app.api.schemas.records import AdapterBody
from app.api.transport.file_response import content_response
from app.api.transport.json_body import OptionalJsonBodyDep, RequestBody
from app.api.transport.pagination import PageDep, list_page
from app.domain.artifacts.exports import CreateExport
from app.services.jobs import exports, records

CreateExportBody = Annotated[OptionalJsonBodyDep, RequestBody(CreateExport)]

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/exports", tags=["Exports"], route_class=IdempotentRoute)


@router.post("", response_model=ExportBody, summary="Export a model")
def create_export(body: CreateExportBody, job: JobDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Make a merged model or a GGUF file of the result, or of a kept `checkpoint`. Repeated calls return one export."""
    return exports.create(session, app_state.worker_notifier, job, body)


@router.get("", response_model=list_of(ExportBody), summary="List exports of a job")
def list_exports(job: JobDep, session: SessionDep, page: PageDep) -> Any:
    """Newest first."""
    return list_page(exports.page(session, job, page), page.limit)


@router.get("/{export_id}", response_model=ExportBody, summary="Get an export")
def get_export(export_id: str, job: JobDep, session: SessionDep) -> Any:
    """An export that has `succeeded` lists its files with SHA-256; download them from `/v1/files/{id}/content`."""
    return exports.get(session, job, export_id)


@router.delete("/{export_id}", response_model=Deleted, summary="Delete an export")
def delete_export(export_id: str, job: JobDep, session: SessionDep) -> Any:
    """Deletes its files too. A running export is cancelled."""
    exports.delete(session, exports.get(session, job, export_id))
    return deleted(ExportBody, export_id)


adapters = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/adapter", tags=["Adapters"])


@adapters.get("", response_model=AdapterBody, summary="Get the adapter of a job")
def get_adapter(job: JobDep, session: SessionDep) -> Any:
    """Ids, sizes and SHA-256 of its files and of the archive; 404 until the job has succeeded.

    An evaluation replaces card, manifest and archive by those with its result; the ids before are readable for a day.
    """
    return records.get_adapter(session, job)


@adapters.get("/archive", summary="Download the adapter", response_class=Response, responses=responses.ARCHIVE)
def get_archive(request: Request, job: JobDep, session: SessionDep, app_state: AppStateDep) -> Response:
    """A deterministic tar; its SHA-256 is the job's `adapter.sha256`. Range and ETag as for any file."""
    archive = records.get_adapter(session, job).archive
    return content_response(app_state.storage, archive, request)
