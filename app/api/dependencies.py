"""FastAPI dependencies of the endpoints, as Annotated aliases, and the state that app.main builds once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api.limits import CheckLimiter, FairLimiter, Permit
from app.api.transport.request_bodies import IoPools
from app.db.engine import Sessions
from app.db.fast_reads.pool import AsyncConnections
from app.db.notifications import NotificationListener
from app.job_queue import WorkerNotifier
from app.services.access.rate_limit import RateLimiter
from app.services.answers.engine_client import EngineClient
from app.services.files.upload_completion import RollingDigestCache
from app.services.jobs.event_fanout import EventFanout
from app.services.jobs.plan import TokenCounter
from app.services.operations.health import HealthChecks
from app.settings import Settings
from app.storage import Storage
from app.trial_queue import TrialQueue


@dataclass(frozen=True)
class AppState:
    """The connections, limiters and caches that all requests of one API process share."""

    settings: Settings
    database: Engine
    sessions: Sessions
    connections: AsyncConnections
    notifications: NotificationListener
    event_fanout: EventFanout
    storage: Storage
    worker_notifier: WorkerNotifier
    token_counter: TokenCounter
    rate_limiter: RateLimiter
    connection_limiter: FairLimiter
    check_limiter: CheckLimiter
    stream_limiter: FairLimiter
    health_checks: HealthChecks
    engine_client: EngineClient
    trial_queue: TrialQueue
    io_pools: IoPools
    upload_digests: RollingDigestCache = field(default_factory=RollingDigestCache)


def app_state_of(request: Request) -> AppState:
    """The state, for use within a dependency: FastAPI resolves every nested dependency again, which takes time."""
    app_state: AppState = request.app.state.app_state
    return app_state


async def get_app_state(request: Request) -> AppState:
    return app_state_of(request)


AppStateDep = Annotated[AppState, Depends(get_app_state)]


async def get_connection_permit(request: Request) -> AsyncIterator[Permit]:
    """Hold a permit for a database connection during the request. Raises Unavailable on a timeout."""
    async with app_state_of(request).connection_limiter.permit(getattr(request.state, "key_id", "")) as permit:
        yield permit


hold_connection_permit = asynccontextmanager(get_connection_permit)
ConnectionPermitDep = Annotated[Permit, Depends(get_connection_permit, scope="function")]


async def get_session(request: Request, _permit: ConnectionPermitDep) -> AsyncIterator[Session]:
    """One transaction per request. The first query takes a connection, in the thread that runs the endpoint."""
    session = app_state_of(request).sessions()
    try:
        yield session
        if session.in_transaction():  # IdempotentRoute has committed, in a thread that it needs anyway
            await run_in_threadpool(session.commit)
    except BaseException:
        await run_in_threadpool(session.rollback)
        raise
    finally:
        session.close()


# scope="function": by default FastAPI runs the commit after the response, and a client would receive 200 for a change
# whose commit failed.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
