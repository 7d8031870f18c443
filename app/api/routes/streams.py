"""Server-sent events: what happens to one job, each event once and in order, and which jobs of a project change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.responses import Response

from app.api.auth import authorize, bearer_secret
from app.api.dependencies import AppState
from app.api.openapi.examples import streams as examples
from app.api.routes.jobs.polling import version_of
from app.api.schemas.jobs.events import render_event
from app.db.fast_reads import keys
from app.db.fast_reads.jobs import seq_of_event
from app.db.notifications import Subscription
from app.domain.error_text.json_text import as_json
from app.domain.jobs.states import TERMINAL
from app.errors import BadRequest, Unavailable
from app.services.jobs.event_fanout import EventBatch
from app.services.jobs.jobs import unknown_cursor_error

KEEPALIVE_SECONDS = 15.0
KEY_SECONDS = 30.0  # so long may a revoked key go on listening
BURST_SECONDS = 0.1  # of the project's stream: a job that changes often is told of ten times a second
RETRY_MILLISECONDS = 2_000  # before a browser connects again
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back

LastEventId = Annotated[
    str | None, Header(description="The `id` of the last event seen: its number, as in the stream, or its ftevent id.")
]
AfterEvent = Annotated[str | None, Query(description="The same, where no header can be sent.")]

router = APIRouter(prefix="/v1", tags=["Fine-tuning"])


@router.get(
    "/fine_tuning/jobs/{job_id}/events/stream",
    response_class=Response,
    responses=examples.EVENT_STREAM,
    summary="Follow the events of a job",
)
async def follow_job(
    request: Request, job_id: str, last_event_id: LastEventId = None, after: AfterEvent = None
) -> Response:
    """Every event once, oldest first, as server-sent events with their number as `id`; then those to come.

    After the last event of a job that is over comes one named `end`, with the job's status, and the stream closes. Who
    has that last event already is answered 204, at which a browser stops connecting again.
    """
    app_state: AppState = request.app.state.app_state
    secret = bearer_secret(request)
    version = await version_of(app_state, request, secret, job_id)
    seq = await _seq(app_state, version, last_event_id or after, "Last-Event-ID" if last_event_id else "after")
    if version.state in TERMINAL and seq and seq == version.event_seq:
        return Response(status_code=204)
    if request.method == "HEAD":
        return _head_of_stream()
    return EventSourceResponse(_events(app_state, secret, job_id, seq), headers=HEADERS)


@router.get(
    "/events/stream",
    response_class=Response,
    responses=examples.CHANGE_STREAM,
    summary="Follow the jobs of a project",
)
async def follow_project(request: Request) -> Response:
    """Which job has changed, never how: read it then. Nothing is replayed.

    `job_id` is null when any may have: at the beginning, and when the server lost touch with its database for a moment.
    """
    app_state: AppState = request.app.state.app_state
    secret = bearer_secret(request)
    caller = authorize(request, await keys.find_key(app_state.connections, secret))
    if request.method == "HEAD":
        return _head_of_stream()
    return EventSourceResponse(_changes(app_state, secret, caller.project_id), headers=HEADERS)


def _head_of_stream() -> Response:
    """The headers of a stream that never begins."""
    return EventSourceResponse(iter(()), headers=HEADERS)


def render_event_bytes(row: Any) -> bytes:
    """One event as it goes to everybody who follows its job."""
    data = json.dumps(render_event(row), separators=(",", ":"), ensure_ascii=False)
    return format_sse_event(data_str=data, id=str(row.seq))


async def _events(app_state: AppState, secret: str, job_id: str, seq: int) -> AsyncIterator[bytes]:
    is_good = _key_check(app_state, secret)
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    with app_state.notifications.subscribe(job_id) as subscription, app_state.event_fanout.follow(job_id) as feed:
        notified_at = asyncio.get_running_loop().time()
        while await is_good():
            with suppress(Unavailable):  # a database that restarts is waited for
                while (part := await feed.read_after(seq, notified_at)).events or part.final_state:
                    yield b"".join(part.events) + _end(part)
                    seq = part.last_seq
                    if part.final_state:
                        return
            notified_at = await _heard_at(subscription)
            if subscription.is_closed:
                return
            if not subscription.take_changed_jobs():
                yield KEEPALIVE_COMMENT


async def _changes(app_state: AppState, secret: str, project_id: str) -> AsyncIterator[bytes]:
    is_good = _key_check(app_state, secret)
    with app_state.notifications.subscribe(project_id) as subscription:
        yield format_sse_event(retry=RETRY_MILLISECONDS) + _changed(None)
        while await is_good():
            if await subscription.wait(KEEPALIVE_SECONDS):
                await asyncio.sleep(BURST_SECONDS)
                yield b"".join(_changed(job_id) for job_id in subscription.take_changed_jobs())
            elif subscription.is_closed:
                return
            else:
                yield KEEPALIVE_COMMENT


async def _heard_at(subscription: Subscription) -> float:
    """When there was news. Without any until a keep-alive is due, a read of the last seconds will do."""
    if await subscription.wait(KEEPALIVE_SECONDS):
        return subscription.notified_at
    return asyncio.get_running_loop().time() - KEEPALIVE_SECONDS / 2


def _end(part: EventBatch) -> bytes:
    if part.final_state is None:
        return b""
    return format_sse_event(event="end", data_str=json.dumps({"status": part.final_state}))


def _changed(job_id: str | None) -> bytes:
    return format_sse_event(data_str=json.dumps({"object": "fine_tuning.job.changed", "job_id": job_id}))


def _key_check(app_state: AppState, secret: str) -> Callable[[], Any]:
    """Whether the key is still good, as of the last half minute. A database that is away is no verdict."""
    now = asyncio.get_running_loop().time
    checked_at = now()

    async def is_good() -> bool:
        nonlocal checked_at
        if now() - checked_at < KEY_SECONDS:
            return True
        with suppress(Unavailable):
            key = await keys.find_key(app_state.connections, secret)
            if key is None or key.refusal is not None:
                return False
            checked_at = now()
        return True

    return is_good


async def _seq(app_state: AppState, version: Any, asked: str | None, param: str) -> int:
    """The number of the event after which the stream begins. Raises BadRequest for one that the job does not have."""
    if asked is None:
        return 0
    if asked.isdecimal() and asked.isascii() and len(asked) < 19:
        seq: int | None = int(asked)
    else:
        seq = await seq_of_event(app_state.connections, version.id, asked)
    if seq is None or seq > version.event_seq:
        if param == "after":
            raise unknown_cursor_error("event", asked)
        raise BadRequest(
            f"Last-Event-ID: there is no event {as_json(asked)} of this job; send the id of the last event you have "
            "seen, or none for all of them",
            param,
        )
    return seq
