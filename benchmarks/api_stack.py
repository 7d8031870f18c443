"""Servers for `make bench-api`: a durable PostgreSQL of its own, tables filled by SQL, one uvicorn process each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import create_engine, make_url, text

from app.cli.local_stack.servers import LocalPostgres
from app.db import migrate
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.storage import LocalStorage
from tests.factories import make_base_model, make_file, make_job, make_key, make_project
from tests.stack import open_directory

START_SECONDS = 60.0
QUEUED = 50  # of the jobs; the others have ended, as in a table of years

FILL = """
INSERT INTO jobs (id, project_id, base_model, training_file_id, spec, metadata, state, event_seq, train_attempts,
  finished_at, progress, trained_tokens, fine_tuned_model, result_file_ids, adapter_sha256, adapter_bytes,
  adapter_archive_file_id)
SELECT 'ftjob-' || lpad(n::text, 24, '0'), project_id, base_model, training_file_id, spec, metadata,
  CASE WHEN ended THEN 'succeeded' ELSE 'queued' END, 100, 1, CASE WHEN ended THEN clock_timestamp() END,
  '{"step": 90, "total_steps": 90, "epoch": 3.0, "tokens_per_second": 412.5, "eta_seconds": 0.0}', 51840,
  CASE WHEN ended THEN 'ft:tiny:tunery::' || n END, '["file-results"]', CASE WHEN ended THEN repeat('0f', 32) END,
  CASE WHEN ended THEN 9778176 END, CASE WHEN ended THEN 'file-archive' END
FROM jobs, generate_series(1, :jobs) AS n, LATERAL (SELECT n > :queued AS ended) AS which
"""
FILL_CHECKPOINTS = """
INSERT INTO checkpoints
  (id, project_id, job_id, attempt, step_number, name, metrics, manifest, file_ids, archive_file_id)
SELECT 'ftckpt_' || id, project_id, id, 1, 90, fine_tuned_model, '{"step": 90}', '{}',
  '["file-config", "file-weights"]', 'file-archive'
FROM jobs WHERE state = 'succeeded'
"""


@dataclass(frozen=True)
class Service:
    """An API process with a database of `job_ids`."""

    port: int
    process: psutil.Process
    database_url: str
    secret: str
    training_file_id: str
    job_ids: list[str]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    @property
    def sessions(self) -> Sessions:
        return make_sessions(make_engine(self.database_url))


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database; fsync is on, as in production."""
    with open_directory() as directory:
        server = LocalPostgres(directory / "pg", max_connections="200")  # three servers share it
        try:
            server.start()
            yield server.url
        finally:
            server.stop()


@contextmanager
def service(server_url: str, redis_url: str, name: str, jobs: int, directory: Path) -> Iterator[Service]:
    """Tunery with a database of its own that has so many jobs."""
    with create_engine(_psycopg(server_url), isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(_psycopg(server_url)).set(database=name).render_as_string(hide_password=False)
    secret, file_id, job_ids = fill(url, jobs, directory / name)
    with _process(["-m", "app.serve"], url, redis_url, directory / name) as (port, process):
        yield Service(port, process, url, secret, file_id, job_ids)


@contextmanager
def bare(database_url: str, directory: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of the bare route on the same database."""
    command = ["-m", "uvicorn", "benchmarks.bare:app", "--no-access-log", "--log-level", "warning"]
    with _process(command, database_url, "", directory) as served:
        yield served


def fill(database_url: str, jobs: int, data_dir: Path) -> tuple[str, str, list[str]]:
    """A key, a training file, and jobs as copies of one that was really made."""
    engine = make_engine(database_url)
    migrate.upgrade(engine)
    storage = LocalStorage(data_dir / "storage")
    with transaction(make_sessions(engine)) as session:
        project = make_project(session)
        secret = make_key(session, project)
        make_base_model(session, data_dir / "tiny")
        file = make_file(session, storage, project)
        make_job(session, project, file, metadata={"team": "search"})
        session.execute(text(FILL), {"jobs": jobs, "queued": min(QUEUED, jobs // 2)})
        session.execute(text(FILL_CHECKPOINTS))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        ids = list(connection.scalars(text("SELECT id FROM jobs WHERE state = 'succeeded' ORDER BY seq")))
    engine.dispose()
    return secret, file.id, ids


@contextmanager
def _process(
    words: list[str], database_url: str, redis_url: str, data_dir: Path
) -> Iterator[tuple[int, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, *words, "--port", str(port), "--timeout-graceful-shutdown", "5"]
    environment = os.environ | {
        "DATABASE_URL": database_url, "REDIS_URL": redis_url, "TUNERY_DATA_DIR": str(data_dir),
        "TUNERY_LOG_FILE": str(data_dir / "api.log"), "TUNERY_MAX_QUEUED_JOBS": "1000000",
        "TUNERY_TRIAL_ANSWERS": "true",
    }  # fmt: skip
    process = subprocess.Popen(command, env=environment, cwd=Path(__file__).resolve().parents[1])
    try:
        _wait_for(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "a server did not start"  # noqa: PT018
            time.sleep(0.05)


def _psycopg(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")
