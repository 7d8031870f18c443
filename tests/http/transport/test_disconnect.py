"""A server that is asked to stop while streams are open: a real process, a real signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import httpx2
import pytest

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.settings import Settings
from app.storage import LocalStorage
from tests.deadline import until
from tests.factories import make_file, make_job

STREAMS = ["events/stream", "fine_tuning/jobs/{job}/events/stream", "fine_tuning/jobs/{job}?wait=60"]


@pytest.fixture
def waiting_job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> str:
    with transaction(sessions) as session:
        return make_job(session, project, make_file(session, storage, project)).id


@pytest.mark.parametrize(
    "path",
    [
        STREAMS[0],
        *(pytest.param(path, marks=pytest.mark.extended("the same for the other streams")) for path in STREAMS[1:]),
    ],
)
def test_a_stopping_server_ends_its_streams_at_once(
    path: str, settings: Settings, api_key: str, waiting_job: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:app_from_environment", "--port", str(port)]
    environment = os.environ | {
        "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url,
        "TUNERY_DATA_DIR": str(settings.data_dir),
    }  # fmt: skip
    server = subprocess.Popen([*command, "--timeout-graceful-shutdown", "100"], env=environment)
    try:
        root = f"http://127.0.0.1:{port}"
        until(lambda: is_up(root), "the API", seconds=120)
        headers = {"Authorization": f"Bearer {api_key}"}
        url = f"{root}/v1/{path.format(job=waiting_job)}"
        if "wait" in path:
            first = httpx2.get(url.partition("?")[0], headers=headers, trust_env=False)
            headers["If-None-Match"] = first.headers["etag"]
        with httpx2.Client(headers=headers, trust_env=False, timeout=50) as client:
            if "stream" in path:
                with client.stream("GET", url) as answer:
                    server.send_signal(signal.SIGTERM)
                    assert "retry: 2000" in list(answer.iter_lines())
            else:
                stop_soon(server)
                assert client.get(url).status_code == 304
        server.wait(50)  # not the 100 seconds for which uvicorn waits for open requests, nor the 60 of `?wait=`
    finally:
        server.kill()
        server.wait()


def is_up(root: str) -> bool:
    try:
        return httpx2.get(f"{root}/healthz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def stop_soon(server: subprocess.Popen[bytes]) -> None:
    """When the request is there: uvicorn closes idle connections at once."""
    threading.Timer(1.0, server.send_signal, [signal.SIGTERM]).start()
