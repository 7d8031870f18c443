"""Workers whose files are in a bucket: jobs of two hosts, and a bucket that fails while a job runs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, update

from app.db.engine import transaction
from app.db.tables import Job
from app.settings import Settings
from app.storage.s3 import S3Storage
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3 import with_prefix
from tests.sentences import Reviewed
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.node.resources import Resources, open_resources
from worker.reconciler import cleanup

AWAY = {"methods": ("PUT", "POST"), "status": 500, "code": "InternalError"}
FULL = {"methods": ("PUT", "POST"), "status": 507, "code": "XMinioStorageFull"}


@pytest.fixture
def resources(settings: Settings, proxy: FaultyProxy, tmp_path: Path) -> Iterator[Resources]:
    """Those of a worker with the bucket, and without boto3's own pauses between attempts."""
    location = with_prefix(proxy.location, secrets.token_hex(4))
    opened = open_resources(settings)
    yield replace(opened, storage=S3Storage(location, settings.storage_dir / "staging", attempts=1))
    opened.close()


def keys(harness: WorkerHarness, prefix: str = "jobs") -> list[str]:
    return list(harness.resources.storage.older_than(prefix, 2e9))


def end_the_pause(harness: WorkerHarness, job: Job) -> None:
    with transaction(harness.sessions) as session:
        session.execute(update(Job).where(Job.id == job.id).values(run_after=func.clock_timestamp()))


class TestAJob:
    def test_a_job_stores_its_adapter_in_the_bucket_and_nothing_else(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        assert harness.run_next_job(TrainerPlan(steps=4, checkpoint_every=2, snapshot_every=1))
        done = harness.job(job)
        assert done.state == "succeeded"
        assert done.adapter_archive_file_id is not None
        assert len(harness.content(done.adapter_archive_file_id)) == done.adapter_bytes
        assert [key for key in keys(harness) if "/snapshots/" in key] == []
        assert cleanup.delete_orphans(harness.resources, older_than_seconds=-60) == 0
        assert list(harness.resources.storage.staging.iterdir()) == []

    def test_another_host_continues_a_job_from_the_bucket_alone(
        self, harness: WorkerHarness, settings: Settings, tmp_path: Path
    ) -> None:
        """The second host has a data directory of its own, and resumes from the snapshot of the first."""
        job = harness.create_queued_job()
        crash = TrainerPlan(steps=6, snapshot_every=1, faults={"2": {"4": "signal:SIGKILL"}})
        assert harness.run_next_job(crash)
        other = settings.model_copy(update={"data_dir": tmp_path / "host-2"})
        storage = S3Storage(harness.resources.storage.location, other.storage_dir / "staging")  # type: ignore[attr-defined]
        host = replace(harness.resources, settings=other, storage=storage)
        second = WorkerHarness(host, harness.project, tmp_path / "host-2.lock")
        assert second.run_next_job(TrainerPlan(steps=6, snapshot_every=1), owner="gpu0@host-2#1")
        done = second.job(job)
        assert (done.state, done.train_attempts) == ("succeeded", 2)
        assert any("step 4" in message or "step 3" in message for message in second.messages(job) if "esum" in message)
        assert not (tmp_path / "host-2" / "storage" / "objects").exists()
        assert len(harness.content(done.adapter_archive_file_id or "")) == done.adapter_bytes


class TestABucketThatFails:
    def test_a_short_outage_of_the_bucket_costs_a_job_nothing(
        self, harness: WorkerHarness, proxy: FaultyProxy, reviewed: Reviewed
    ) -> None:
        job = harness.create_queued_job()
        proxy.fault = Fault(times=2, **AWAY)  # type: ignore[arg-type]
        assert harness.run_next_job(TrainerPlan(steps=4, checkpoint_every=2))
        done = harness.job(job)
        assert (done.state, done.train_attempts) == ("succeeded", 1)
        assert [checkpoint.step_number for checkpoint in harness.checkpoints(job)] == [4, 2]
        (warning,) = [event.message for event in harness.events(job) if event.level == "warn"]
        reviewed(warning)

    def test_a_long_outage_of_the_bucket_ends_the_attempt_and_the_job_continues_later(
        self, harness: WorkerHarness, proxy: FaultyProxy, reviewed: Reviewed
    ) -> None:
        harness.resources.settings.storage_retry_seconds = 0
        job = harness.create_queued_job()
        proxy.fault = Fault(skip=10, **AWAY)  # type: ignore[arg-type]
        assert harness.run_next_job(TrainerPlan(steps=6, snapshot_every=1))
        waiting = harness.job(job)
        assert (waiting.state, waiting.reason) == ("queued", "storage_unavailable")
        reviewed(harness.messages(job)[-1])
        proxy.fault = None
        assert harness.run_next_job(TrainerPlan(steps=6, snapshot_every=1))
        assert harness.job(job).state == "succeeded"

    def test_an_outage_of_the_bucket_before_the_training_ends_the_attempt(
        self, harness: WorkerHarness, proxy: FaultyProxy
    ) -> None:
        job = harness.create_queued_job()
        proxy.fault = Fault(status=403, code="RequestTimeTooSkewed")
        assert harness.run_next_job(TrainerPlan(steps=2))
        assert harness.job(job).reason == "storage_unavailable"
        assert "NTP" in harness.messages(job)[-1]
        proxy.fault = None
        assert harness.run_next_job(TrainerPlan(steps=2))
        assert harness.job(job).state == "succeeded"

    def test_a_full_bucket_lets_the_job_wait_for_space(self, harness: WorkerHarness, proxy: FaultyProxy) -> None:
        job = harness.create_queued_job()
        proxy.fault = Fault(**FULL)  # type: ignore[arg-type]
        assert harness.run_next_job(TrainerPlan(steps=2))
        waiting = harness.job(job)
        assert (waiting.state, waiting.phase, waiting.reason) == ("queued", "waiting_for_storage", "storage_full")
        text = "Files cannot be stored: the bucket is full (XMinioStorageFull): delete files that are not needed"
        assert any(message.startswith(text) for message in harness.messages(job))
        end_the_pause(harness, job)
        assert harness.run_next_job(TrainerPlan(steps=2))  # still full: seen before the training
        assert harness.job(job).phase == "waiting_for_storage"
        proxy.fault = None
        end_the_pause(harness, job)
        assert harness.run_next_job(TrainerPlan(steps=2))
        assert harness.job(job).state == "succeeded"


class TestCleanup:
    def test_the_cleanup_keeps_objects_of_a_running_attempt_and_deletes_those_without_a_row(
        self, harness: WorkerHarness, tmp_path: Path
    ) -> None:
        storage = harness.resources.storage
        job = harness.create_queued_job()
        running = harness.claim()
        held = f"jobs/{job.id}/attempts/{running.attempt}/checkpoints/step-000001/0a1b2c3d/adapter.tar"
        earlier = held.replace(f"/{running.attempt}/", f"/{running.attempt - 1}/")
        for key in (held, earlier, "exports/none/attempts/1/a/model.safetensors", "probes/0a"):
            path = tmp_path / "object"
            path.write_bytes(b"x")
            storage.put(key, path)
        assert cleanup.delete_orphans(harness.resources) == 0
        assert cleanup.delete_orphans(harness.resources, older_than_seconds=-60) == 3
        assert keys(harness) == [held]
