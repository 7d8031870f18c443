"""20, 21 and 23: cancel, pause, resume, and a worker that dies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import openai
import pytest
from material import chats, lines
from world import CONTEXT, ENDED, MODEL, connect, extra, shown_once, step_of, succeeded, until

LONG: Any = {"n_epochs": 50, "batch_size": 1}  # 600 steps, some seconds


@pytest.fixture(scope="session")
def long_file(default: openai.OpenAI) -> str:
    return default.files.create(file=lines(chats(12)), purpose="fine-tune").id


def begin(client: openai.OpenAI, file: str, **more: Any) -> Any:
    return client.fine_tuning.jobs.create(model=MODEL, training_file=file, hyperparameters=LONG, seed=3, **more)


def trains(client: openai.OpenAI, job_id: str) -> None:
    until(lambda: step_of(client, job_id) > 3, f"{job_id} trains")


def test_cancelling_a_job_that_waits_is_immediate_and_twice_is_once(client: openai.OpenAI, long_file: str) -> None:
    job = begin(client, long_file)
    first = client.fine_tuning.jobs.cancel(job.id)
    assert (first.status, first.error, first.fine_tuned_model) == ("cancelled", None, None)
    assert first.finished_at
    assert client.fine_tuning.jobs.cancel(job.id) == first


def test_cancelling_a_job_that_trains_is_immediate_and_nothing_overwrites_it(
    client: openai.OpenAI, long_file: str
) -> None:
    job = begin(client, long_file)
    trains(client, job.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    # Its worker is free for the next job, so its trainer is gone; the cancelled one stays as it was.
    file = client.files.create(file=lines(chats(10)), purpose="fine-tune")
    after = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, hyperparameters={"n_epochs": 1})
    succeeded(client, after.id)
    seen = client.fine_tuning.jobs.retrieve(job.id)
    assert (seen.status, seen.fine_tuned_model, seen.result_files) == ("cancelled", None, [])


def test_a_paused_job_goes_on(default: openai.OpenAI, long_file: str) -> None:
    """In default mode only: OpenAI's client has no word for `paused`, so its strict mode refuses it."""
    jobs = default.fine_tuning.jobs
    stopped = begin(default, long_file, suffix="stopped")
    trains(default, stopped.id)
    jobs.pause(stopped.id)
    paused: Any = until(lambda: (j := jobs.retrieve(stopped.id)).status == "paused" and j, "it is paused")
    step = extra(paused)["progress"]["step"]
    assert 0 < step < 600
    checkpoint = next(iter(jobs.checkpoints.list(stopped.id)))
    assert checkpoint.step_number == step
    weights = [default.files.content(file_id).read() for file_id in extra(checkpoint)["result_files"]]
    assert all(weights)
    with connect(_strict_response_validation=True) as strict, pytest.raises(openai.APIResponseValidationError):
        strict.fine_tuning.jobs.retrieve(stopped.id)
    assert jobs.resume(stopped.id).status == "queued"
    done = succeeded(default, stopped.id)
    steps = [event.data["step"] for event in jobs.list_events(done.id, limit=1000) if event.type == "metrics"]  # type: ignore[index]
    assert sorted(steps) == list(range(1, 601))
    if "uninterrupted_job" in CONTEXT["shows"]:  # as if it had never stopped
        left_alone = succeeded(default, begin(default, long_file, suffix="alone").id)
        assert adapter_weights(default, done.id) == adapter_weights(default, left_alone.id)


def adapter_weights(client: openai.OpenAI, job_id: str) -> bytes:
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job_id)))
    for file_id in extra(checkpoint)["result_files"]:
        if client.files.retrieve(file_id).filename == "adapter_model.safetensors":
            return bytes(client.files.content(file_id).read())
    raise AssertionError(f"{job_id} has no adapter_model.safetensors")


@shown_once("killed_worker")
def test_a_job_whose_worker_is_killed_is_trained_to_its_end(default: openai.OpenAI, long_file: str) -> None:
    job = begin(default, long_file)
    trains(default, job.id)
    os.kill(json.loads(Path(CONTEXT["runtime"]).read_text())["pids"]["gpu-worker"], signal.SIGKILL)
    done = succeeded(default, job.id, may_go_back=True)
    assert extra(done)["attempts"] == 2
    messages = [event.message for event in default.fine_tuning.jobs.list_events(job.id, limit=1000)]
    assert any("worker" in message.lower() for message in messages), [m for m in messages if not m.startswith("Step")]


def test_no_job_of_this_project_is_left_running(default: openai.OpenAI, long_file: str) -> None:
    """Last of this file: whatever the tests above did, nothing is stuck."""
    everything = lambda: all(job.status in ENDED for job in default.fine_tuning.jobs.list(limit=100))  # noqa: E731
    until(everything, "every job has ended")
