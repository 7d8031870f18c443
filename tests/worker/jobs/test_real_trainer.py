"""The real trainer under the real supervisor, on a tiny model: validation, training, an interruption, the adapter."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from app.db.tables import Job
from tests.factories import chat_lines
from tests.tiny import make_tiny_pairs
from tests.worker.worker_harness import OWNER, Bench, until
from worker.jobs.supervisor import Supervisor
from worker.validation.validate import Validator

pytestmark = pytest.mark.timeout(240)
BODY = {
    "hyperparameters": {"n_epochs": 6, "batch_size": 1, "eval_steps": 36, "promote_best": True},
    "lora": {"r": 4},
    "sample_prompts": ["say 3"],
}
STEPS = 72  # enough that a drain asked for at the second finds it still training


def be_patient(bench: Bench) -> None:
    bench.resources.settings.lease_ttl_seconds = 120.0
    bench.resources.settings.self_fence_seconds, bench.resources.settings.self_fence_kill_seconds = 100.0, 110.0
    bench.resources.settings.drain_grace_seconds = bench.resources.settings.stall_seconds = 100.0


def train(bench: Bench) -> None:
    assert Supervisor(bench.resources, OWNER, bench.trainer_lock).run_next()


def test_a_drained_job_gives_the_same_adapter_as_one_that_was_left_alone(bench: Bench) -> None:
    be_patient(bench)
    left_alone, drained = (bench.created(validation=chat_lines(4), body=BODY, suffix="demo") for _ in range(2))
    while Validator(bench.resources, "cpu0@test#1").run_next():
        pass

    train(bench)
    drain_after(bench, drained, step=2)
    train(bench)

    for job in (left_alone, drained):
        assert bench.job(job).state == "succeeded", bench.messages(job)
        assert [row["step"] for row in bench.metrics(job)] == list(range(1, STEPS + 1))
        losses = {row["step"]: row["full_valid_loss"] for row in bench.metrics(job) if "full_valid_loss" in row}
        assert list(losses) == [36, 72]
        assert bench.checkpoints(job)[0].step_number == min(losses, key=losses.__getitem__)
        samples = [event.data for event in bench.events(job) if "prompt" in event.data]
        assert samples[0]["step"] == 36
        assert {sample["prompt"] for sample in samples} == {"say 3"}
    assert any(message.startswith("Going on from the snapshot of step") for message in bench.messages(drained))
    assert weights_of(bench, left_alone) == weights_of(bench, drained)


def test_a_job_from_before_the_stricter_line_rules_is_paused_and_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file has what a new job is refused: a refusal beside the content, and a line of white space of ASCII."""
    be_patient(bench)
    lines = [json.loads(line) for line in chat_lines(12).splitlines()]
    for line in lines:
        line["messages"][1]["refusal"] = "No way"
    content = b"\x0b\n".join(json.dumps(line).encode() + b"\n" for line in lines)
    with monkeypatch.context() as earlier:
        earlier.setattr("app.domain.jobs.resolve.LINE_RULES", 1)
        job = bench.created(content, body={"hyperparameters": {"n_epochs": 3, "batch_size": 1}, "lora": {"r": 4}})
    assert Validator(bench.resources, "cpu0@test#1").run_next()
    pausing = threading.Thread(
        target=lambda: until(lambda: bench.has_reached(job, 2), "a step", 100) and bench.pause(job)
    )
    pausing.start()
    train(bench)
    pausing.join()
    assert bench.job(job).state == "paused", bench.messages(job)
    bench.resume(job)
    train(bench)
    assert bench.job(job).state == "succeeded", bench.messages(job)
    assert any(message.startswith("Going on from the snapshot of step") for message in bench.messages(job))


def test_a_job_learns_preferences(bench: Bench, tmp_path: Path) -> None:
    be_patient(bench)
    pairs, valid = (make_tiny_pairs(tmp_path / f"{seed}.jsonl", 12, seed=seed).read_bytes() for seed in (1, 2))
    knobs = {"beta": 0.5, "n_epochs": 2, "batch_size": 4, "learning_rate": 0.01}
    method = {"type": "dpo", "dpo": {"hyperparameters": knobs}}
    job = bench.created(pairs, validation=valid, body={"method": method, "lora": {"r": 4}})
    assert Validator(bench.resources, "cpu0@test#1").run_next()
    train(bench)
    assert bench.job(job).state == "succeeded", bench.messages(job)
    first, *_, last = bench.metrics(job)
    assert first["train_loss"] == pytest.approx(0.693, abs=1e-3)
    assert last["full_valid_reward_accuracy"] is not None
    (final, *_) = bench.checkpoints(job)
    assert final.metrics["train_reward_margin"] == last["train_reward_margin"] > 0


def drain_after(bench: Bench, job: Job, step: int) -> None:
    stop = threading.Thread(
        target=lambda: until(lambda: bench.has_reached(job, step), "a step", 100) and bench.resources.stop.set()
    )
    stop.start()
    train(bench)
    stop.join()
    assert (bench.job(job).state, bench.job(job).reason) == ("queued", "drained")
    bench.resources.stop.clear()


def weights_of(bench: Bench, job: Job) -> str:
    """The SHA-256 of the adapter's weights, out of the manifest that is published with them."""
    (final, *_) = bench.checkpoints(job)
    assert final.name == bench.job(job).fine_tuned_model
    manifest = next(bench.file(id) for id in final.file_ids if bench.file(id).filename == "MANIFEST.json")
    described = json.loads(bench.content(manifest.id))["files"]["adapter_model.safetensors"]
    weights = next(bench.file(id) for id in final.file_ids if bench.file(id).filename == "adapter_model.safetensors")
    assert (weights.sha256, weights.bytes) == (described["sha256"], described["bytes"])
    return str(weights.sha256)


def test_what_the_trainer_cannot_satisfy_is_a_sentence_for_the_user_and_a_traceback_in_the_log(bench: Bench) -> None:
    """Queued without a validation, which would have seen it first."""
    be_patient(bench)
    silent = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "weight": 0}]}
    job = bench.queued(json.dumps(silent).encode() + b"\n")
    train(bench)
    failed = bench.job(job)
    assert (failed.state, failed.error_code) == ("failed", "invalid_training_file")
    assert failed.error_param == "hyperparameters.context_length"
    assert str(failed.error_message).startswith("No example has a token to learn within 512 tokens")
    told = json.dumps([[event.message, event.data] for event in bench.events(job)])
    assert "Traceback" not in told + str(failed.error_message)
    (log,) = (bench.resources.settings.work_dir / job.id).rglob("trainer.log")
    assert "Traceback (most recent call last):" in log.read_text()
