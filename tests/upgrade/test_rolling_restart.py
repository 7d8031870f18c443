"""Processes of two versions side by side, under load: a rolling restart of a service with a running job.

The order is that of docs/deploy.md: the migration, the workers and the reconciler, the API. Both APIs accept from one
socket, as behind a proxy, and the load comes from the official client with its own retries.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.compat.earlier import CHECKOUT, COMMIT, ROOT, check_out, is_in_history
from tests.deadline import until
from tests.stack import open_directory, start_postgres, start_valkey
from tests.tiny import make_tiny_base, make_tiny_dataset

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not is_in_history(), reason=f"commit {COMMIT} is not here: git fetch --unshallow"),
]

EARLIER = CHECKOUT / "project"

KEY = "rolling-restart-admin-key-0123456789abcdef"
SETTINGS = {
    "TUNERY_DEVICE": "cpu",
    "TUNERY_THREADS": "1",
    "TUNERY_SPARE_TRAINER": "false",
    "TUNERY_SNAPSHOT_INTERVAL_SECONDS": "1",
    "TUNERY_POLL_SECONDS": "1",
    "TUNERY_RECONCILE_SECONDS": "1",
    "TUNERY_LOW_DISK_PERCENT": "0",
}
WORKER = ("-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1")
QUIET = ("--without-gossip", "--without-mingle", "-l", "INFO")
OLD_API = ("-m", "uvicorn", "--factory", "app.main:app_from_environment", "--timeout-graceful-shutdown", "5")
NEW_API = ("-m", "app.serve")
JOBS = "/v1/fine_tuning/jobs"
MAX_JOBS = 12
EXAMPLES, EPOCHS = 64, 20  # of the job that runs through the restart
LOAD_THREADS = 2
PAUSE_SECONDS = 0.5
JOB_SECONDS = 900.0  # on a machine with a load of 30


@dataclass
class Deployment:
    """Processes of both versions on one database, one broker and one data directory."""

    directory: Path
    urls: Mapping[str, str]
    listener: socket.socket
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def root_url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self, version: Path, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, *arguments], cwd=version, env=self._environment(version), check=True, timeout=120
        )

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

    def start_api(self, name: str, version: Path, command: tuple[str, ...]) -> None:
        self.start(name, version, *command, "--fd", str(self.listener.fileno()))

    def stop(self, *names: str) -> None:
        """SIGTERM, as an orchestrator sends it; a worker saves its job first."""
        stopping = [self.processes.pop(name) for name in names]
        for process in stopping:
            process.terminate()
        for name, process in zip(names, stopping, strict=True):
            assert process.wait(120) in (0, -15, 143), (name, self.log(name))

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
        own = {"PYTHONPATH": str(version), "TUNERY_DATA_DIR": str(self.directory / "data"), **SETTINGS, **self.urls}
        return {**os.environ, **own, "TUNERY_ADMIN_KEY_FILE": str(self.directory / "admin-key")}


@contextmanager
def deployment() -> Iterator[Deployment]:
    with ExitStack() as stack:
        directory = stack.enter_context(open_directory())
        (directory / "admin-key").write_text(KEY)
        urls = {}
        for name, begin in (("DATABASE_URL", start_postgres), ("REDIS_URL", start_valkey)):
            urls[name], stop = begin()
            stack.callback(stop)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        deployed = Deployment(directory, urls, listener)
        stack.callback(deployed.stop_all)
        yield deployed


class Load:
    """A steady load of the official client. A failure is what the client raises after its own retries."""

    def __init__(self, root_url: str, training_file: str, running_job: str) -> None:
        self._root_url = root_url
        self._training_file = training_file
        self._running_job = running_job
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(LOAD_THREADS)]
        self.failures: list[str] = []
        self.requests = 0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        with client_of(self._root_url) as client:
            jobs = client.fine_tuning.jobs
            requests: list[Callable[[], Any]] = [
                lambda: jobs.retrieve(self._running_job),
                lambda: jobs.list(limit=20),
                lambda: jobs.list_events(self._running_job, limit=5),
                lambda: client.files.retrieve(self._training_file),
                client.models.list,
            ]
            while not self._stop.wait(PAUSE_SECONDS):
                for request in requests:
                    try:
                        request()
                    except Exception as error:
                        self.failures.append(repr(error))
                    self.requests += 1


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


def until_status(client: openai.OpenAI, job_id: str, status: str) -> None:
    def has_status() -> bool:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status in (status, "validating_files", "queued", "running"), job
        return job.status == status

    until(has_status, f"{job_id} is {status}", JOB_SECONDS, interval_seconds=0.2)


def step_of(client: openai.OpenAI, job_id: str) -> int:
    progress = client.fine_tuning.jobs.retrieve(job_id).model_dump().get("progress") or {}
    return int(progress.get("step") or 0)


def steps_of(client: openai.OpenAI, job_id: str) -> list[int]:
    """The number of each step that an event reports."""
    events = client.fine_tuning.jobs.list_events(job_id, limit=100)
    return [int(found[1]) for event in events if (found := re.match(r"Step (\d+)/", event.message))]


def test_a_rolling_restart_under_load_loses_no_step_and_no_request() -> None:
    check_out()
    with deployment() as service:
        base = make_tiny_base(service.directory / "tiny")
        service.run(EARLIER, "-m", "app.db.migrate")
        service.run(EARLIER, "-m", "app.cli", "models", "add", "tiny", str(base))
        service.start_api("old-api", EARLIER, OLD_API)
        service.start_workers("old", EARLIER)
        until(lambda: is_alive(service, "old-api"), "the earlier API answers", 60)
        with client_of(service.root_url) as client:
            training_file = upload(client, make_tiny_dataset(service.directory / "short.jsonl", 10))
            long_file = upload(client, make_tiny_dataset(service.directory / "long.jsonl", EXAMPLES))
            running = create(client, long_file, EPOCHS)
            until(lambda: step_of(client, running) >= 10, "the job trains", 120)
            with Load(service.root_url, training_file, running) as load:
                created = roll(service, client, training_file, running)
            assert not load.failures
            assert load.requests > 100
            for job_id in created:
                until_status(client, job_id, "succeeded")
            assert sorted(steps_of(client, running)) == list(range(1, EPOCHS * EXAMPLES + 1))  # each of them once
            assert client.fine_tuning.jobs.retrieve(running).model_dump()["attempts"] == 2


def roll(service: Deployment, client: openai.OpenAI, training_file: str, running: str) -> list[str]:
    """Restart every process with this version, in the order of the documentation. Returns the jobs created."""
    service.run(ROOT, "-m", "app.db.migrate")
    created = [running, create(client, training_file, 1)]
    service.start_workers("new", ROOT)
    until_status(client, created[-1], "succeeded")  # by the new worker, while the old one trains
    service.stop("old-gpu", "old-cpu", "old-reconciler")
    stopped_at = step_of(client, running)
    assert stopped_at < EPOCHS * EXAMPLES, "the job ended before the restart: give it more steps"
    until(lambda: step_of(client, running) > stopped_at, "the running job goes on", 120)
    service.start_api("new-api", ROOT, NEW_API)
    until(
        lambda: is_alive(service, "new-api") and service.has_answered("new-api", "GET", "/healthz"), "the new API", 120
    )
    while not service.has_answered("new-api", "POST", JOBS):  # the kernel chooses the API of each connection
        assert len(created) < MAX_JOBS
        with client_of(service.root_url) as another_client:
            created.append(create(another_client, training_file, 1))
    service.stop("old-api")
    created.append(create(client, training_file, 1))
    for job_id in created:
        until_status(client, job_id, "succeeded")
    return created


def is_alive(service: Deployment, name: str) -> bool:
    assert service.processes[name].poll() is None, service.log(name)
    try:
        return httpx2.get(f"{service.root_url}/healthz", trust_env=False, timeout=2).is_success
    except httpx2.HTTPError:
        return False
