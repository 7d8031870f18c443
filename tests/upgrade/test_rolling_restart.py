"""Processes of two versions side by side, under load: a rolling restart of a service with a running job.

The order is that of docs/operate/deploy.md: the migration, the workers and the reconciler, the API. Both APIs accept
from one socket, as behind a proxy, and the load comes from the official client with its own retries.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.deadline import until
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.upgrade.deployment import (
    MARKS,
    Deployment,
    client_of,
    create,
    deployment,
    is_alive,
    upload,
)
from tests.upgrade.earlier import EARLIER, check_out
from tools.checkout import ROOT

pytestmark = [*MARKS, pytest.mark.timeout(1800)]

JOBS = "/v1/fine_tuning/jobs"
MAX_JOBS = 12
EXAMPLES, EPOCHS = 64, 20  # of the job that runs through the restart
LOAD_THREADS = 2
PAUSE_SECONDS = 0.5
JOB_SECONDS = 900.0  # on a machine with a load of 30


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
        service.start_api("old-api", EARLIER)
        service.start_workers("old", EARLIER)
        until(lambda: is_alive(service, "old-api"), "the earlier API answers", 60)
        service.register(EARLIER, base)
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
    service.start_api("new-api", ROOT)
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
