"""The HTTP process: builds what every request needs once, mounts the rooms, and has no logic of its own."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from app.api.check_limiter import Checks, granted_cores
from app.api.dependencies import Engines
from app.api.docs_page import page
from app.api.error_handlers import add_error_handlers
from app.api.fair_limiter import FairLimiter
from app.api.middleware import bootstrap_guard
from app.api.middleware.absolute_targets import AbsoluteTargets
from app.api.middleware.azure import AzureNames
from app.api.middleware.request_context import Envelope
from app.api.openapi.document import build_openapi
from app.api.routes import file_reports, files, health, models, permissions, queue, streams, uploads, webhooks
from app.api.routes.jobs import adapters, clones, exports, jobs, polling, records
from app.api.routes.organization import audit_logs, project_keys, projects
from app.api.routes.organization import jobs as organization_jobs
from app.api.transport.disconnect import told_of_stop
from app.api.transport.head import HeadWithoutBody, head_routes
from app.db.access import audit
from app.db.engine import make_engine, make_sessions
from app.db.fast_reads.pool import AsyncConnections
from app.db.notifications import NotificationListener
from app.job_queue import WorkerNotifier
from app.log import configure_logging, get_logger
from app.services.access.bootstrap_key import ensure_first_key
from app.services.access.rate_limit import RateLimiter
from app.services.datasets.token_counter import Counter
from app.services.files.ingest import delete_stale_staged_files
from app.services.jobs.event_fanout import EventFanout
from app.settings import Settings, load_settings
from app.storage import LocalStorage, Storage

# the most polled comes first
ROOMS = (
    polling, files, file_reports, uploads, jobs, clones, records, streams, adapters, exports, permissions, models,
    queue, webhooks, projects, project_keys, organization_jobs, audit_logs, health,
)  # fmt: skip

CONNECTION_MODULE = "app.api.transport.connection"
GARBAGE_LOOKED_FOR_AFTER = 20_000  # new objects; Python's own number is 700

log = get_logger(__name__)


def create_app(settings: Settings, storage: Storage | None = None, host: str = bootstrap_guard.DEFAULT_HOST) -> FastAPI:
    """Connects to nothing yet: a database or a broker that is down costs requests, not the start.

    `host` is where it will listen: on anything but loopback it does not start without a key.
    """
    app = FastAPI(
        title="Tunery", version=_version(), lifespan=_lifespan, openapi_url=None, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    engines = app.state.engines = _build_engines(settings, storage)
    app.state.host = host
    rooms = [*ROOMS, page] if settings.docs_enabled else ROOMS
    for room in rooms:
        app.include_router(room.router)
    for room in rooms:  # after all of those that are asked for more often
        app.include_router(head_routes(room.router))
    app.openapi = partial(build_openapi, app)  # type: ignore[method-assign]
    add_error_handlers(app)
    app.add_middleware(bootstrap_guard.Door, sessions=engines.sessions)
    app.add_middleware(AzureNames)
    app.add_middleware(Envelope)
    app.add_middleware(HeadWithoutBody)
    app.add_middleware(AbsoluteTargets)
    return app


def app_from_environment() -> FastAPI:
    """What `python -m app.serve` serves; `uvicorn --factory app.main:app_from_environment` does without its limits."""
    settings = load_settings()
    configure_logging(settings.log_json, settings.log_file)
    if CONNECTION_MODULE not in sys.modules:  # uvicorn imports its protocol before it calls this
        log.warning("this server waits for slow request headers without a limit; start it with python -m app.serve")
    app = create_app(settings, host=bootstrap_guard.asked_host(sys.argv, os.environ))
    _keep_what_is_loaded()
    return app


def _keep_what_is_loaded() -> None:
    """From here on the garbage collector looks at what requests make, not at every module and schema there is.

    Each of its full rounds stopped all requests: for 64 clients that poll, the p99 was 147 ms, and is 36 ms without.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_LOOKED_FOR_AFTER, 20, 20)


def _build_engines(settings: Settings, storage: Storage | None) -> Engines:
    database = make_engine(settings.database_url, settings.database_pool_size)
    connections = AsyncConnections(database, settings.database_pool_size)
    sessions = make_sessions(database)
    audit.audit_sessions(sessions)
    return Engines(
        settings=settings,
        database=database,
        sessions=sessions,
        connections=connections,
        changes=NotificationListener(database),
        feeds=EventFanout(connections, streams.render_event_bytes),
        storage=storage or LocalStorage(settings.storage_dir),
        hints=WorkerNotifier(settings.redis_url),
        counter=Counter(settings.max_line_bytes),
        limiter=RateLimiter(settings.max_requests_per_second),
        free_slots=FairLimiter(settings.database_pool_size),
        checks=Checks(settings.check_processes or granted_cores()),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """The state it yields is what `LimitedConnection` gets to know of the application."""
    engines: Engines = app.state.engines
    await run_in_threadpool(_prepare, engines, app.state.host)
    with told_of_stop(engines.changes.close_subscriptions):
        yield {"settings": engines.settings}
    await engines.changes.close()
    await engines.connections.close()
    engines.hints.close()
    engines.database.dispose()


def _prepare(engines: Engines, host: str) -> None:
    delete_stale_staged_files(engines.storage)
    if engines.settings.admin_key_file is not None:
        ensure_first_key(engines.sessions, engines.settings.admin_key_file)
    bootstrap_guard.refuse_without_key(engines.sessions, host)


def _version() -> str:
    try:
        return version("tunery")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0+unknown"
