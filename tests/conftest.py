"""Fixtures: real servers, started once; an empty database, an empty storage and an empty broker for every test.

The main fixtures are `sessions` (rows), `storage` (bytes), `settings`, `client` (the API in this process),
`live_server` (the API behind a socket), `api_key` (of the project `default`).
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import structlog
from sqlalchemy import Engine, create_engine, event

from app.db import migrate
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.tables import Base, Job, Project
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import (
    BASE_MODEL,
    make_base_model,
    make_file,
    make_job,
    make_key,
    make_project,
    start_job,
    validate_job,
)
from tests.kept_engines import APPLICATION_NAME, close_kept_engines, keep_engine, kept_engines
from tests.lanes import (  # noqa: F401 (hooks of pytest, and a fixture)
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_deselected,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    pytest_xdist_setupnodes,
    sampled,
)
from tests.sentences import reviewed  # noqa: F401 (a fixture)
from tests.serving import LiveServer, serve
from tests.stack import as_redis_py, start_postgres, start_valkey, temporary_database

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from tests.faulty_proxy import FaultyProxy
    from tests.s3 import S3Server
    from worker.node.resources import Resources

DISCONNECT_OTHERS = f"""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
AND NOT (application_name = '{APPLICATION_NAME}' AND state = 'idle')
"""


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Log with plain tracebacks: structlog's default renders all local variables of all frames, which takes a second.

    The lines go to the process's own standard error: pytest replaces `sys.stdout` between subtests, and a server's
    thread that writes to it at that moment crashes the interpreter.
    """
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
    )


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Leave files in the cache of the kernel, as the databases of the tests do: nothing outlives a test, and a flush
    takes 2 to 20 ms. Programs that tests start flush theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a migrated database."""
    url, stop = start_postgres()
    engine = make_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    yield url
    close_kept_engines()
    stop()


@pytest.fixture(scope="session")
def postgres_cleaner(postgres_server: str) -> Iterator[Engine]:
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    event.listen(engine, "connect", _make_cleaning)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    url, stop = start_valkey()
    yield url
    stop()


@pytest.fixture(scope="session")
def valkey_cleaner(valkey_server: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(as_redis_py(valkey_server)) as client:
        yield client


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with a bucket; tests use prefixes of their own."""
    from tests.s3 import rclone_server  # imported here, because boto3 takes a third of a second

    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Another S3 server, which has every operation of a bucket and checks no signatures."""
    from tests.s3 import moto_server

    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def proxy(rclone: S3Server) -> Iterator[FaultyProxy]:
    """A proxy of the server `rclone`, which fails as a test demands."""
    from tests.faulty_proxy import FaultyProxy

    with FaultyProxy(rclone).running() as proxy:
        yield proxy


@pytest.fixture
def database_url(postgres_server: str, postgres_cleaner: Engine) -> str:
    """The URL of the empty database, at the newest revision and without connections but those of kept engines.

    DELETE takes a millisecond; TRUNCATE takes 40, and a new database from a template 20 to 600. The session has the
    replication role `replica`, which disables triggers: the one of the audit log refuses to delete. A function of the
    one connection keeps the plans of all statements, as thousands of tests begin with them.
    """
    with postgres_cleaner.connect() as connection:
        connection.exec_driver_sql("SELECT pg_temp.clean()")
    return postgres_server


def _make_cleaning(connection: Any, _: Any) -> None:
    deletions = [f"DELETE FROM {table.fullname}" for table in reversed(Base.metadata.sorted_tables)]
    revision = f"UPDATE alembic_version SET version_num = '{migrate.head()}'"
    body = "; ".join([DISCONNECT_OTHERS.replace("SELECT", "PERFORM", 1), *deletions, revision])
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(f"CREATE FUNCTION pg_temp.clean() RETURNS void LANGUAGE plpgsql AS $$BEGIN {body}; END$$")


@pytest.fixture
def blank_database_url(postgres_server: str) -> Iterator[str]:
    """The URL of a new database without tables, for tests of the migrations."""
    # A name of its own: after a DROP DATABASE that a timeout interrupted, the next test must not fail, too.
    with temporary_database(postgres_server, f"blank_{secrets.token_hex(4)}") as url:
        yield url


@pytest.fixture
def redis_url(valkey_server: str, valkey_cleaner: redis.Redis) -> str:
    """The URL of the empty broker in Celery's form."""
    valkey_cleaner.flushall()
    return valkey_server


@pytest.fixture
def engine(database_url: str) -> Engine:
    return keep_engine(__name__, database_url)


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    """The session factory; `with transaction(sessions) as session:` commits, as the code under test does."""
    return make_sessions(engine)


@pytest.fixture(scope="session")
def common_settings(postgres_server: str, valkey_server: str) -> Settings:
    """Read and checked once in this process, as that takes 3 ms."""
    return Settings(
        database_url=postgres_server,
        redis_url=valkey_server,
        database_pool_size=5,
        device="cpu",
        threads=1,
        low_disk_percent=0,  # the tests may run on an almost full disk
    )


@pytest.fixture
def settings(common_settings: Settings, database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """The settings of the empty servers, with a directory of the test's own."""
    return common_settings.model_copy(update={"data_dir": tmp_path / "data"})


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.storage_dir)


@pytest.fixture
def project(sessions: Sessions) -> Project:
    with transaction(sessions) as session:
        return make_project(session)


@pytest.fixture
def api_key(sessions: Sessions, project: Project) -> str:
    """The secret of a valid key of the project `default`."""
    with transaction(sessions) as session:
        return make_key(session, project)


@pytest.fixture
def base_model(sessions: Sessions, tmp_path: Path) -> str:
    """The name of a tiny base model that is registered for every project."""
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / BASE_MODEL)
    return BASE_MODEL


@pytest.fixture
def job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    """A job in `validating_files`."""
    with transaction(sessions) as session:
        return make_job(session, project, make_file(session, storage, project))


@pytest.fixture
def running(sessions: Sessions, job: Job) -> Job:
    """The same job with a trainer."""
    with transaction(sessions) as session:
        validate_job(session)
        return start_job(session)


@pytest.fixture
def app(settings: Settings, storage: LocalStorage) -> FastAPI:
    from app import main  # imported here, so that tests of the worker never load the HTTP process

    with kept_engines(main):
        return main.create_app(settings, storage=storage)


@pytest.fixture
def client(app: FastAPI, api_key: str) -> Iterator[TestClient]:
    """The API in this process, with the key of the project `default`; an unhandled exception is a 500."""
    from starlette.testclient import TestClient

    headers = {"Authorization": f"Bearer {api_key}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def resources(settings: Settings) -> Iterator[Resources]:
    """The connections of a worker, a reconciler or a sender."""
    from worker.node import resources as module

    with kept_engines(module):
        resources = module.open_resources(settings)
    yield resources
    resources.close()


@pytest.fixture
def live_server(settings: Settings, storage: LocalStorage) -> Iterator[LiveServer]:
    """The API behind a real socket: `live_server.url` is the value of `base_url`, with /v1.

    It has its own app, as two event loops cannot share connections.
    """
    from app import main

    with kept_engines(main):
        app = main.create_app(settings, storage=storage)
    with serve(app) as server:
        yield server
