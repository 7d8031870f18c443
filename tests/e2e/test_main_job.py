"""The whole service as a stranger starts it, the real 135M model, the official client: from upload to adapter."""

from __future__ import annotations

import hashlib
import json
import signal
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from app.system import artifact_directory
from tests.agents import Agent, over_stdio
from tests.deadline import until
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.up import ROOT, Service, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EXAMPLE = ROOT / "examples" / "support-tickets"
MODEL = "SmolLM2-135M-Instruct"
ENDED = ("succeeded", "failed", "cancelled")


def connect(service: Service, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, **options)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def finished(client: openai.OpenAI, job_id: str, seconds: float = 400) -> FineTuningJob:
    """Polls once a second: on two cores, looking more often would slow down the training that is waited for."""
    has_ended = lambda: client.fine_tuning.jobs.retrieve(job_id).status in ENDED  # noqa: E731
    until(has_ended, f"{job_id} has ended", seconds, interval_seconds=1.0)
    return client.fine_tuning.jobs.retrieve(job_id)


@pytest.fixture(scope="module")
def job(service: Service) -> FineTuningJob:
    """The main job, on the first 12 example tickets: LoRA parameters in extra_body, a validation file, two epochs."""
    client = connect(service)
    lines = (EXAMPLE / "train.jsonl").read_bytes().splitlines(keepends=True)[:12]
    training = client.files.create(file=("train.jsonl", b"".join(lines)), purpose="fine-tune")
    held_back = (EXAMPLE / "valid.jsonl").read_bytes().splitlines(keepends=True)[:4]
    validation = client.files.create(file=("valid.jsonl", b"".join(held_back)), purpose="fine-tune")
    created = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training.id,
        validation_file=validation.id,
        suffix="e2e",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 2}}},
        extra_body={"lora": {"r": 8, "alpha": 16}},
    )
    assert created.status == "validating_files"
    done = finished(client, created.id)
    assert done.status == "succeeded", done.error
    return done


def test_the_job_shows_what_was_trained(job: FineTuningJob) -> None:
    extra = job.model_extra or {}
    assert (extra["lora"]["r"], extra["lora"]["alpha"], len(extra["lora"]["target_modules"])) == (8, 16, 7)
    assert extra["quantization"]["type"] == "nf4"
    assert extra["progress"]["step"] == extra["total_steps"] == 12
    assert job.fine_tuned_model
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:tunery:e2e:")
    assert job.trained_tokens
    assert job.error is None


def test_the_events_are_in_the_order_of_the_run(service: Service, job: FineTuningJob) -> None:
    events = list(reversed(list(connect(service).fine_tuning.jobs.list_events(job.id, limit=100))))
    messages = [event.message for event in events]
    wanted = (
        f"Created fine-tuning job: {job.id}",
        "Validating training file",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/12",
        "Checkpoint created at step 6",
        "Step 12/12",
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    )
    places = [next(i for i, message in enumerate(messages) if message.startswith(text)) for text in wanted]
    assert places == sorted(places)
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]  # type: ignore[index]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]


def test_the_results_file_begins_with_openais_columns_and_has_a_row_for_each_step(
    service: Service, job: FineTuningJob
) -> None:
    (file_id,) = job.result_files
    header, *rows = connect(service).files.content(file_id).text.strip().split("\n")
    assert header.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    assert len(rows) == 12
    assert all(rows[step].split(",")[3] for step in (5, 11))  # validation was measured at the end of each epoch


