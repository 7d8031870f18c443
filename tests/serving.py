"""The API behind a real socket, in a thread or a process, for tests with clients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import uvicorn

from tests.deadline import until

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.settings import Settings

START_SECONDS = 10.0


@dataclass(frozen=True)
class LiveServer:
    host: str
    port: int

    @property
    def root(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The `base_url` of the official client."""
        return f"{self.root}/v1"


@contextmanager
def serve(app: FastAPI) -> Iterator[LiveServer]:
    """Serve `app` on a free loopback port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http="httptools", ws="none", log_config=None, lifespan="on", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield LiveServer(*listener.getsockname()[:2])
        finally:
            server.should_exit = True
            thread.join()


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the API did not start")
        time.sleep(0.005)


@contextmanager
def api_process(
    settings: Settings,
    command: Sequence[str] = (sys.executable, "-m", "app.serve"),
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[tuple[LiveServer, subprocess.Popen[bytes]]]:
    """Start the API as a separate process, as `tunery up` does, so that a test can kill it. `log` gets its output."""
    server = LiveServer("127.0.0.1", free_port())
    process_environment = os.environ | {
        "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url,
        "TUNERY_DATA_DIR": str(settings.data_dir), "UVICORN_PORT": str(server.port), **(environment or {}),
    }  # fmt: skip
    with ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, env=process_environment, stdout=output, stderr=output)
        try:
            until(lambda: _answers(server), "the API", seconds=120)
            yield server, process
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _answers(server: LiveServer) -> bool:
    try:
        return httpx2.get(f"{server.root}/healthz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
