"""One API process on servers of its own, with a job to poll and an artifact to download: for `make bench-upload`."""

from __future__ import annotations

import http.client
import http.server
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.db import files, migrate
from app.db.engine import make_engine, make_sessions, transaction
from app.db.tables import File
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import make_base_model, make_file, make_job, make_key, make_project
from tests.stack import start_postgres, start_valkey

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
BLOCK = os.urandom(1 << 20)


@dataclass(frozen=True)
class Service:
    port: int
    key: str
    process: psutil.Process
    job_id: str
    artifact_id: str
    artifact: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@contextmanager
def serving(directory: Path, artifact_bytes: int) -> Iterator[Service]:
    """One API process, as `tunery up` starts it, on servers of its own."""
    with ExitStack() as stack:
        database_url, stop_postgres = start_postgres()
        stack.callback(stop_postgres)
        redis_url, stop_valkey = start_valkey()
        stack.callback(stop_valkey)
        settings = Settings(database_url=database_url, redis_url=redis_url, data_dir=directory / "data")
        key, job_id, artifact_id, artifact = prepare(settings, directory, artifact_bytes)
        port = free_port()
        command = [sys.executable, "-m", "app.serve"]
        environment = os.environ | {
            "DATABASE_URL": database_url, "REDIS_URL": redis_url, "TUNERY_DATA_DIR": str(settings.data_dir),
        }  # fmt: skip
        with (directory / "api.log").open("wb") as log:
            api = subprocess.Popen(
                [*command, "--host", HOST, "--port", str(port)],
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        stack.callback(stop, api)
        wait_for(port)
        yield Service(port, key, psutil.Process(api.pid), job_id, artifact_id, artifact)


def prepare(settings: Settings, directory: Path, artifact_bytes: int) -> tuple[str, str, str, Path]:
    """A key, a job to poll, and an artifact to download."""
    engine = make_engine(settings.database_url)
    migrate.upgrade(engine)
    storage = LocalStorage(settings.storage_dir)
    with transaction(make_sessions(engine)) as session:
        project = make_project(session)
        key = make_key(session, project)
        make_base_model(session, directory / "model")
        job = make_job(session, project, make_file(session, storage, project))
        staged = storage.staging / "artifact"
        with staged.open("wb") as file:
            for _ in range(artifact_bytes >> 20):
                file.write(BLOCK)
        storage.put("files/artifact", staged)
        columns = {"purpose": "user_data", "filename": "artifact.bin", "bytes": artifact_bytes, "sha256": "0" * 64}
        row = files.insert(session, File(project_id=project.id, storage_key="files/artifact", **columns))
    engine.dispose()
    return key, job.id, row.id, storage.objects / "files" / "artifact"


def listed(numbers: list[float]) -> str:
    return ", ".join(f"{number:.0f}" for number in numbers)


def free_port() -> int:
    with http.server.HTTPServer((HOST, 0), http.server.BaseHTTPRequestHandler) as server:
        return int(server.server_port)


def wait_for(port: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)