@pytest.fixture(scope="module")
def adapter(service: Service, job: FineTuningJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloaded file by file, through `result_files` of the last checkpoint."""
    directory = tmp_path_factory.mktemp("adapter")
    client = connect(service)
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job.id)))
    for file_id in (checkpoint.model_extra or {})["result_files"]:
        client.files.content(file_id).write_to_file(directory / client.files.retrieve(file_id).filename)
    return directory


def test_the_adapter_is_what_its_manifest_says_file_by_file_and_as_an_archive(
    service: Service, job: FineTuningJob, adapter: Path, tmp_path: Path
) -> None:
    artifact_directory.verify(adapter)
    promised = (job.model_extra or {})["adapter"]
    path = f"/fine_tuning/jobs/{job.id}/adapter/archive"
    content = connect(service).get(path, cast_to=httpx2.Response).content
    assert (len(content), hashlib.sha256(content).hexdigest()) == (promised["bytes"], promised["sha256"])
    (tmp_path / "adapter.tar").write_bytes(content)
    with tarfile.open(tmp_path / "adapter.tar") as archive:
        assert {Path(name).name for name in archive.getnames()} == {path.name for path in adapter.iterdir()}


def test_the_command_line_downloads_and_verifies_it(service: Service, job: FineTuningJob, tmp_path: Path) -> None:
    service.tunery("adapters", "download", job.id, "-o", str(tmp_path / "adapter"))
    artifact_directory.verify(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # between PEFT and transformers: names that will change
def test_peft_loads_the_adapter_and_it_has_learned(service: Service, adapter: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 16, MODEL)
    base = next((service.data / "models").glob("*/config.json")).parent
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    line = json.loads((EXAMPLE / "heldout.jsonl").read_text().splitlines()[0])
    tokens = tokenizer.apply_chat_template(line["messages"], return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        tuned = model(input_ids=tokens, labels=tokens).loss
        with model.disable_adapter():
            plain = model(input_ids=tokens, labels=tokens).loss
    assert tuned < 0.9 * plain


def test_an_agent_goes_from_a_dataset_to_an_evaluation_over_mcp(service: Service, tmp_path: Path) -> None:
    """On a tiny base model, with the plan that it has accepted; the waits report progress."""
    service.tunery("models", "add", "agents-base", str(make_tiny_base(tmp_path / "base")))
    make_tiny_dataset(tmp_path / "train.jsonl", 12)
    make_tiny_dataset(tmp_path / "heldout.jsonl", 2, seed=1)

    async def work(agent: Agent) -> None:
        assert "agents-base" in [model["id"] for model in (await agent.call("list_models"))["models"]]
        training, heldout = [
            (await agent.call("upload_dataset", path=name))["id"] for name in ("train.jsonl", "heldout.jsonl")
        ]
        assert (await agent.call("validate_dataset", file_id=training, model="agents-base"))["valid"]
        settings = {"n_epochs": 3, "batch_size": 2, "lora.r": 4}
        plan = await agent.call("plan_job", model="agents-base", training_file=training, settings=settings)
        (device,) = plan["devices"]
        assert (device["fits"], device["hours"] > 0, device["peak_bytes"] > 0) == (True, True, True)
        assert plan["total_steps"] == 18
        job = await agent.call("create_job", plan_id=plan["plan_id"])
        done = await agent.call("wait_job", job_id=job["id"], timeout_seconds=400)
        assert (done["status"], done["error"]) == ("succeeded", None)
        assert agent.progress
        arguments = {"job_id": job["id"], "file_id": heldout, "max_rows": 2, "timeout_seconds": 400}
        evaluation = await agent.call("evaluate", **arguments)
        assert (evaluation["status"], evaluation["rows"], evaluation["error"]) == ("succeeded", 2, None)
        assert [score["grader"] for score in evaluation["scores"]] == ["exact"]
        assert (await agent.call("get_job", job_id=job["id"]))["evaluation"] == evaluation["result"]

    workers = partial(connect(service).get, "/workers", cast_to=httpx2.Response)
    until(lambda: "agents-base" in workers().text, "a worker has the new base model, so the plan has its device", 100)
    over_stdio(work, "--write", "--root", str(tmp_path), "--data-dir", str(service.data), env={})


@pytest.mark.extended("a second whole job, after kill -9 of everything")
def test_a_job_goes_on_after_everything_was_killed(service: Service, tmp_path: Path) -> None:
    """`kill -9` of `tunery up`, and a new start: no orphan holds a lock, and the accepted job is trained to its end."""
    service.tunery("models", "add", "tiny", str(make_tiny_base(tmp_path / "base")))
    training = connect(service).files.create(file=make_tiny_dataset(tmp_path / "tiny.jsonl", 16), purpose="fine-tune")
    created = connect(service).fine_tuning.jobs.create(
        model="tiny", training_file=training.id, hyperparameters={"n_epochs": 20, "batch_size": 1}
    )
    retrieve = connect(service).fine_tuning.jobs.retrieve
    until(lambda: ((retrieve(created.id).model_extra or {})["progress"] or {}).get("step", 0) > 3, "it trains", 60)
    service.stop(signal.SIGKILL)
    service.start()
    done = finished(connect(service), created.id)
    assert done.status == "succeeded", done.error
    assert (done.model_extra or {})["attempts"] == 2
