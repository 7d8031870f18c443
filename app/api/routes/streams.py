"""Server-sent events: the events of one job, each once and in order, and the changes of a project's jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.auth import authorize, bearer_secret
from app.api.dependencies import AppState, app_state_of
from app.api.openapi import responses
from app.api.routes.polling import read_job_version
from app.api.schemas.records import EventBody
from app.db.fast_reads import keys
from app.db.fast_reads.job_reads import seq_of_event
from app.db.notifications import Subscription
from app.domain.error_text.json_text import as_json
from app.domain.jobs.states import TERMINAL
from app.errors import BadRequest, QuotaExceeded, Unavailable
from app.services.jobs.event_fanout import EventBatch
from app.services.resources import unknown_cursor_error

KEEPALIVE_SECONDS = 15.0
KEY_CHECK_INTERVAL_SECONDS = 30.0  # a revoked key may continue to receive events for this long
COALESCE_SECONDS = 0.1  # in the project's stream, a job that changes often appears at most ten times a second
RETRY_MILLISECONDS = 2_000  # before a browser reconnects
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would buffer the events

LastEventId = Annotated[
    str | None, Header(description="The `id` of the last event received: its number in the stream, or its ftevent id.")
]
AfterEvent = Annotated[
    str | None, Query(description="The same as `Last-Event-ID`, for clients that cannot send the header.")
]

router = APIRouter(prefix="/v1", tags=["Fine-tuning"])


@router.get(
    "/fine_tuning/jobs/{job_id}/events/stream",
    response_class=Response,
    responses=responses.EVENT_STREAM,
    summary="Follow the events of a job",
)
async def follow_job(
    request: Request, job_id: str, last_event_id: LastEventId = None, after: AfterEvent = None
) -> Response:
    """Every event once, oldest first, as server-sent events with their number as `id`; then new events as they happen.

    After the last event of a finished job, the stream sends an event named `end` with the job's status, and closes. A
    client that has the last event already receives 204, at which a browser stops reconnecting.
    """
    app_state: AppState = request.app.state.app_state
    secret = bearer_secret(request)
    version = await read_job_version(app_state, request, secret, job_id)
    seq = await _start_seq(app_state, version, last_event_id or after, "Last-Event-ID" if last_event_id else "after")
    if version.state in TERMINAL and seq and seq == version.event_seq:
        return Response(status_code=204)
    if request.method == "HEAD":
        return _stream_headers()
    return _LimitedStream(request, _events(app_state, secret, job_id, seq))


@router.get(
    "/events/stream",
    response_class=Response,
    responses=responses.CHANGE_STREAM,
    summary="Follow the jobs of a project",
)
async def follow_project(request: Request) -> Response:
    """The id of each job that changes, without the change: read the job to see it. Nothing is replayed.

    `job_id` is null when any job may have changed: at the start, and after the server lost its database connection.
    """
    app_state: AppState = request.app.state.app_state
    secret = bearer_secret(request)
    caller = authorize(request, await keys.find_key(app_state.connections, secret))
    if request.method == "HEAD":
        return _stream_headers()
    return _LimitedStream(request, _changes(app_state, secret, caller.project_id))


class _LimitedStream(EventSourceResponse):
    """A stream that counts against the limit of its key until it ends. Its start raises QuotaExceeded at the limit."""

    def __init__(self, request: Request, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, headers=HEADERS)
        self._limiter = app_state_of(request).stream_limiter
        self._key_id = request.state.key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limiter.per_owner
        if not self._limiter.has_room(self._key_id):
            text = f"max_event_streams: this API key has {limit:,} open event streams, the limit; close one"
            raise QuotaExceeded(text, "max_event_streams")
        async with self._limiter.permit(self._key_id):
            await super().__call__(scope, receive, send)


def _stream_headers() -> Response:
    """The response to HEAD: the headers of a stream without events."""
    return EventSourceResponse(iter(()), headers=HEADERS)


def render_event_bytes(row: Any) -> bytes:
    """One event in the format of the stream; the bytes are shared by all its readers."""
    return format_sse_event(data_str=EventBody.model_validate(row).model_dump_json(), id=str(row.seq))


async def _events(app_state: AppState, secret: str, job_id: str, seq: int) -> AsyncIterator[bytes]:
    is_key_valid = _key_check(app_state, secret)
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    with app_state.notifications.subscribe(job_id) as subscription, app_state.event_fanout.follow(job_id) as feed:
        notified_at = asyncio.get_running_loop().time()
        while await is_key_valid():
            with suppress(Unavailable):  # wait for a database that restarts
                while (part := await feed.read_after(seq, notified_at)).events or part.final_state:
                    yield b"".join(part.events) + _end_event(part)
                    seq = part.last_seq
                    if part.final_state:
                        return
            notified_at = await _wait_for_notification(subscription)
            if subscription.is_closed:
                return
            if not subscription.take_changed_jobs():
                yield KEEPALIVE_COMMENT


async def _changes(app_state: AppState, secret: str, project_id: str) -> AsyncIterator[bytes]:
    is_key_valid = _key_check(app_state, secret)
    with app_state.notifications.subscribe(project_id) as subscription:
        yield format_sse_event(retry=RETRY_MILLISECONDS) + _change_event(None)
        while await is_key_valid():
            if await subscription.wait(KEEPALIVE_SECONDS):
                await asyncio.sleep(COALESCE_SECONDS)
                yield b"".join(_change_event(job_id) for job_id in subscription.take_changed_jobs())
            elif subscription.is_closed:
                return
            else:
                yield KEEPALIVE_COMMENT


async def _wait_for_notification(subscription: Subscription) -> float:
    """The time of the next notification. On a timeout, a recent time: a read of the last seconds is fresh enough."""
    if await subscription.wait(KEEPALIVE_SECONDS):
        return subscription.notified_at
    return asyncio.get_running_loop().time() - KEEPALIVE_SECONDS / 2


def _end_event(part: EventBatch) -> bytes:
    if part.final_state is None:
        return b""
    return format_sse_event(event="end", data_str=json.dumps({"status": part.final_state}))


def _change_event(job_id: str | None) -> bytes:
    return format_sse_event(data_str=json.dumps({"object": "fine_tuning.job.changed", "job_id": job_id}))


def _key_check(app_state: AppState, secret: str) -> Callable[[], Any]:
    """A check whether the key is valid, cached for half a minute. An unreachable database does not end a stream."""
    now = asyncio.get_running_loop().time
    checked_at = now()

    async def is_key_valid() -> bool:
        nonlocal checked_at
        if now() - checked_at < KEY_CHECK_INTERVAL_SECONDS:
            return True
        with suppress(Unavailable):
            key = await keys.find_key(app_state.connections, secret)
            if key is None or key.refusal is not None:
                return False
            checked_at = now()
        return True

    return is_key_valid


async def _start_seq(app_state: AppState, version: Any, event_id: str | None, param: str) -> int:
    """The number of the event after which the stream starts. Raises BadRequest for an unknown event."""
    if event_id is None:
        return 0
    if event_id.isdecimal() and event_id.isascii() and len(event_id) < 19:
        seq: int | None = int(event_id)
    else:
        seq = await seq_of_event(app_state.connections, version.id, event_id)
    if seq is None or seq > version.event_seq:
        if param == "after":
            raise unknown_cursor_error("event", event_id)
        raise BadRequest(
            f"Last-Event-ID: this job has no event {as_json(event_id)}; send the id of the last event that you "
            "received, or omit the header for all events",
            param,
        )
    return seq
