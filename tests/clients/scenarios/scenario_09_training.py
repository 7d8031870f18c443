"""9 to 12, 14, 16 (the half that succeeds) and 19: from a queued job to an adapter that PEFT loads."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest
from material import LORA, Created, chats, lines
from world import CONTEXT, MODEL, connect, extra, shown_once, succeeded

COLUMNS = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
EXPECTED_MESSAGES = (
    "Created fine-tuning job: ",
    "Validating training file: ",
    "Files validated, moving job to queued state",
    "Fine-tuning job started",
    "Step 1/",
    "Checkpoint created at step ",
    "New fine-tuned model created: ft:",
    "The job has successfully completed",
)
PEFT_CHECK = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
tokens = torch.arange(3, 40)[None]
with torch.no_grad():
    tuned = model(tokens).logits
    with model.disable_adapter():
        print("differs" if (tuned - model(tokens).logits).abs().max() > 1e-6 else "is the same")
"""


@pytest.fixture(scope="session")
def main(default: openai.OpenAI, jobs: Created) -> Any:
    return succeeded(default, jobs.main)


def rows_of(client: openai.OpenAI, job: Any) -> list[dict[str, str]]:
    (results,) = job.result_files
    text = client.files.content(results).text
    assert text.split("\n")[0].split(",")[:5] == COLUMNS
    return list(csv.DictReader(io.StringIO(text)))


def test_a_job_that_succeeded_has_every_field(client: openai.OpenAI, main: Any) -> None:
    job = client.fine_tuning.jobs.retrieve(main.id)
    assert job.status == "succeeded"
    assert job.finished_at
    assert job.finished_at >= job.created_at
    assert job.trained_tokens
    assert (job.error, job.estimated_finish, job.seed) == (None, None, 7)
    assert job.fine_tuned_model
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:")
    assert ":main:" in job.fine_tuned_model
    assert job.hyperparameters.n_epochs == 10
    assert job.method
    assert job.method.supervised
    resolved = job.method.supervised.hyperparameters
    assert resolved
    assert "auto" not in (resolved.n_epochs, resolved.batch_size, resolved.learning_rate_multiplier)
    assert extra(job)["trained_steps"] == extra(job)["total_steps"] == 100
    assert next(iter(client.fine_tuning.jobs.list(metadata={"scenario": "main"}))) == job


def test_its_events_are_newest_first(client: openai.OpenAI, main: Any) -> None:
    events = list(client.fine_tuning.jobs.list_events(main.id, limit=40))
    messages = [event.message for event in reversed(events)]
    places = [next(i for i, text in enumerate(messages) if text.startswith(start)) for start in EXPECTED_MESSAGES]
    assert places == sorted(places), messages
    assert len({event.id for event in events}) == len(events)
    assert {event.level for event in events} <= {"info", "warn", "error"}
    metrics: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert len(metrics) == 100
    assert {"step", "total_steps", "train_loss", "train_mean_token_accuracy"} <= metrics[0].keys()
    assert sum("valid_loss" in data and data["valid_loss"] is not None for data in metrics) == 10
    assert sum("full_valid_loss" in data and data["full_valid_loss"] is not None for data in metrics) == 10


def test_its_results_have_openais_columns_and_a_row_for_each_step(client: openai.OpenAI, main: Any) -> None:
    rows = rows_of(client, main)
    assert [int(row["step"]) for row in rows] == list(range(1, 101))
    losses = [float(row["train_loss"]) for row in rows]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert sum(bool(row["valid_loss"]) for row in rows) == 10
    file = client.files.retrieve(main.result_files[0])
    assert file.purpose == "fine-tune-results"


def test_without_a_validation_file_those_cells_are_blank(client: openai.OpenAI, jobs: Created) -> None:
    job = succeeded(client, jobs.plain)
    rows = rows_of(client, job)
    assert len(rows) == 4
    assert {row["valid_loss"] for row in rows} == {row["valid_mean_token_accuracy"] for row in rows} == {""}


