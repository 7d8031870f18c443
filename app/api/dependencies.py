"""What endpoints ask for, as Annotated aliases. The engines themselves are built once, in app.main."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api.check_limiter import Checks
from app.api.connection_limiter import Slot
from app.api.fair_limiter import FairLimiter
from app.api.transport.upload_io import Lanes
from app.db.engine import Sessions
from app.db.fast_reads.pool import AsyncConnections
from app.db.notifications import NotificationListener
from app.job_queue import WorkerNotifier
from app.services.access.rate_limit import RateLimiter
from app.services.datasets.token_counter import Counter
from app.services.files.rolling_digest import RollingDigestCache
from app.services.jobs.event_fanout import EventFanout
from app.settings import Settings
from app.storage import Storage


@dataclass(frozen=True)
class Engines:
    """Everything a request may need of the outside world."""

    settings: Settings
    database: Engine
    sessions: Sessions
    connections: AsyncConnections
    changes: NotificationListener
    feeds: EventFanout
    storage: Storage
    hints: WorkerNotifier
    counter: Counter
    limiter: RateLimiter
    free_slots: FairLimiter
    checks: Checks
    lanes: Lanes = field(default_factory=Lanes)
    digests: RollingDigestCache = field(default_factory=RollingDigestCache)


def engines_of(request: Request) -> Engines:
    """For dependencies: FastAPI walks through each one's own dependencies every time, those that it has at hand too."""
    engines: Engines = request.app.state.engines
    return engines


async def get_engines(request: Request) -> Engines:
    return engines_of(request)


EnginesDep = Annotated[Engines, Depends(get_engines)]


async def get_slot(request: Request) -> AsyncIterator[Slot]:
    """Raises Unavailable when there is none for too long."""
    slot = Slot(engines_of(request).free_slots, getattr(request.state, "key_id", ""))
    await slot.take()
    try:
        yield slot
    finally:
        slot.leave()


SlotDep = Annotated[Slot, Depends(get_slot, scope="function")]


async def get_session(request: Request, _slot: SlotDep) -> AsyncIterator[Session]:
    """One request, one transaction. A connection is taken at the first query, by the thread that runs the endpoint."""
    session = engines_of(request).sessions()
    try:
        yield session
        if session.in_transaction():  # OnceRoute has committed in the thread that it needs anyway
            await run_in_threadpool(session.commit)
    except BaseException:
        await run_in_threadpool(session.rollback)
        raise
    finally:
        session.close()


# scope="function": FastAPI would run the commit after the response otherwise, and a client would hear 200 of a change
# that failed to commit.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
