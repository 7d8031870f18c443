"""/v1/organization/status, for admins: the state of the whole service."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.schemas.operations import StatusBody
from app.services.operations import status

router = APIRouter(prefix="/v1/organization/status", tags=["Health"])


@router.get("", response_model=StatusBody, summary="Show the status of the service")
def show_status(caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Whether the service is healthy and what to do if not; workers, queue, the jobs that failed within the last day,
    storage by project, and the last backup."""
    checks, settings = app_state.health_checks.run(), app_state.settings
    return status.view(session, caller.project_id, checks, settings.data_dir, settings.encryption_keys)
