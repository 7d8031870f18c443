"""docs/coming-from-openai.md: its Python blocks, run in their order by the official client against a live server.

Those of the section on what to save at OpenAI are run against this server, too, after jobs were made; what this
server does not offer (chat completions, evals) is answered by a small server in OpenAI's shapes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import select

from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.domain.datasets.examples import Example, read_examples
from app.domain.jobs.states import JobState
from app.storage import LocalStorage
from tests.factories import chat_lines, finish_job, make_base_model, make_file, make_job, start_job, validate_job
from tests.serving import LiveServer, serve

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-openai.md"
SAVING = "## The dates, and what to save before each"
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
    world, said = {"__name__": "__main__"}, io.StringIO()
    before, saving, after = _around_saving()
    blocks = BLOCK.findall(before + after)
    assert len(BLOCK.findall(saving)) == 3  # those have tests of their own
    assert len(blocks) >= 6
    with contextlib.redirect_stdout(said):
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), world)
    world["client"].close()
    assert NAME in said.getvalue()
    assert "lora.r 8 4" in said.getvalue()
    assert 'trainingType "Standard" was ignored' in said.getvalue()
    assert "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" in said.getvalue()
    assert (here / "my-adapter" / "adapter_model.safetensors").exists()
    assert list(here.glob("step-*-adapter_model.safetensors"))


def test_what_is_to_be_saved_of_files_and_jobs_is_saved(
    here: Path, sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path
) -> None:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / "base", name=NAME)
        other = make_file(session, storage, project, chat_lines(11))  # of no job
        data, validation = (make_file(session, storage, project, chat_lines(count)) for count in (12, 13))
        make_job(session, project, data, NAME, {"seed": 77}, validation)
        validate_job(session)
        job = finish_job(session, storage, project, start_job(session))
        make_job(session, project, data, NAME)
    _run_saving_block(0)
    directory = here / "openai-backup" / "jobs" / job.id
    saved = json.loads((directory / "job.json").read_text())
    assert (saved["seed"], saved["training_file"]) == (77, data.id)
    assert saved["method"]["supervised"]["hyperparameters"]["n_epochs"]
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    assert "Created fine-tuning job" in events[-1]["message"]
    assert (directory / "checkpoints.jsonl").read_text()
    files = here / "openai-backup" / "files"
    for file in (other, data, validation):
        (path,) = (files / file.id).iterdir()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    assert (files / saved["result_files"][0]).is_dir()
    assert len(list((here / "openai-backup" / "jobs").iterdir())) == 2


def test_saving_again_fetches_what_is_missing_and_reports_what_is_gone(
    here: Path, sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / "base", name=NAME)
        make_job(session, project, make_file(session, storage, project), NAME)
    with openai.OpenAI() as client:
        (file,) = client.files.list()
        _run_saving_block(0)
        kept = next((here / "openai-backup" / "files" / file.id).iterdir())
        kept.write_text("mine")
        _run_saving_block(0)
        assert kept.read_text() == "mine"  # not fetched again
        shutil.rmtree(kept.parent)
        client.files.delete(file.id)
    _run_saving_block(0)
    assert f"{file.id} was not saved:" in capsys.readouterr().out
    assert not kept.parent.exists()


@pytest.fixture
def openai_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Chat completions and evals in OpenAI's shapes; what was asked of the former."""
    asked: list[dict[str, Any]] = []
    answers, lists = (
        FastAPI(),
        {"": "eval", "/{one}/runs": "eval.run", "/{one}/runs/{two}/output_items": "eval.run.output_item"},
    )

    @answers.post("/v1/chat/completions")
    async def complete(request: Request) -> dict[str, Any]:
        asked.append(await request.json())
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "as ever"}}
        return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}

    for path, kind in lists.items():
        answers.add_api_route(f"/v1/evals{path}", _one_page(kind))
    with serve(answers, http="h11") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield asked


def test_the_old_models_answers_are_saved(here: Path, openai_itself: list[dict[str, Any]]) -> None:
    rows = [
        *chat_lines(2).decode().splitlines(),
        json.dumps({"messages": [{"role": "user", "content": "hi"}], "tools": [1]}),
    ]
    (here / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    _run_saving_block(1)
    saved = [json.loads(line) for line in (here / "reference-answers.jsonl").read_text().splitlines()]
    assert [row["answer"]["choices"][0]["message"]["content"] for row in saved] == ["as ever"] * 3
    assert [row["messages"][-1]["role"] for row in openai_itself] == ["user"] * 3
    assert [row.get("tools") for row in openai_itself] == [None, None, [1]]
    assert {row["temperature"] for row in openai_itself} == {0}


def test_evals_are_saved_with_their_runs_and_items(here: Path, openai_itself: list[dict[str, Any]]) -> None:
    _run_saving_block(2)
    directory = here / "openai-backup" / "evals" / "eval-1"
    assert json.loads((directory / "eval.json").read_text())["id"] == "eval-1"
    lines = [json.loads(line)["id"] for line in (directory / "eval.run-1.jsonl").read_text().splitlines()]
    assert lines == ["eval.run-1", "eval.run.output_item-1"]


def test_the_dates_are_on_the_page() -> None:
    _, saving, _ = _around_saving()
    for date in ("30 November 2026", "6 January 2027", "14 January 2027", "14 October 2026"):
        assert date in saving


def _one_page(kind: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"object": "list", "data": [{"id": f"{kind}-1", "object": kind}], "has_more": False}


def _around_saving() -> tuple[str, str, str]:
    """The page before the section on what to save, that section, and the rest."""
    before, saving, rest = PAGE.read_text(encoding="utf-8").partition(SAVING)
    section, heading, after = rest.partition("\n## ")
    return before, saving + section, heading + after


def _run_saving_block(number: int) -> None:
    block = BLOCK.findall(_around_saving()[1])[number]
    world: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block, f"{PAGE.name}, to be saved, block {number}", "exec"), world)
    world["client"].close()


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
