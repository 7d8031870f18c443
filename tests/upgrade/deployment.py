"""A service whose processes are of two versions, on one database and one data directory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.stack import open_directory, start_postgres, start_valkey
from tests.upgrade.earlier import COMMIT
from tools.checkout import HOW_TO_FETCH, is_in_history

KEY = "rolling-restart-admin-key-0123456789abcdef"
SETTINGS = {
    "TUNERY_DEVICE": "cpu",
    "TUNERY_THREADS": "1",
    "TUNERY_SPARE_TRAINER": "false",
    "TUNERY_SNAPSHOT_INTERVAL_SECONDS": "1",
    "TUNERY_POLL_SECONDS": "1",
    "TUNERY_RECONCILE_SECONDS": "1",
    "TUNERY_LOW_DISK_PERCENT": "0",
    "TUNERY_BASE_MODEL_DIRECTORIES": "/",
}
WORKER = ("-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1")
QUIET = ("--without-gossip", "--without-mingle", "-l", "INFO")
MARKS = (
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not is_in_history(COMMIT), reason=HOW_TO_FETCH),
)


@dataclass
class Deployment:
    """Processes of both versions on one database, one broker and one data directory."""

    directory: Path
    urls: Mapping[str, str]
    listener: socket.socket
    settings: Mapping[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def root_url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self, version: Path, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, *arguments], cwd=version, env=self._environment(version), check=True, timeout=120
        )

    def register(self, version: Path, base: Path) -> None:
        """Register a base model through an API and a GPU worker that run."""
        environment = {"TUNERY_BASE_URL": f"{self.root_url}/v1", "TUNERY_API_KEY": KEY}
        command = [sys.executable, "-m", "app.cli", "models", "add", "tiny", str(base)]
        subprocess.run(command, cwd=version, env=self._environment(version) | environment, check=True, timeout=300)

    def start(self, name: str, version: Path, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=version,
                env=self._environment(version),
                stdout=log,
                stderr=log,
                pass_fds=[self.listener.fileno()],
            )

    def start_workers(self, prefix: str, version: Path) -> None:
        for queue in ("gpu", "cpu"):
            self.start(f"{prefix}-{queue}", version, *WORKER, "-Q", queue, "-n", f"{prefix}-{queue}@%h", *QUIET)
        self.start(f"{prefix}-reconciler", version, "-m", "worker.reconciler")

    def start_api(self, name: str, version: Path) -> None:
        self.start(name, version, "-m", "app.serve", "--fd", str(self.listener.fileno()))

    def stop(self, *names: str) -> None:
        """SIGTERM, as an orchestrator sends it; a worker saves its job first."""
        stopping = [self.processes.pop(name) for name in names]
        for process in stopping:
            process.terminate()
        for name, process in zip(names, stopping, strict=True):
            assert process.wait(120) in (0, -15, 143), (name, self.log(name))

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop_all(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")[-4000:]

    def has_answered(self, name: str, method: str, path: str) -> bool:
        """Whether this API, one of this version, has answered such a request."""
        lines = (self.directory / f"{name}.log").read_text(errors="replace").splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return any((each.get("method"), each.get("path")) == (method, path) for each in records)

    def _environment(self, version: Path) -> dict[str, str]:
        files = {
            "PYTHONPATH": str(version),
            "TUNERY_DATA_DIR": str(self.directory / "data"),
            "TUNERY_ADMIN_KEY_FILE": str(self.directory / "admin-key"),
        }
        return {**os.environ, **files, **self.settings, **self.urls}


@contextmanager
def deployment(**settings: str) -> Iterator[Deployment]:
    with ExitStack() as stack:
        directory = stack.enter_context(open_directory())
        (directory / "admin-key").write_text(KEY)
        urls = {}
        for name, begin in (("DATABASE_URL", start_postgres), ("REDIS_URL", start_valkey)):
            urls[name], stop = begin()
            stack.callback(stop)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        deployed = Deployment(directory, urls, listener, SETTINGS | settings)
        stack.callback(deployed.stop_all)
        yield deployed


@contextmanager
def client_of(root_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{root_url}/v1", http_client=None) as client:
        yield client


def upload(client: openai.OpenAI, path: Path) -> str:
    with path.open("rb") as file:
        return client.files.create(file=file, purpose="fine-tune").id


def create(client: openai.OpenAI, training_file: str, epochs: int) -> str:
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 1}}}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file, method=method, seed=7, extra_body={"lora": {"r": 4}}
    )
    return job.id


def is_alive(service: Deployment, name: str) -> bool:
    assert service.processes[name].poll() is None, service.log(name)
    try:
        return httpx2.get(f"{service.root_url}/healthz", trust_env=False, timeout=2).is_success
    except httpx2.HTTPError:
        return False
