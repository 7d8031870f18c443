"""The HTTP process: builds what every request needs once, mounts the rooms, and has no logic of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from app.api import adapters, docs, files, health, job_read, jobs, models
from app.api.azure import AzureNames
from app.api.deps import Engines
from app.api.envelope import Envelope
from app.api.error_handlers import add_error_handlers
from app.api.openapi import build_openapi
from app.db.async_connections import AsyncConnections
from app.db.engine import make_engine, make_sessions
from app.log import configure_logging
from app.queue import Hints
from app.services.counting import Counter
from app.services.first_key import ensure_first_key
from app.services.uploads import sweep_staging
from app.settings import Settings, load_settings
from app.storage import LocalStorage, Storage

ROOMS = (files, job_read, jobs, adapters, models, health)


def create_app(settings: Settings, storage: Storage | None = None) -> FastAPI:
    """Connects to nothing yet: a database or a broker that is down costs requests, not the start."""
    app = FastAPI(
        title="Tunery", version=_version(), lifespan=_lifespan, openapi_url=None, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.engines = _build_engines(settings, storage)
    for room in ROOMS:
        app.include_router(room.router)
    if settings.docs_enabled:
        app.include_router(docs.router)
    app.openapi = partial(build_openapi, app)  # type: ignore[method-assign]
    add_error_handlers(app)
    app.add_middleware(AzureNames)
    app.add_middleware(Envelope)
    return app


def app_from_environment() -> FastAPI:
    """`uvicorn app.main:app_from_environment --factory`"""
    settings = load_settings()
    configure_logging(json=settings.log_json)
    return create_app(settings)


def _build_engines(settings: Settings, storage: Storage | None) -> Engines:
    database = make_engine(settings.database_url, settings.database_pool_size)
    return Engines(
        settings=settings,
        database=database,
        sessions=make_sessions(database),
        connections=AsyncConnections(database, settings.database_pool_size),
        storage=storage or LocalStorage(settings.storage_dir),
        hints=Hints(settings.redis_url),
        counter=Counter(settings.max_line_bytes),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    engines: Engines = app.state.engines
    await run_in_threadpool(_prepare, engines)
    yield
    await engines.connections.close()
    engines.hints.close()
    engines.database.dispose()


def _prepare(engines: Engines) -> None:
    sweep_staging(engines.storage)
    if engines.settings.admin_key_file is not None:
        ensure_first_key(engines.sessions, engines.settings.admin_key_file)


def _version() -> str:
    try:
        return version("tunery")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0+unknown"
