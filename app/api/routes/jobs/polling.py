"""GET /v1/fine_tuning/jobs/{id}: the read that is polled, so it has no thread, no ORM and no response model.

The ETag counts what changes in the body, the place in the queue included. With `?wait=` the answer comes when it does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.auth import authorize, bearer_secret
from app.api.dependencies import AppState
from app.api.openapi.examples import all_operations
from app.api.schemas.jobs.jobs import JobBody, render_job
from app.api.transport.byte_ranges import matches_etag
from app.api.transport.disconnect import close_on_disconnect
from app.api.transport.etags import etag_headers, job_etag, not_modified, queue_position_tag
from app.db.fast_reads.jobs import job_by_key, version_by_key
from app.db.fast_reads.pool import AsyncConnections
from app.domain.jobs.states import TERMINAL, JobState
from app.services.jobs.jobs import job_not_found

MAX_WAIT_SECONDS = 60.0  # below the idle limit of the usual proxies
LOOK_SECONDS = 15.0  # even without a notification: a place in the queue changes by other rows, too

Wait = Annotated[
    float,
    Query(
        ge=0,
        description="Seconds to wait for a change of the job, at most 60. Since the ETag in If-None-Match, if there is "
        "one (a job that has changed already is answered at once; 304 when time is over), else since now.",
    ),
]

Read = Callable[[AsyncConnections, str, str], Coroutine[Any, Any, Any]]

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])


@router.get("/{job_id}", response_model=JobBody, responses=all_operations.NOT_MODIFIED, summary="Get a job")
async def get_job(request: Request, job_id: str, wait: Wait = 0) -> Response:
    """Made to be polled: send the last `ETag` as `If-None-Match`, and an unchanged job is a 304 without a body."""
    app_state: AppState = request.app.state.app_state
    secret = bearer_secret(request)
    since = None
    if wait:
        since = await _until_changed(app_state, request, secret, job_id, min(wait, MAX_WAIT_SECONDS))
    if "if-none-match" in request.headers:
        etag = _etag(app_state, await version_of(app_state, request, secret, job_id, since))
        if matches_etag(request.headers, etag):
            return not_modified(etag)
    row = _known(request, await _look(app_state, job_by_key, secret, job_id, since), job_id)
    rendered = render_job(
        row, app_state.settings.organization, row.queue_position, row.adapter_file_ids, row.expected_start_at,
        row.waiting_for,
    )  # fmt: skip
    body = json.dumps(rendered, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(body, headers=etag_headers(_etag(app_state, row)), media_type="application/json")


async def version_of(
    app_state: AppState, request: Request, secret: str, job_id: str, since: float | None = None
) -> Any:
    """What tells whether a job has changed. Raises InvalidApiKey, RateLimited, MissingScope, NotFound, Unavailable."""
    return _known(request, await _look(app_state, version_by_key, secret, job_id, since), job_id)


async def _until_changed(
    app_state: AppState, request: Request, secret: str, job_id: str, seconds: float
) -> float | None:
    """Holds neither a thread nor a connection. A job that is over is waited for only by who has it already.

    When the change was heard of: a read that began since then knows it. None where there was none.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    with app_state.notifications.subscribe(job_id) as subscription:
        version = await version_of(app_state, request, secret, job_id)
        first = _etag(app_state, version)
        has_it = "if-none-match" in request.headers
        if (version.state in TERMINAL and not has_it) or (has_it and not matches_etag(request.headers, first)):
            return None
        async with close_on_disconnect(request, subscription):
            while (left := deadline - now()) > 0 and not subscription.is_closed:
                subscription.include_queue(version.state == JobState.QUEUED)
                is_heard = await subscription.wait(min(left, LOOK_SECONDS))
                if is_heard or left > LOOK_SECONDS:
                    since = subscription.notified_at if is_heard else None
                    version = await version_of(app_state, request, secret, job_id, since)
                    if _etag(app_state, version) != first:
                        return since
    return None


async def _look(app_state: AppState, read: Read, secret: str, job_id: str, since: float | None) -> Any:
    """Thousands may have heard of one change: with one key they share the read that began after it."""
    if since is None:
        return await read(app_state.connections, secret, job_id)
    return await app_state.notifications.single_flight.do(
        (read, secret, job_id), since, lambda: read(app_state.connections, secret, job_id)
    )


def _etag(app_state: AppState, row: Any) -> str:
    place = queue_position_tag(row.queue_position, row.expected_start_at, row.waiting_for)
    return job_etag(app_state.settings.organization, row.version, place)


def _known(request: Request, row: Any, job_id: str) -> Any:
    """A request is admitted once, and counts once; a key that is revoked while it waits ends it."""
    if not hasattr(request.state, "caller") or row is None or row.refusal is not None:
        request.state.caller = authorize(request, row)
    if row.id is None:
        raise job_not_found(job_id)
    return row
