"""/v1/workers and /v1/queue: live workers, running jobs, and queued jobs in their order."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.schemas.common import list_of
from app.api.schemas.queue import QueueBody, WorkerBody, without_admin_fields
from app.api.transport.pagination import list_page
from app.services import queue

MAX_WAITING = 1_000

router = APIRouter(prefix="/v1", tags=["Queue"])


@router.get("/workers", response_model=list_of(WorkerBody), summary="List workers")
def list_workers(caller: CallerDep, session: SessionDep) -> Any:
    """Workers with a heartbeat within the last minute. Names, hosts and other projects' jobs are for admin keys."""
    rows = queue.view_workers(session, caller.project_id, caller.is_admin)
    return list_page(rows if caller.is_admin else [without_admin_fields(row) for row in rows], len(rows))


@router.get("/queue", response_model=QueueBody, summary="Show the queue")
def show_queue(
    caller: CallerDep,
    session: SessionDep,
    app_state: AppStateDep,
    limit: Annotated[int, Query(ge=1, description="How many queued jobs to show.")] = 100,
) -> Any:
    """Jobs of the project one by one, other projects' jobs as counts; an admin key sees all jobs.

    Positions and start times are a forecast.
    """
    limit = min(limit, MAX_WAITING)
    half_life_seconds = app_state.settings.fair_share_half_life_seconds
    return queue.view_queue(session, caller.project_id, caller.is_admin, limit, half_life_seconds)
