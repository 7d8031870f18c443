"""GET /v1/fine_tuning/jobs/{id}: the call that clients poll, so it uses no thread and no ORM.

The ETag covers everything that changes in the body, including the queue position. With `?wait=` the call is a long
poll.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.auth import authorize, bearer_secret
from app.api.dependencies import AppState
from app.api.openapi import responses
from app.api.schemas.jobs import JobBody
from app.api.transport.disconnect import close_on_disconnect
from app.api.transport.etags import job_etag, json_response, not_modified
from app.api.transport.file_response import matches_etag
from app.db.fast_reads.job_reads import JOB_BY_KEY, VERSION_BY_KEY
from app.db.fast_reads.keys import fetch_with_key
from app.domain.jobs.states import TERMINAL, JobState
from app.services.jobs.jobs import job_not_found

MAX_WAIT_SECONDS = 60.0  # below the idle timeout of common proxies
READ_INTERVAL_SECONDS = 15.0  # without a notification: changes of other rows move the queue position, too

Wait = Annotated[
    float,
    Query(
        ge=0,
        description="Seconds to wait for a change of the job, at most 60. With If-None-Match, since that ETag: "
        "a job that has changed already is returned at once, and a timeout is a 304. Otherwise a change since now.",
    ),
]


class PolledRoute(APIRoute):
    """Calls the endpoint without FastAPI's dependencies, a third of the time of a poll, unless there is a query."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        handle_with_query = self.app

        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["query_string"]:
                await handle_with_query(scope, receive, send)
                return
            response = await endpoint(Request(scope, receive, send), **scope["path_params"])
            await response(scope, receive, send)

        self.app = handle


router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], route_class=PolledRoute)


@router.get("/{job_id}", response_model=JobBody, responses=responses.NOT_MODIFIED, summary="Get a job")
async def get_job(request: Request, job_id: str, wait: Wait = 0) -> Response:
    """Suited to polling: send the last `ETag` as `If-None-Match`; an unchanged job is a 304 without a body."""
    app_state: AppState = request.app.state.app_state
    secret = bearer_secret(request)
    if wait:
        await _wait_for_change(app_state, request, secret, job_id, min(wait, MAX_WAIT_SECONDS))
    if "if-none-match" in request.headers:
        etag = _etag(app_state, await read_job_version(app_state, request, secret, job_id))
        if matches_etag(request.headers, etag):
            return not_modified(etag)
    row = _authorized_row(request, await fetch_with_key(app_state.connections, JOB_BY_KEY, secret, job_id), job_id)
    body = JobBody.of_row(row, app_state.settings.organization)
    return json_response(_etag(app_state, row), body)


async def read_job_version(app_state: AppState, request: Request, secret: str, job_id: str) -> Any:
    """The columns that change whenever the job changes.

    Raises InvalidApiKey, RateLimited, MissingScope, NotFound, Unavailable.
    """
    row = await fetch_with_key(app_state.connections, VERSION_BY_KEY, secret, job_id)
    return _authorized_row(request, row, job_id)


async def _wait_for_change(app_state: AppState, request: Request, secret: str, job_id: str, seconds: float) -> None:
    """Wait for a change of the job, without holding a thread or a database connection.

    For a finished job it waits only if the client has its ETag already.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    with app_state.notifications.subscribe(job_id) as subscription:
        version = await read_job_version(app_state, request, secret, job_id)
        initial_etag = _etag(app_state, version)
        is_conditional = "if-none-match" in request.headers
        if (version.state in TERMINAL and not is_conditional) or (
            is_conditional and not matches_etag(request.headers, initial_etag)
        ):
            return
        async with close_on_disconnect(request, subscription):
            while (left_seconds := deadline - now()) > 0 and not subscription.is_closed:
                subscription.include_queue(version.state == JobState.QUEUED)
                is_notified = await subscription.wait(min(left_seconds, READ_INTERVAL_SECONDS))
                if is_notified or left_seconds > READ_INTERVAL_SECONDS:
                    version = await read_job_version(app_state, request, secret, job_id)
                    if _etag(app_state, version) != initial_etag:
                        return


def _etag(app_state: AppState, row: Any) -> str:
    return job_etag(app_state.settings.organization, row)


def _authorized_row(request: Request, row: Any, job_id: str) -> Any:
    """The row, after the check of key and job.

    A request is authorized and counted against the rate limit once; a key that is revoked during a long poll ends it.
    """
    if not hasattr(request.state, "caller") or row is None or row.refusal is not None:
        request.state.caller = authorize(request, row)
    if row.id is None:
        raise job_not_found(job_id)
    return row