def test_the_last_three_checkpoints_are_kept_and_the_first_is_the_model(client: openai.OpenAI, main: Any) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(main.id, limit=1))
    assert checkpoints[0].step_number == 100
    assert len(checkpoints) == 3
    assert checkpoints[0].fine_tuned_model_checkpoint == main.fine_tuned_model
    for checkpoint in checkpoints[1:]:
        assert checkpoint.fine_tuned_model_checkpoint.endswith(f":ckpt-step-{checkpoint.step_number}")
        assert checkpoint.fine_tuning_job_id == main.id
        assert checkpoint.metrics.full_valid_loss is not None
    assert client.models.retrieve(checkpoints[1].fine_tuned_model_checkpoint).object == "model"


def test_the_adapter_is_the_same_bytes_by_every_download(client: openai.OpenAI, main: Any, tmp_path: Path) -> None:
    manifest = client.get(f"/fine_tuning/jobs/{main.id}/adapter", cast_to=object)
    archive_id = extra(main)["adapter"]["archive_file_id"]
    client.files.content(archive_id).write_to_file(tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    assert len(whole) == extra(main)["adapter"]["bytes"]
    assert hashlib.sha256(whole).hexdigest() == extra(main)["adapter"]["sha256"]
    with client.files.with_streaming_response.content(archive_id) as answer:
        assert b"".join(answer.iter_bytes(4096)) == whole
    half = len(whole) // 2
    first = client.files.content(archive_id, extra_headers={"Range": f"bytes=0-{half - 1}"}).read()
    rest = client.files.content(archive_id, extra_headers={"Range": f"bytes={half}-"}).read()
    assert first + rest == whole
    assert extra(main)["adapter"]["sha256"] in json.dumps(manifest)


def test_peft_loads_it_and_it_has_learned(default: openai.OpenAI, main: Any, tmp_path: Path) -> None:
    checkpoint = next(iter(default.fine_tuning.jobs.checkpoints.list(main.id)))
    for file_id in extra(checkpoint)["result_files"]:
        default.files.content(file_id).write_to_file(tmp_path / default.files.retrieve(file_id).filename)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (LORA["r"], LORA["alpha"], LORA["dropout"])
    assert sorted(config["target_modules"]) == sorted(LORA["target_modules"])
    command = [CONTEXT["python_with_peft"], "-c", PEFT_CHECK, CONTEXT["base_directory"], str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "differs"


def test_learning_from_preferences_succeeds(client: openai.OpenAI, jobs: Created) -> None:
    job = succeeded(client, jobs.dpo)
    assert job.method
    assert job.method.dpo
    assert job.method.dpo.hyperparameters
    assert job.method.dpo.hyperparameters.beta == 0.2
    assert job.hyperparameters.n_epochs is None
    assert job.fine_tuned_model


def test_an_unchanged_job_is_a_304_which_the_client_raises(client: openai.OpenAI, main: Any) -> None:
    answer = client.fine_tuning.jobs.with_raw_response.retrieve(main.id)
    with pytest.raises(openai.APIStatusError) as caught:
        client.fine_tuning.jobs.retrieve(main.id, extra_headers={"If-None-Match": answer.headers["etag"]})
    assert caught.value.status_code == 304


@shown_once("real_model")
def test_the_real_135m_model_learns_too(default: openai.OpenAI) -> None:
    file = default.files.create(file=lines(chats(16)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 2, "batch_size": 4, "context_length": 128}
    job = default.fine_tuning.jobs.create(
        model=CONTEXT["real_model"], training_file=file.id, suffix="real", hyperparameters=hyperparameters
    )
    done = succeeded(default, job.id)
    losses = [float(row["train_loss"]) for row in rows_of(default, done)]
    assert losses[-1] < losses[0]
    with connect(_strict_response_validation=True) as strict:
        assert strict.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == done.fine_tuned_model
