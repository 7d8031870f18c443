"""Real servers, started once; an empty database, an empty storage and an empty broker for every test.

A test names what it needs: `sessions` (rows), `storage` (bytes), `settings`, `client` (the API in this process),
`live_server` (the API behind a socket), `api_key` (of the project `default`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from sqlalchemy import Engine, create_engine, make_url, text

from app.db import migrate
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.tables import Project
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import make_key, make_project
from tests.serving import LiveServer, serve
from tests.stack import as_redis_py, start_postgres, start_valkey

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a migrated database, the template of every test's own. Nobody connects to it while tests run."""
    url, stop = start_postgres()
    engine = make_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    yield url
    stop()


@pytest.fixture(scope="session")
def postgres_admin(postgres_server: str) -> Iterator[Engine]:
    engine = create_engine(make_url(postgres_server).set(database="postgres"), isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    url, stop = start_valkey()
    yield url
    stop()


@pytest.fixture
def database_url(postgres_server: str, postgres_admin: Engine) -> Iterator[str]:
    """A database of this test's own, at the newest revision. FILE_COPY makes it in 16 ms, WAL_LOG took 98."""
    template = make_url(postgres_server)
    name = f"test_{next(NUMBERS)}"
    with postgres_admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template.database} STRATEGY FILE_COPY"))
    yield template.set(database=name).render_as_string(hide_password=False)
    with postgres_admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def redis_url(valkey_server: str) -> str:
    """The broker, empty, as Celery wants its URL."""
    with redis.Redis.from_url(as_redis_py(valkey_server)) as client:
        client.flushall()
    return valkey_server


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    """`with transaction(sessions) as session:` commits, as the code under test does."""
    return make_sessions(engine)


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=redis_url,
        data_dir=tmp_path / "data",
        database_pool_size=5,
        device="cpu",
        threads=1,
    )


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.storage_dir)


@pytest.fixture
def project(sessions: Sessions) -> Project:
    with transaction(sessions) as session:
        return make_project(session)


@pytest.fixture
def api_key(sessions: Sessions, project: Project) -> str:
    """A live key of the project `default`."""
    with transaction(sessions) as session:
        return make_key(session, project)


@pytest.fixture
def app(settings: Settings, storage: LocalStorage) -> FastAPI:
    from app.main import create_app  # here, so that tests of the worker never load the HTTP process

    return create_app(settings, storage=storage)


@pytest.fixture
def client(app: FastAPI, api_key: str) -> Iterator[TestClient]:
    """The API in this process, with the key of the project `default`; an exception that nobody handles is a 500."""
    from starlette.testclient import TestClient

    headers = {"Authorization": f"Bearer {api_key}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def live_server(app: FastAPI) -> Iterator[LiveServer]:
    """The API behind a real socket: `live_server.url` is what `base_url` wants, with /v1."""
    with serve(app) as server:
        yield server
