"""15: a script as written for Nebius, one as written for Azure, and a client behind a gateway."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway import gateway
from material import chats, lines
from world import CONTEXT, KEY, MODEL, ROOT_URL, connect, extra, succeeded


def test_a_nebius_script_runs_unchanged(default: openai.OpenAI, tmp_path: Path) -> None:
    """LoRA values flat inside `hyperparameters`, progress by trained_steps, the adapter by checkpoint.result_files."""
    client = default
    training_dataset = client.files.create(file=("train.jsonl", lines(chats(10))), purpose="fine-tune")
    validation_dataset = client.files.create(file=("valid.jsonl", lines(chats(5, 50))), purpose="fine-tune")
    job_request: dict[str, Any] = {
        "model": MODEL,
        "training_file": training_dataset.id,
        "validation_file": validation_dataset.id,
        "hyperparameters": {
            "batch_size": 8,
            "learning_rate": 0.0001,
            "n_epochs": 2,
            "warmup_ratio": 0.1,
            "weight_decay": 0,
            "lora": True,
            "lora_r": 8,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "packing": True,
            "max_grad_norm": 1,
            "context_length": 512,
        },
        "seed": 42,
    }
    job = client.fine_tuning.jobs.create(**job_request)
    while job.status in ["validating_files", "queued", "running"]:
        time.sleep(0.3)
        job = client.fine_tuning.jobs.retrieve(job.id)
        print("current status:", job.status, job.trained_steps, job.total_steps)
    assert job.status == "succeeded", job.error
    assert job.trained_steps == job.total_steps == 4
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id).data:
        os.makedirs(tmp_path / checkpoint.id, exist_ok=True)
        for model_file_id in checkpoint.result_files:
            filename = os.path.basename(client.files.retrieve(model_file_id).filename)
            client.files.content(model_file_id).write_to_file(tmp_path / checkpoint.id / filename)
        assert (tmp_path / checkpoint.id / "adapter_model.safetensors").stat().st_size > 1000
        assert (tmp_path / checkpoint.id / "adapter_config.json").exists()


@pytest.fixture(params=["endpoint", "endpoint and deployment", "v1"])
def azure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The three ways in which scripts for Azure make their client."""
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"{ROOT_URL}/")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    if request.param == "v1":
        return openai.OpenAI(base_url=f"{ROOT_URL}/openai/v1/", api_key=KEY)
    deployment = {"azure_deployment": MODEL} if "deployment" in request.param else {}
    return openai.AzureOpenAI(api_version="2025-02-01-preview", **deployment)


def test_an_azure_script_runs_unchanged(azure: Any) -> None:
    with azure as client:
        uploaded = client.files.create(file=("train.jsonl", b"\xef\xbb\xbf" + lines(chats(10))), purpose="fine-tune")
        assert client.files.wait_for_processing(uploaded.id, poll_interval=0.1).status == "processed"
        job = client.fine_tuning.jobs.create(
            training_file=uploaded.id,
            model=MODEL,
            seed=105,
            suffix="azure",
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            extra_body={"trainingType": "globalStandard"},
        )
        events = client.fine_tuning.jobs.list_events(fine_tuning_job_id=job.id, limit=10)
        assert any(event.level == "warn" and "trainingType" in event.message for event in events)
        assert [seen.id for seen in client.fine_tuning.jobs.list(limit=1).data] == [job.id]
        done = succeeded(client, job.id)
        assert client.files.content(done.result_files[0]).read().startswith(b"step,train_loss")
        assert client.fine_tuning.jobs.checkpoints.list(job.id).data[0].step_number == 20
        assert client.models.delete(done.fine_tuned_model).deleted


def test_azures_client_gets_the_right_exceptions() -> None:
    options: Any = {"azure_endpoint": ROOT_URL, "api_version": "2024-10-21"}
    with openai.AzureOpenAI(api_key="wrong", **options) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with openai.AzureOpenAI(api_key=KEY, **options) as client:
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.jobs.retrieve("ftjob-nothere")
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.create(
                model=MODEL, training_file="file-x", extra_body={"trainingType": "hourly", "prompt_loss_weight": 0.1}
            )
    assert "trainingType" in caught.value.message
    assert "prompt_loss_weight" in caught.value.message


def test_a_gateway_that_adds_a_prefix_and_headers_does_not_matter() -> None:
    front_door = gateway(ROOT_URL, prefix="/llm/tunery", headers={"X-Forwarded-Prefix": "/llm/tunery"})
    with front_door as front, connect(base_url=f"{front.url}/llm/tunery/v1") as client:
        content = lines(chats(10))
        file = client.files.create(file=content, purpose="fine-tune")
        assert client.files.content(file.id).read() == content
        part = client.files.content(file.id, extra_headers={"Range": "bytes=5-9"}).read()
        assert part == content[5:10]
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        assert client.models.retrieve(CONTEXT["slashed_model"]).id == CONTEXT["slashed_model"]
        assert extra(client.fine_tuning.jobs.retrieve(job.id))["lora"]
        with pytest.raises(openai.NotFoundError) as caught:
            client.files.retrieve("file-nothere")
        assert caught.value.request_id
