"""The HTTP process: builds the application state, and adds routers and middleware."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from app.api import bootstrap_guard
from app.api.dependencies import AppState
from app.api.docs_page import page
from app.api.error_handlers import add_error_handlers
from app.api.limits import CheckLimiter, FairLimiter
from app.api.middleware.request_context import RequestContextMiddleware
from app.api.middleware.request_log import telemetry_config
from app.api.openapi.document import build_openapi
from app.api.routes import (
    answers,
    deliveries,
    evaluations,
    exports,
    files,
    jobs,
    models,
    operations,
    polling,
    projects,
    queue,
    records,
    streams,
    uploads,
    webhooks,
)
from app.api.transport.disconnect import on_shutdown_signal
from app.api.transport.request_bodies import IoPools
from app.db.access import audit
from app.db.engine import make_engine, make_sessions
from app.db.fast_reads.pool import AsyncConnections
from app.db.notifications import NotificationListener
from app.job_queue import WorkerNotifier
from app.log import configure_logging, get_logger
from app.services.access.keys import ensure_first_key
from app.services.access.rate_limit import RateLimiter
from app.services.answers.engine_client import EngineClient
from app.services.files.files import delete_stale_staged_files
from app.services.jobs.event_fanout import EventFanout
from app.services.jobs.plan import TokenCounter
from app.services.operations.health import HealthChecks
from app.settings import Settings, load_settings, removed_settings
from app.storage import Storage, open_storage
from app.system.host import usable_cores
from app.telemetry.metrics import own_version
from app.telemetry.tracing import configure_tracing
from app.trial_queue import TrialQueue

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# routes are matched in order, so the module that clients poll most comes first
MODULES = (
    *(polling, files, uploads, jobs, records, streams, exports, evaluations, deliveries, models, answers, queue),
    *(webhooks, projects, operations),
)
ROUTERS = [each for module in MODULES for each in vars(module).values() if isinstance(each, APIRouter)]

H11_MODULE = "uvicorn.protocols.http.h11_impl"
GC_THRESHOLD = 20_000  # new objects; Python's default is 700

log = get_logger(__name__)


def create_app(
    settings: Settings,
    storage: Storage | None = None,
    host: str = bootstrap_guard.DEFAULT_HOST,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """Build the application without connecting to anything: it starts while the database or the broker is down.

    `host` is the bind address: on any address but loopback, the startup fails if no API key exists. With a
    `tracer_provider` requests are traced.
    """
    app = FastAPI(
        title="Tunery",
        version=own_version(),
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=telemetry_config(tracer_provider),
    )
    app.state.app_state = _build_app_state(settings, storage)
    app.state.host = host
    routers = [*ROUTERS, page.router] if settings.docs_enabled else ROUTERS
    for router in routers:  # not `include_router`, which builds each route again at its first request: 0.1 s
        app.router.routes.extend(router.routes)
    for router in routers:  # HEAD requests are rare, so their routes come last
        app.router.routes.extend(_head_routes(router))
    app.openapi = partial(build_openapi, app)  # type: ignore[method-assign]
    add_error_handlers(app)
    app.add_middleware(RequestContextMiddleware)
    return app


def app_from_environment() -> FastAPI:
    """The application factory of `python -m app.serve`; `uvicorn --factory app.main:app_from_environment` works, too.

    Raises SystemExit for another HTTP parser, or without a proxy on any address but loopback.
    """
    settings = load_settings()
    host = bootstrap_guard.bind_host(sys.argv, os.environ)
    bootstrap_guard.require_proxy(settings, host)
    if H11_MODULE in sys.modules:  # uvicorn imports its parser before it calls the factory
        raise SystemExit("Start uvicorn with --http httptools: its other parser accepts requests with two lengths.")
    configure_logging(settings.log_json, settings.log_file)
    for text in removed_settings(os.environ):
        log.warning(text)
    app = create_app(settings, host=host, tracer_provider=configure_tracing(settings, "api"))
    _tune_gc()
    return app


def _tune_gc() -> None:
    """Exclude all objects loaded so far (modules, schemas) from garbage collection, and collect less often.

    A full collection stopped all requests: with 64 polling clients the p99 was 147 ms, and is 36 ms with this.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)


def _head_routes(router: APIRouter) -> Iterator[APIRoute]:
    """A HEAD route for each GET route (RFC 9110, 9.3.2): the same headers; the server omits the body.

    The OpenAPI document does not list them: generated clients would have every read call twice.
    """
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            head = copy.copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            yield head


def _build_app_state(settings: Settings, storage: Storage | None) -> AppState:
    database = make_engine(settings.database_url, settings.database_pool_size)
    connections = AsyncConnections(database, settings.database_pool_size)
    sessions = make_sessions(database)
    audit.audit_sessions(sessions)
    storage = storage or open_storage(settings.storage_dir, settings.s3_location)
    notifier, io_pools = WorkerNotifier(settings.redis_url), IoPools()
    return AppState(
        settings=settings,
        database=database,
        sessions=sessions,
        connections=connections,
        notifications=NotificationListener(database),
        event_fanout=EventFanout(connections, streams.render_event_bytes),
        storage=storage,
        worker_notifier=notifier,
        token_counter=TokenCounter(settings.max_line_bytes),
        rate_limiter=RateLimiter(settings.max_requests_per_second),
        connection_limiter=FairLimiter(settings.database_pool_size, timeout_for="database connections"),
        check_limiter=CheckLimiter(settings.check_processes or usable_cores()),
        stream_limiter=FairLimiter(sys.maxsize, settings.max_event_streams),
        health_checks=HealthChecks(sessions, storage, notifier, settings.data_dir, settings.low_disk_percent),
        io_pools=io_pools,
        engine_client=EngineClient(settings, io_pools.parse),
        trial_queue=TrialQueue(settings.redis_url),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Prepare and close the application."""
    app_state: AppState = app.state.app_state
    # Each open transaction may hold a thread that waits for a lock, whose owner needs another one to commit.
    current_default_thread_limiter().total_tokens += app_state.settings.database_pool_size
    await run_in_threadpool(_prepare, app_state, app.state.host)
    with on_shutdown_signal(app_state.notifications.close_subscriptions):
        yield
    await app_state.notifications.close()
    await app_state.engine_client.close()
    await app_state.trial_queue.close()
    await app_state.connections.close()
    app_state.worker_notifier.close()
    app_state.database.dispose()


def _prepare(app_state: AppState, host: str) -> None:
    delete_stale_staged_files(app_state.storage)
    if app_state.settings.admin_key_file is not None:
        ensure_first_key(app_state.sessions, app_state.settings.admin_key_file)
    bootstrap_guard.require_api_key(app_state.sessions, host)
