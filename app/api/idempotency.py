"""`Idempotency-Key` on every POST, without a line in the endpoints.

A router with `route_class=OnceRoute` gives it to each of its POST routes that takes a SessionDep. A route with
transactions of its own takes an OnceDep and calls `begin` first and `end` last in the one that creates.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import chain, repeat
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.auth import CallerDep
from app.api.dependencies import SessionDep, SlotDep, engines_of
from app.api.transport.json_body import NO_BODY, BodyBytesDep, JsonBodyDep, OptionalJsonBodyDep
from app.domain.datasets.jsonl import LineError, decode_json
from app.errors import IdempotencyKeyInUse
from app.services.access.idempotency import IdempotentRequest, Replay, fingerprint_of, key_in_use_error

REPLAYED = {"Idempotency-Replayed": "true"}
PATIENCE_SECONDS = 20.0  # for a twin that is at work: a create takes milliseconds
PAUSES_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2)  # between looks; then the last again and again

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key and body within 24 hours: done once, and answered the same again.",
    ),
]


async def get_once(request: Request, caller: CallerDep, idempotency_key: KeyHeader = None) -> IdempotentRequest:
    url = request.url
    path = f"{url.path}?{url.query}" if url.query else url.path
    return IdempotentRequest(caller.project_id, idempotency_key, request.method, path)


OnceDep = Annotated[IdempotentRequest, Depends(get_once)]


async def take_turn(
    request: Request, body: BodyBytesDep, once: OnceDep, caller: CallerDep
) -> AsyncIterator[str | None]:
    """The request's fingerprint, if it has a key and no twin is at work in this process any more.

    Raises what Once.look does, and IdempotencyKeyInUse. Who waits here holds neither a thread nor a connection.
    """
    if once.key is None:
        yield None
        return
    engines = engines_of(request)
    fingerprint = await engines.lanes.parse(caller.key_id, _fingerprint, body)
    lock = engines.lanes.alone(f"key {once.project_id} {once.key}")
    has_twin = lock.locked()
    await _acquire(lock, once.key)
    try:
        if has_twin:
            await once.look(engines.connections, fingerprint)
        yield fingerprint
    finally:
        lock.release()


FingerprintDep = Annotated[str | None, Depends(take_turn, scope="function")]


# The turn is taken before the session and the slot, and so is given on after the commit.
async def begin_once(
    request: Request, once: OnceDep, fingerprint: FingerprintDep, session: SessionDep, slot: SlotDep
) -> None:
    """Raises what Once.begin does. A twin in another process is waited for in the same way, but by asking again."""
    if fingerprint is None:
        return
    deadline = time.monotonic() + PATIENCE_SECONDS
    pauses = chain(PAUSES_SECONDS, repeat(PAUSES_SECONDS[-1]))
    while not await run_in_threadpool(_begin, once, session, fingerprint, time.monotonic() < deadline):
        slot.leave()
        await asyncio.sleep(next(pauses))
        await slot.take()
    request.state.once = (once, session)


class OnceRoute(APIRoute):
    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "POST" in (options.get("methods") or ()) and takes_session(endpoint):
            no_body = () if takes_body(endpoint) else (NO_BODY,)
            options["dependencies"] = [*(options.get("dependencies") or ()), *no_body, Depends(begin_once)]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The answer is made here, kept and committed, and sent later."""
        handle = super().get_route_handler()

        async def handle_once(request: Request) -> Response:
            try:
                response = await handle(request)
            except Replay as replay:
                return Response(replay.body, replay.status, REPLAYED, media_type="application/json")
            begun = getattr(request.state, "once", None)
            if begun is not None:
                once, session = begun
                await run_in_threadpool(_end, once, session, response)
            return response

        return handle_once


def takes_session(endpoint: Callable[..., Any]) -> bool:
    return SessionDep in get_type_hints(endpoint, include_extras=True).values()


def takes_body(endpoint: Callable[..., Any]) -> bool:
    hints = get_type_hints(endpoint, include_extras=True).values()
    return any(hint in (JsonBodyDep, OptionalJsonBodyDep, BodyBytesDep, Request) for hint in hints)


async def _acquire(lock: asyncio.Lock, key: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await lock.acquire()
    except TimeoutError as error:
        raise key_in_use_error(key) from error


def _begin(once: IdempotentRequest, session: Session, fingerprint: str, may_wait: bool) -> bool:
    """False while a twin is at work and waiting is worth it; the connection is given back then."""
    try:
        once.begin(session, fingerprint)
    except IdempotencyKeyInUse:
        session.rollback()
        if may_wait:
            return False
        raise
    return True


def _end(once: IdempotentRequest, session: Session, response: Response) -> None:
    once.end(session, response.status_code, bytes(response.body).decode())
    session.commit()


def _fingerprint(body: bytes) -> str:
    """Of the parsed body: a client may write the same JSON differently. What is no JSON is refused by the endpoint."""
    try:
        return fingerprint_of({"json": decode_json(body)})
    except (LineError, RecursionError):
        return fingerprint_of({"bytes": body.hex()})
