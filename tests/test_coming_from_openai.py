"""docs/coming-from-openai.md: its Python blocks, run in their order by the official client against a live server."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select

from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.domain.dataset import Example, read_examples
from app.domain.states import JobState
from app.storage import LocalStorage
from tests.factories import chat_lines, finish_job, make_base_model, start_job, validate_job
from tests.serving import LiveServer

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-openai.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
NAME = "SmolLM2-135M-Instruct"
MOMENT = 0.02


@pytest.fixture
def worker(sessions: Sessions, storage: LocalStorage, project: Project) -> Iterator[None]:
    """Takes every job that waits through validation and training, as a worker would."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(MOMENT):
            with transaction(sessions) as session:
                waiting = session.scalars(select(Job.state).where(Job.state == JobState.VALIDATING)).first()
                if waiting is not None:
                    validate_job(session)
                    finish_job(session, storage, project, start_job(session))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def here(tmp_path: Path, live_server: LiveServer, api_key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader would stand: a data set beside them, the two variables set."""
    directory = tmp_path / "here"
    directory.mkdir()
    (directory / "train.jsonl").write_bytes(chat_lines())
    monkeypatch.chdir(directory)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_BASE_URL", live_server.url)
    monkeypatch.setenv("OPENAI_API_KEY", api_key)
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda _: wait(MOMENT))
    return directory


def test_every_block_runs_in_order(here: Path, sessions: Sessions, tmp_path: Path, worker: None) -> None:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / "base", name=NAME)
    text, world, said = PAGE.read_text(encoding="utf-8"), {"__name__": "__main__"}, io.StringIO()
    blocks = BLOCK.findall(text)
    assert len(blocks) >= 6
    with contextlib.redirect_stdout(said):
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), world)
    world["client"].close()
    assert NAME in said.getvalue()
    assert "lora.r 8 4" in said.getvalue()
    assert "trainingType 'Standard' was ignored" in said.getvalue()
    assert "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" in said.getvalue()
    assert (here / "my-adapter" / "adapter_model.safetensors").exists()
    assert list(here.glob("step-*-adapter_model.safetensors"))


def test_the_azure_class_finds_its_addresses_as_the_page_says(
    live_server: LiveServer, api_key: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL")  # which that class does not take beside an endpoint
    with openai.AzureOpenAI(azure_endpoint=live_server.root, api_key=api_key, api_version="2024-10-21") as azure:
        file = azure.files.create(file=Path("train.jsonl"), purpose="fine-tune")
        assert [one.id for one in azure.files.list()] == [file.id]


class TestWhatIsNotOffered:
    """The table of the page, and what it says of Nebius' scripts."""

    def test_is_refused_by_name(
        self, live_server: LiveServer, api_key: str, base_model: str, here: Path, subtests: pytest.Subtests
    ) -> None:
        with openai.OpenAI(organization="org-x", project="proj-x") as client:  # headers without an effect
            file = client.files.create(file=Path("train.jsonl"), purpose="fine-tune")
            other = client.files.create(file=Path("train.jsonl"), purpose="batch")
            jobs = client.fine_tuning.jobs
            bodies: tuple[tuple[str, dict[str, Any], str], ...] = (
                ("method.type", {"method": {"type": "reinforcement"}}, "unsupported_value"),
                ("training_file", {"training_file": other.id}, "invalid_value"),
                ("hyperparameters.lora", {"hyperparameters": {"lora": False}}, "unsupported_value"),
                ("from_checkpoint", {"from_checkpoint": {"repo": "x"}}, "unknown_parameter"),
                ("tags", {"tags": "mine"}, "unknown_parameter"),
            )
            for param, body, code in bodies:
                with subtests.test(param), pytest.raises(openai.BadRequestError) as refused:
                    jobs.create(model=base_model, training_file=file.id, extra_body=body)
                assert (refused.value.param, refused.value.code) == (param, code)
            for path in ("/fine_tuning/alpha/graders/run", "/chat/completions", "/batches", "/evals"):
                with subtests.test(path), pytest.raises(openai.NotFoundError) as unknown:
                    client.post(path, body={}, cast_to=object)
                assert unknown.value.code == "unknown_url"

    def test_images_are_findings_of_the_data(self) -> None:
        content = [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]
        line = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}]}
        (found,) = read_examples(io.BytesIO(json.dumps(line).encode()))
        assert not isinstance(found, Example)
