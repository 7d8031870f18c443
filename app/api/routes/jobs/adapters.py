"""/v1/fine_tuning/jobs/{id}/adapter: the trained weights, an extension of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.openapi import responses
from app.api.schemas.records import AdapterBody
from app.api.transport.file_response import content_response
from app.services.jobs import records

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/adapter", tags=["Adapters"])


@router.get("", response_model=AdapterBody, summary="Get the adapter of a job")
def get_adapter(job_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Ids, sizes and SHA-256 of its files and of the archive; 404 until the job has succeeded."""
    return records.get_adapter(session, caller.project_id, job_id)


@router.get("/archive", summary="Download the adapter", response_class=Response, responses=responses.ARCHIVE)
def get_archive(
    job_id: str, request: Request, caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Response:
    """A deterministic tar; its SHA-256 is the job's `adapter.sha256`. Range and ETag as for any file."""
    archive = records.get_adapter(session, caller.project_id, job_id).archive
    return content_response(app_state.storage, archive, request)
