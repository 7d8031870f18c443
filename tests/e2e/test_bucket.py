"""The whole service with its files in a bucket: the S3 server is killed during a job; two hosts share nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from app.db import migrate
from app.db.engine import make_engine, make_sessions, transaction
from app.settings import Settings
from app.system import artifact_directory
from tests.deadline import until
from tests.e2e.test_main_job import ENDED, EXAMPLE, MODEL, connect, finished
from tests.factories import make_base_model, make_key, make_project
from tests.s3 import S3Server, rclone_server
from tests.serving import api_process
from tests.stack import open_directory, start_postgres, start_valkey
from tests.tiny import make_tiny_dataset
from tests.up import Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

QUIET = ("--without-gossip", "--without-mingle", "-l", "INFO")
SHORT_LEASES = {
    "TUNERY_LEASE_TTL_SECONDS": "20",
    "TUNERY_LEASE_RENEW_SECONDS": "2",
    "TUNERY_SELF_FENCE_SECONDS": "14",
    "TUNERY_SELF_FENCE_KILL_SECONDS": "17",
    "TUNERY_REAP_GRACE_SECONDS": "1",
    "TUNERY_REQUEUE_DELAY_SECONDS": "0",
    "TUNERY_SNAPSHOT_INTERVAL_SECONDS": "1",
    "TUNERY_DEVICE": "cpu",
}


@pytest.fixture
def server() -> Iterator[S3Server]:
    with open_directory() as directory, rclone_server(directory) as server:
        yield server


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)]


def step(client: openai.OpenAI, job_id: str) -> int:
    return int(((client.fine_tuning.jobs.retrieve(job_id).model_extra or {})["progress"] or {}).get("step", 0))


def download_adapter(client: openai.OpenAI, job_id: str, directory: Path) -> None:
    """Download the files of the last checkpoint and verify them."""
    directory.mkdir()
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job_id)))
    for file_id in (checkpoint.model_extra or {})["result_files"]:
        client.files.content(file_id).write_to_file(directory / client.files.retrieve(file_id).filename)
    artifact_directory.verify(directory)


@pytest.mark.e2e
def test_the_main_job_ends_well_although_the_s3_server_is_killed_in_between(server: S3Server, tmp_path: Path) -> None:
    """No step is repeated: the worker waits for the bucket with the snapshot that it has to store."""
    with open_directory() as directory:
        service = Service(directory, server.environment | {"TUNERY_SNAPSHOT_INTERVAL_SECONDS": "2"})
        try:
            service.start()
            client = connect(service, max_retries=0)
            lines = (EXAMPLE / "train.jsonl").read_bytes().splitlines(keepends=True)[:48]
            training = client.files.create(file=("train.jsonl", b"".join(lines)), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(
                model=MODEL,
                training_file=training.id,
                hyperparameters={"n_epochs": 2, "batch_size": 8},
                extra_body={"lora": {"r": 8, "alpha": 16}},
            )
            until(lambda: step(client, job.id) >= 2, "it trains", 600, interval_seconds=0.5)
            server.kill()
            with pytest.raises(openai.InternalServerError, match="bucket") as caught:
                client.files.create(file=("other.jsonl", b"".join(lines)), purpose="fine-tune")
            assert caught.value.status_code == 503
            assert httpx2.get(f"{service.url}/readyz", trust_env=False).status_code == 503
            is_seen = lambda: any("Files cannot be stored" in text for text in messages(client, job.id))  # noqa: E731
            until(is_seen, "an event says that the bucket is away", 300, interval_seconds=1.0)
            server.start()
            done = finished(client, job.id, 900)
            assert (done.status, done.error) == ("succeeded", None)
            assert (done.model_extra or {})["attempts"] == 1
            download_adapter(client, job.id, tmp_path / "adapter")
            assert client.files.content(training.id).content == b"".join(lines)
            assert client.files.create(file=("other.jsonl", b"".join(lines)), purpose="fine-tune").status == "processed"
            assert not (service.data / "storage" / "objects").exists()
        finally:
            service.stop()


@dataclass(frozen=True)
class Shared:
    """What the hosts share: PostgreSQL, the broker and the bucket, and the directory of base models."""

    environment: Mapping[str, str]
    settings: Settings
    key: str


@pytest.fixture
def shared(server: S3Server, tmp_path: Path) -> Iterator[Shared]:
    with ExitStack() as stack:
        database_url, stop = start_postgres()
        stack.callback(stop)
        redis_url, stop = start_valkey()
        stack.callback(stop)
        engine = make_engine(database_url)
        migrate.upgrade(engine)
        with transaction(make_sessions(engine)) as session:
            key = make_key(session, make_project(session))
            make_base_model(session, tmp_path / "models" / "tiny")
        engine.dispose()
        settings = Settings(database_url=database_url, redis_url=redis_url, data_dir=tmp_path / "api-host")
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        yield Shared(os.environ | urls | SHORT_LEASES | server.environment, settings, key)


@contextmanager
def program(shared: Shared, data_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One program of a host, in a session of its own, with the host's data directory."""
    data_dir.mkdir(exist_ok=True)
    environment = dict(shared.environment) | {"TUNERY_DATA_DIR": str(data_dir)}
    with (data_dir / f"{arguments[-1]}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def worker(queue: str, host: str) -> tuple[str, ...]:
    return (
        *("celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1"),
        "-Q",
        queue,
        *QUIET,
        "-n",
        f"{queue}0@{host}",
    )


def test_two_worker_hosts_share_nothing_but_the_servers_and_the_bucket(shared: Shared, tmp_path: Path) -> None:
    """The second host continues the job of the first one, which is killed, from a snapshot in the bucket."""
    hosts = [tmp_path / name for name in ("api-host", "host-1", "host-2")]
    with ExitStack() as stack:
        api, _ = stack.enter_context(api_process(shared.settings, environment=shared.environment))
        stack.enter_context(program(shared, hosts[0], "worker.reconciler"))
        stack.enter_context(program(shared, hosts[0], *worker("cpu", "api-host")))
        first = stack.enter_context(program(shared, hosts[1], *worker("gpu", "host-1")))
        client = openai.OpenAI(base_url=api.url, api_key=shared.key)
        data = make_tiny_dataset(tmp_path / "tiny.jsonl", 16)
        training = client.files.create(file=data, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="tiny", training_file=training.id, hyperparameters={"n_epochs": 12, "batch_size": 1}
        )
        until(lambda: step(client, job.id) > 20, "the first host trains", 300, interval_seconds=0.2)
        os.killpg(first.pid, signal.SIGKILL)
        stack.enter_context(program(shared, hosts[2], *worker("gpu", "host-2")))
        has_ended = lambda: client.fine_tuning.jobs.retrieve(job.id).status in ENDED  # noqa: E731
        until(has_ended, "the second host completes the job", 600, interval_seconds=0.5)
        done: Any = client.fine_tuning.jobs.retrieve(job.id)
        assert (done.status, done.error, done.model_extra["attempts"]) == ("succeeded", None, 2)
        assert any(text.startswith("Resum") or "resumed after step" in text for text in messages(client, job.id))
        download_adapter(client, job.id, tmp_path / "adapter")
    assert not any((host / "storage" / "objects").exists() for host in hosts)
