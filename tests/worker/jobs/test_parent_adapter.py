"""Continued training in the worker: the parent adapter's files are fetched, verified and passed to the trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.db import files
from app.db.base_models import models
from app.db.engine import transaction
from app.db.tables import Job, TunedModel
from app.domain.jobs.definitions import ParentAdapter
from app.domain.jobs.spec import JobSpec
from tests.factories import chat_lines
from tests.fork_server import forked
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.jobs.supervisor import JobSupervisor
from worker.validation import Validator

pytestmark = pytest.mark.timeout(240)
BODY = {"hyperparameters": {"n_epochs": 1, "batch_size": 4}, "lora": {"r": 4, "use_dora": True}}
ONE_STEP = {"hyperparameters": {"max_steps": 1, "batch_size": 12, "learning_rate": 1e-9}}


def finished(harness: WorkerHarness, job: Job) -> Job:
    harness.resources.settings.stall_seconds = 100.0
    while Validator(harness.resources, "cpu0@test#1").run_next():
        pass
    assert JobSupervisor(harness.resources, OWNER, harness.trainer_lock, forked("worker.trainer")).run_next()
    return harness.job(job)


def continued(harness: WorkerHarness, parent: Job) -> Job:
    assert parent.fine_tuned_model is not None
    follows = ParentAdapter(parent.fine_tuned_model, JobSpec.model_validate(parent.spec).lora)
    return harness.create_job(chat_lines(), body=ONE_STEP, parent=follows)


def stored(harness: WorkerHarness, job: Job, filename: str) -> Path:
    """The path in storage of a file of the final adapter."""
    (final, *_) = harness.checkpoints(job)
    file = next(harness.file(id) for id in final.file_ids if harness.file(id).filename == filename)
    return harness.resources.settings.storage_dir / "objects" / file.storage_key


def test_a_job_on_a_tuned_model_starts_with_its_adapter(harness: WorkerHarness) -> None:
    parent = finished(harness, harness.create_job(body=BODY, suffix="first"))
    assert parent.state == "succeeded", harness.messages(parent)
    waiting = continued(harness, parent)
    with transaction(harness.sessions) as session:  # deleting the files now has no effect on the job
        models.delete_tuned(session, session.get_one(TunedModel, parent.fine_tuned_model))
        files.delete_all(session, harness.checkpoints(parent)[0].file_ids)
    with transaction(harness.sessions) as session:
        assert not files.lock_purgeable(session)
    job = finished(harness, waiting)
    assert job.state == "succeeded", harness.messages(job)

    manifest = json.loads(stored(harness, job, "MANIFEST.json").read_text())
    config = json.loads(stored(harness, job, "adapter_config.json").read_text())
    assert manifest["continued_from"]["model"] == parent.fine_tuned_model
    assert config["base_model_name_or_path"] == "tiny"
    assert str(job.fine_tuned_model).startswith("ft:tiny:")
    before, after = harness.metrics(parent)[-1]["train_loss"], harness.metrics(job)[0]["train_loss"]
    first = harness.metrics(parent)[0]["train_loss"]
    assert abs(after - before) < 0.5 * abs(first - before)  # not the base model's loss again


def test_a_damaged_parent_adapter_fails_the_job_with_a_message(
    harness: WorkerHarness,
) -> None:
    parent = finished(harness, harness.create_job(body=BODY))
    weights = stored(harness, parent, "adapter_model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    altered = finished(harness, continued(harness, parent))
    assert (altered.state, altered.error_code, altered.error_param) == ("failed", "server_error", "model")
    assert "adapter_model.safetensors" in str(altered.error_message)

    stored(harness, parent, "MANIFEST.json").unlink()
    incomplete = finished(harness, continued(harness, parent))
    assert (incomplete.state, incomplete.error_code) == ("failed", "server_error")
