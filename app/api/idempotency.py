"""Idempotency: the `Idempotency-Key` header on every POST, without code in the endpoints.

A router with `route_class=IdempotentRoute` adds it to each of its POST routes that takes a SessionDep. A route with
transactions of its own takes an IdempotentRequestDep, and calls `reserve` first and `store_response` last in the
transaction that creates; `respond_once` does so in one thread, for the most frequent POST.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain, repeat
from typing import Annotated, Any, TypeVar, get_type_hints

from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.auth import CallerDep
from app.api.dependencies import ConnectionPermitDep, SessionDep, app_state_of, hold_connection_permit
from app.api.limits import Permit
from app.api.transport.json_body import NO_BODY, BodyBytesDep, request_body
from app.db.engine import Sessions, transaction
from app.domain.datasets.jsonl import LineError, decode_json
from app.errors import IdempotencyKeyInUse
from app.services.access.idempotency import IdempotentRequest, Replay, fingerprint_of, key_in_use_error

Result = TypeVar("Result")

REPLAYED = {"Idempotency-Replayed": "true"}
DUPLICATE_TIMEOUT_SECONDS = 20.0  # for a concurrent duplicate; a create takes milliseconds
POLL_DELAYS_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2)  # the last one repeats

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="A repeated request with the same key and body within 24 hours has no second effect and receives "
        "the same response.",
    ),
]


async def get_idempotent_request(
    request: Request, caller: CallerDep, idempotency_key: KeyHeader = None
) -> IdempotentRequest:
    """The key of the request, with the project, method and path that it belongs to."""
    url = request.url
    path = f"{url.path}?{url.query}" if url.query else url.path
    return IdempotentRequest(caller.project_id, idempotency_key, request.method, path)


IdempotentRequestDep = Annotated[IdempotentRequest, Depends(get_idempotent_request)]


async def acquire_key_lock(
    request: Request, body: BodyBytesDep, idempotent_request: IdempotentRequestDep
) -> AsyncIterator[str | None]:
    """Hold the lock of the key in this process, and yield the fingerprint of the request; None without a key.

    A concurrent duplicate waits here, without a thread and without a database connection. Raises what
    `IdempotentRequest.check_stored_response` raises, and IdempotencyKeyInUse.
    """
    key = idempotent_request.key
    if key is None:
        yield None
        return
    app_state = app_state_of(request)
    fingerprint = await app_state.io_pools.parse(request.state.key_id, len(body), _fingerprint, body)
    lock = app_state.io_pools.key_lock(f"key {idempotent_request.project_id} {key}")
    has_duplicate = lock.locked()
    try:
        async with asyncio.timeout(DUPLICATE_TIMEOUT_SECONDS):
            await lock.acquire()
    except TimeoutError as error:
        raise key_in_use_error(key) from error
    try:
        if has_duplicate:
            await idempotent_request.check_stored_response(app_state.connections, fingerprint)
        yield fingerprint
    finally:
        lock.release()


hold_key_lock = asynccontextmanager(acquire_key_lock)
FingerprintDep = Annotated[str | None, Depends(acquire_key_lock, scope="function")]


# FastAPI resolves the lock before the session and the permit, and so releases it after the commit.
async def begin_idempotent_request(
    request: Request,
    idempotent_request: IdempotentRequestDep,
    fingerprint: FingerprintDep,
    session: SessionDep,
    permit: ConnectionPermitDep,
) -> None:
    """Claim the key in the transaction of the request. Raises what `IdempotentRequest.reserve` raises."""
    if fingerprint is not None:
        await _until_claimed(permit, partial(_begin, idempotent_request, session, fingerprint))
        request.state.idempotent = (idempotent_request, session)


async def respond_once(
    request: Request, idempotent_request: IdempotentRequest, body: bytes, work: Callable[[Session], bytes]
) -> Response:
    """The JSON that `work` makes in a transaction of its own. Raises what `IdempotentRequest.reserve` raises."""
    sessions = app_state_of(request).sessions
    async with (
        hold_key_lock(request, body, idempotent_request) as fingerprint,
        hold_connection_permit(request) as permit,
    ):
        return await _until_claimed(permit, partial(_respond, idempotent_request, sessions, fingerprint, work))


async def _until_claimed(permit: Permit, attempt: Callable[[bool], Result | None]) -> Result:
    """The result of `attempt(may_retry)`, in a thread. It is None while a duplicate in another process holds the key,
    which is awaited by polling; the connection is released between the attempts."""
    deadline = time.monotonic() + DUPLICATE_TIMEOUT_SECONDS
    delays_seconds = chain(POLL_DELAYS_SECONDS, repeat(POLL_DELAYS_SECONDS[-1]))
    while (result := await run_in_threadpool(attempt, time.monotonic() < deadline)) is None:
        permit.release()
        await asyncio.sleep(next(delays_seconds))
        await permit.acquire()
    return result


class IdempotentRoute(APIRoute):
    """A route whose POST endpoints with a session honour `Idempotency-Key`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "POST" in (options.get("methods") or ()) and takes_session(endpoint):
            no_body = () if takes_body(endpoint) else (NO_BODY,)
            dependencies = [*(options.get("dependencies") or ()), *no_body, Depends(begin_idempotent_request)]
            options["dependencies"] = dependencies
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Store the response and commit before it is sent; send a stored response for a repeated request."""
        handle = super().get_route_handler()

        async def handle_idempotent(request: Request) -> Response:
            try:
                response = await handle(request)
            except Replay as replay:
                return Response(replay.body, replay.status, REPLAYED, media_type="application/json")
            claimed = getattr(request.state, "idempotent", None)
            if claimed is not None:
                idempotent_request, session = claimed
                await run_in_threadpool(_end, idempotent_request, session, response)
            return response

        return handle_idempotent


def takes_session(endpoint: Callable[..., Any]) -> bool:
    return SessionDep in get_type_hints(endpoint, include_extras=True).values()


def takes_body(endpoint: Callable[..., Any]) -> bool:
    return request_body(endpoint) is not None or Request in get_type_hints(endpoint).values()


def _respond(
    idempotent_request: IdempotentRequest,
    sessions: Sessions,
    fingerprint: str | None,
    work: Callable[[Session], bytes],
    may_retry: bool,
) -> Response | None:
    with transaction(sessions) as session:
        if fingerprint is not None and not _begin(idempotent_request, session, fingerprint, may_retry):
            return None
        body = work(session)
        idempotent_request.store_response(session, 200, body.decode())
    return Response(body, media_type="application/json")


def _begin(idempotent_request: IdempotentRequest, session: Session, fingerprint: str, may_retry: bool) -> bool | None:
    """Claim the key. None if a duplicate holds it and `may_retry`; the connection is released then."""
    try:
        idempotent_request.reserve(session, fingerprint)
    except IdempotencyKeyInUse:
        session.rollback()
        if may_retry:
            return None
        raise
    return True


def _end(idempotent_request: IdempotentRequest, session: Session, response: Response) -> None:
    idempotent_request.store_response(session, response.status_code, bytes(response.body).decode())
    session.commit()


def _fingerprint(body: bytes) -> str:
    """Hash the parsed body, as a client may serialize the same JSON differently. The endpoint refuses invalid JSON."""
    try:
        return fingerprint_of({"json": decode_json(body)})
    except (LineError, RecursionError):
        return fingerprint_of({"bytes": body.hex()})
