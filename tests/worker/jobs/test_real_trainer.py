"""The real trainer under the real supervisor, on a tiny model: validation, training, an interruption, the adapter."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import pytest

from app.db.engine import transaction
from app.db.tables import BaseModelRow, Job
from tests.deadline import until
from tests.factories import chat_lines
from tests.fork_server import forked
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.jobs.supervisor import JobSupervisor
from worker.jobs.trainer_process import TRAINER_COMMAND
from worker.validation import Validator

pytestmark = pytest.mark.timeout(240)
BODY = {
    "hyperparameters": {"n_epochs": 6, "batch_size": 1, "eval_steps": 36, "promote_best": True},
    "lora": {"r": 4},
    "sample_prompts": ["say 3"],
}
STEPS = 72  # many, so that a drain requested at step 2 comes before the end


def allow_slow_training(harness: WorkerHarness) -> None:
    harness.resources.settings.lease_ttl_seconds = 120.0
    harness.resources.settings.self_fence_seconds, harness.resources.settings.self_fence_kill_seconds = 100.0, 110.0
    harness.resources.settings.drain_grace_seconds = harness.resources.settings.stall_seconds = 100.0


def train(harness: WorkerHarness, command: Sequence[str] | None = None) -> None:
    assert JobSupervisor(harness.resources, OWNER, harness.trainer_lock, command or forked("worker.trainer")).run_next()


@pytest.mark.extended("three real trainers; the trainer's tests show exact resume in one process")
def test_a_drained_job_gives_the_same_adapter_as_an_uninterrupted_one(harness: WorkerHarness) -> None:
    allow_slow_training(harness)
    left_alone, drained = (harness.create_job(validation=chat_lines(4), body=BODY, suffix="demo") for _ in range(2))
    while Validator(harness.resources, "cpu0@test#1").run_next():
        pass

    train(harness, TRAINER_COMMAND)
    with transaction(harness.sessions) as session:  # it was registered without a count, and this was the first job
        counted = session.get_one(BaseModelRow, left_alone.base_model).counted_activation_bytes
    assert counted.keys() == {"nothing", "elementwise"}
    drain_after(harness, drained, step=2)
    train(harness, TRAINER_COMMAND)

    counting = [event for event in harness.events(left_alone) if "activation_bytes" in event.data]
    assert [event.data["activation_bytes"] for event in counting] == [counted]
    assert f"a layer keeps {counted['nothing'] / 1e3:.1f} kB per token" in counting[0].message
    assert not any("activation_bytes" in event.data for event in harness.events(drained))
    for job in (left_alone, drained):
        assert harness.job(job).state == "succeeded", harness.messages(job)
        assert [row["step"] for row in harness.metrics(job)] == list(range(1, STEPS + 1))
        losses = {row["step"]: row["full_valid_loss"] for row in harness.metrics(job) if "full_valid_loss" in row}
        assert list(losses) == [36, 72]
        assert harness.checkpoints(job)[0].step_number == min(losses, key=losses.__getitem__)
        samples = [event.data for event in harness.events(job) if "prompt" in event.data]
        assert samples[0]["step"] == 36
        assert {sample["prompt"] for sample in samples} == {"say 3"}
    assert weights_of(harness, left_alone) == weights_of(harness, drained)


def drain_after(harness: WorkerHarness, job: Job, step: int) -> None:
    stop = threading.Thread(
        target=lambda: until(lambda: harness.has_reached(job, step), "a step", 100) and harness.resources.stop.set()
    )
    stop.start()
    train(harness, TRAINER_COMMAND)
    stop.join()
    assert (harness.job(job).state, harness.job(job).reason) == ("queued", "drained")
    harness.resources.stop.clear()


def weights_of(harness: WorkerHarness, job: Job) -> str:
    """The SHA-256 of the adapter's weights, from the published manifest."""
    (final, *_) = harness.checkpoints(job)
    assert final.name == harness.job(job).fine_tuned_model
    manifest = next(harness.file(id) for id in final.file_ids if harness.file(id).filename == "MANIFEST.json")
    described = json.loads(harness.content(manifest.id))["files"]["adapter_model.safetensors"]
    weights = next(
        harness.file(id) for id in final.file_ids if harness.file(id).filename == "adapter_model.safetensors"
    )
    assert (weights.sha256, weights.bytes) == (described["sha256"], described["bytes"])
    return str(weights.sha256)


def test_a_request_that_the_trainer_refuses_is_a_message_for_the_user_and_a_traceback_in_the_log(
    harness: WorkerHarness,
) -> None:
    """The job is queued without a validation, which would have failed it before."""
    allow_slow_training(harness)
    silent = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "weight": 0}]}
    job = harness.create_queued_job(json.dumps(silent).encode() + b"\n")
    train(harness)
    failed = harness.job(job)
    assert (failed.state, failed.error_code) == ("failed", "invalid_training_file")
    assert failed.error_param == "hyperparameters.context_length"
    event_text = json.dumps([[event.message, event.data] for event in harness.events(job)])
    assert "Traceback" not in event_text + str(failed.error_message)
    (log,) = (harness.resources.settings.work_dir / job.id).rglob("trainer.log")
    assert "Traceback" in log.read_text()
