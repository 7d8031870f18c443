"""The command line client that 1.x brought along: `openai api fine_tuning.jobs.create -H ...`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from material import LORA, chats, lines
from world import BASE_URL, KEY, MAJOR, MODEL, extra

pytestmark = pytest.mark.skipif(MAJOR > 1, reason="openai 2.x and 3.x ship no command line client")
LORA_PARAMETERS = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": "q_proj,v_proj"}
HYPERPARAMETERS = LORA_PARAMETERS | {
    "n_epochs": 50,
    "batch_size": 1,
}  # it still runs when the fifth command has started


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENAI_BASE_URL": BASE_URL, "OPENAI_API_KEY": KEY}
    command = [str(Path(sys.executable).with_name("openai")), "api", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def ask(*arguments: str) -> dict[str, Any]:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def ask_for_all(*arguments: str) -> list[dict[str, Any]]:
    """Some of its lists are printed as one document after another."""
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    found, rest = [], done.stdout.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


@pytest.fixture
def data_set(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines(chats(100)))
    return str(path)


def test_files_are_created_and_listed(data_set: str) -> None:
    """Its `files.retrieve` and `files.delete` ask for the arguments of `files.create` and never send a request."""
    file = ask("files.create", "-f", data_set, "-p", "fine-tune")
    assert (file["filename"], file["status"]) == ("train.jsonl", "processed")  # it sends the whole path
    assert file["id"] in {listed["id"] for listed in ask_for_all("files.list")}


def test_a_job_accepts_every_hyperparameter_through_one_option(default: openai.OpenAI, data_set: str) -> None:
    file = ask("files.create", "-f", data_set, "-p", "fine-tune")
    create = ("fine_tuning.jobs.create", "-m", MODEL, "-F", file["id"], "-s", "cli")
    job = ask(*create, "-H", json.dumps(HYPERPARAMETERS))
    assert ask("fine_tuning.jobs.retrieve", "-i", job["id"])["hyperparameters"]["n_epochs"] == 50
    assert job["id"] in {listed["id"] for listed in ask("fine_tuning.jobs.list")["data"]}
    assert ask("fine_tuning.jobs.list_events", "-i", job["id"])["data"]
    assert ask("fine_tuning.jobs.cancel", "-i", job["id"])["status"] == "cancelled"
    same = default.fine_tuning.jobs.create(model=MODEL, training_file=file["id"], extra_body={"lora": LORA})
    default.fine_tuning.jobs.cancel(same.id)
    assert job["lora"] == extra(same)["lora"]


def test_models_are_listed_and_shown(data_set: str) -> None:
    assert MODEL in {model["id"] for model in ask_for_all("models.list")}
    assert ask("models.retrieve", "-i", MODEL)["id"] == MODEL
