"""A finished job, targets, and a sender whose attempts run in the test's thread."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import func, select, update

from app.db.base_models import models as registry
from app.db.deliveries import credentials as encryption
from app.db.deliveries import deliveries
from app.db.engine import transaction
from app.db.jobs import claims
from app.db.jobs.leases import lease_of
from app.db.tables import Checkpoint, Delivery, DeliveryTarget, Job
from app.domain.deliveries.served_check import ReferencePrompt, ServedReference
from app.domain.jobs.states import Reason
from app.services import base_models
from app.settings import Settings
from app.system.artifact_directory import read_manifest, write_manifest
from tests.factories import expire_leases, make_file, make_job, make_target, reap_expired, start_job, validate_job
from tests.worker.engine_stand_in import EngineStandIn
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.deliveries.outbound import guard_connections
from worker.deliveries.sender import DeliverySender

KEY = Fernet.generate_key().decode()
REFERENCE = ServedReference(
    dtype="bfloat16",
    source="validation_file",
    noise=0.002,
    top1_agreement=1.0,
    prompts=[
        ReferencePrompt(tokens=[7, 8, 9, 10], positions=[2, 3], base=[-4.0, -3.0], adapter=[-0.1, -0.2], top=[9, 10]),
        ReferencePrompt(tokens=[7, 5, 6], positions=[2], base=[-2.5], adapter=[-0.3], top=[6]),
    ],
)


def unsaved_delivery(
    target_id: str = "target_1", model: str = "ft:tiny:x", served_model: str = "", **location: object
) -> Delivery:
    """A delivery with the rows that a claim loads, without a database."""
    rows = {"job": Job(id="ftjob-1", base_model="tiny"), "checkpoint": Checkpoint(manifest={})}
    return Delivery(target_id=target_id, model=model, served_model=served_model or model, location=location, **rows)


def adapter(directory: Path, config: Mapping[str, Any] = {"base_model_name_or_path": "other"}) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    write_manifest(directory, {"step": 1})
    return directory


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    return directory


@pytest.fixture
def settings(settings: Settings, shared: Path) -> Settings:
    return settings.model_copy(
        update={
            "delivery_directories": (str(shared),),
            "delivery_allow_http": True,
            "delivery_allowed_networks": "127.0.0.0/8",
            "delivery_timeout_seconds": 5.0,
            "secret_keys": type(settings.secret_keys)(KEY),
        }
    )


@dataclass
class DeliveryHarness:
    harness: WorkerHarness
    sender: DeliverySender
    shared: Path
    with_plugin: list[EngineStandIn] = field(default_factory=list)

    def target(self, destination: dict[str, Any], name: str = "production", **columns: Any) -> DeliveryTarget:
        secrets = columns.pop("secrets", None)
        columns["credentials"] = encryption.encrypt([KEY], secrets) if secrets else None
        with transaction(self.harness.sessions) as session:
            return make_target(session, self.harness.project.id, name, destination, **columns)

    def engine_destination(self, *engines: EngineStandIn, **changes: Any) -> dict[str, Any]:
        """The engines as one target, with the shared directory, unless their plugin fetches adapters."""
        destination = {"kind": engines[0].kind, "urls": [server.url for server in engines]}
        self.with_plugin += [each for each in engines if each.known is not None and each not in self.with_plugin]
        return destination | ({} if engines[0] in self.with_plugin else {"shared_path": str(self.shared)}) | changes

    def trained_job(self, *deliver_to: str) -> Job:
        """A job that a worker has run to its end, with a trainer that trains nothing."""
        with transaction(self.harness.sessions) as session:
            job = self.harness.create_queued_job()
            session.execute(update(Job).where(Job.id == job.id).values(deliver_to=list(deliver_to)))
        self.harness.run_next_job(TrainerPlan(steps=1))
        return self.harness.job(job)

    def finished_job(self, *deliver_to: str, reference: ServedReference | None = None) -> Job:
        """A job with a result, as a worker would have left it."""
        storage, project = self.harness.resources.storage, self.harness.project
        with transaction(self.harness.sessions) as session:
            make_job(session, project, make_file(session, storage, project)).deliver_to = list(deliver_to)
            validate_job(session)
            job = start_job(session)
            directory = adapter(self.shared.parent / f"result-of-{job.id}", {"r": 16})
            parts = [
                make_file(session, storage, project, path.read_bytes(), "fine-tune-results", path.name, job)
                for path in directory.iterdir()
            ]
            name, manifest = f"ft:{job.base_model}:tunery::{job.id[-8:]}", read_manifest(directory)
            rows = {"file_ids": [part.id for part in parts], "archive_file_id": parts[0].id, "manifest": manifest}
            of_job = {"project_id": project.id, "job_id": job.id, "attempt": job.attempt}
            result = Checkpoint(step_number=1, name=name, metrics={"step": 1}, **of_job, **rows)
            session.add(result)
            session.flush()
            registry.add_tuned(session, job, result)
            columns = {
                "fine_tuned_model": name,
                "adapter_sha256": parts[0].sha256,
                "adapter_archive_file_id": parts[0].id,
            }
            job = claims.finish_held_attempt(session, lease_of(job), Reason.DONE, "The job has ended", **columns)
            deliveries.create_for_result(session, job, result)
            if reference is not None:
                deliveries.add_reference(session, result, reference.model_dump(mode="json"))
        for number, engine in enumerate(self.with_plugin):  # each has a cache of its own
            assert engine.known is not None
            cached = engine.known[name] = self.shared.parent / f"cache-{number}" / "adapters" / f"digest-of-{job.id}"
            cached.mkdir(parents=True)
            (cached / "adapter_config.json").write_text(json.dumps({"r": 16}))
        return self.harness.job(job)

    def record_compatibility(self, job: Job, entries: Mapping[str, Any]) -> None:
        """As the trainer records in the manifest which engines serve the adapter."""
        with transaction(self.harness.sessions) as session:
            checkpoint = session.get_one(Checkpoint, self.delivery(job).checkpoint_id)
            checkpoint.manifest = checkpoint.manifest | {"compatibility": dict(entries)}

    def deliver(self, destination: dict[str, Any], reference: ServedReference | None = None, **columns: Any) -> Job:
        """A finished job whose result was sent to a new target, `production`."""
        self.target(destination, **columns)
        return self.deliver_next(reference)

    def deliver_next(self, reference: ServedReference | None = None) -> Job:
        """Another finished job whose result was sent to the target `production`."""
        job = self.finished_job("production", reference=reference)
        self.attempt_due()
        return job

    def attempt_due(self, again: bool = False) -> None:
        """Carry out every delivery that is due now; `again`: every one that will be due."""
        if again:
            self.make_due()
        while claimed := self.sender.claim(10):
            for each in claimed:
                self.sender.attempt(each)

    def reap(self) -> None:
        """End the leases of senders that were killed, as the reconciler does once they have expired."""
        with transaction(self.harness.sessions) as session:
            expire_leases(session)
            reap_expired(session)

    def make_due(self) -> None:
        with transaction(self.harness.sessions) as session:
            due = update(Delivery).where(Delivery.next_attempt_at.is_not(None))
            session.execute(due.values(next_attempt_at=func.clock_timestamp()))

    def delivery(self, job: Job) -> Delivery:
        with transaction(self.harness.sessions) as session:
            return session.scalars(select(Delivery).where(Delivery.job_id == job.id).order_by(Delivery.seq)).one()

    def error(self, job: Job) -> str:
        """The error of its delivery, without what differs in each run."""
        text = (self.delivery(job).error or "").replace(str(self.shared), "SHARED")
        text = re.sub(r"http://127\.0\.0\.1:\d+", "URL", text.replace(job.fine_tuned_model or "-", "MODEL"))
        text = re.sub(r"target_[0-9a-f]+", "TARGET", text).replace(job.id, "JOB")
        return re.sub(r"/[0-9a-f]{16}\b", "/VERSION", text)

    def withdraw(self, job: Job) -> None:
        """Delete its model, and have the adapter withdrawn."""
        self.delete_model(job)
        self.attempt_due()

    def delete_model(self, job: Job) -> None:
        with transaction(self.harness.sessions) as session:
            base_models.delete(session, self.harness.project.id, job.fine_tuned_model or "")


@pytest.fixture
def delivery(harness: WorkerHarness, shared: Path) -> Iterator[DeliveryHarness]:
    with guard_connections(harness.resources.settings.delivery_networks):
        yield DeliveryHarness(harness, DeliverySender(harness.resources), shared)
