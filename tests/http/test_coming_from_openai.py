"""docs/guides/coming-from-openai.md: its Python blocks run in their order with the official client and a live server.

The blocks of the section on what to save at OpenAI run against a Tunery server with jobs, too. For the answers of an
old model and for evals, a small server answers in OpenAI's shapes.
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
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from app.db.engine import Sessions, transaction
from app.db.jobs import claims
from app.db.tables import Project
from app.domain.answers.trial import TrialRecord
from app.settings import Settings
from app.storage import LocalStorage
from app.trial_queue import TrialSlot
from tests.commands.stand_in_openai import KEY, StandInOpenAI, stand_in_openai
from tests.factories import (
    TTL_SECONDS,
    WORKER,
    chat_lines,
    finish_job,
    lease_of,
    make_base_model,
    make_file,
    make_job,
    start_job,
    validate_job,
)
from tests.serving import LiveServer

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "coming-from-openai.md"
SAVING_HEADING = "## The dates, and what to save before each"
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
MODEL_NAME = "SmolLM2-135M-Instruct"
POLL_SECONDS = 0.02


@contextlib.contextmanager
def repeating(work: Callable[[], None]) -> Iterator[None]:
    """Repeat `work` in a thread until the block ends."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(POLL_SECONDS):
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def worker(sessions: Sessions, storage: LocalStorage, project: Project) -> Iterator[None]:
    """Validates and finishes every waiting job, as a worker would."""

    def work() -> None:
        with transaction(sessions) as session:
            job = claims.claim(session, "validate", WORKER, TTL_SECONDS)  # skips a row that a request has locked
            if job is not None:
                claims.finish_validation(session, lease_of(job), "Files validated, moving job to queued state")
                finish_job(session, storage, project, start_job(session))

    with repeating(work):
        yield


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"trial_answers": True})


@pytest.fixture
def idle_slot(settings: Settings) -> Iterator[None]:
    """Answers questions on trial, as two idle slots would: a question may come before the first is idle again."""

    def work(slot: TrialSlot) -> None:
        if (question := slot.next_question([MODEL_NAME])) is not None:
            slot.send(TrialRecord(id=question.id, type="text", text=f"an answer of {question.model}"))
            slot.send(TrialRecord(id=question.id, type="end"))

    with contextlib.ExitStack() as stack:
        for owner in (WORKER, f"{WORKER}-2"):
            slot = stack.enter_context(contextlib.closing(TrialSlot(settings.redis_url, owner)))
            stack.enter_context(repeating(partial(work, slot)))
        yield


@pytest.fixture
def reader_directory(tmp_path: Path, live_server: LiveServer, api_key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader: it contains a dataset, and the two variables are set."""
    directory = tmp_path / "reader"
    directory.mkdir()
    (directory / "train.jsonl").write_bytes(chat_lines())
    monkeypatch.chdir(directory)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_BASE_URL", live_server.url)
    monkeypatch.setenv("OPENAI_API_KEY", api_key)
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda _: wait(POLL_SECONDS))
    return directory


def test_every_block_runs_in_order(
    reader_directory: Path, sessions: Sessions, tmp_path: Path, worker: None, idle_slot: None
) -> None:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / "base", name=MODEL_NAME)
    namespace, output = {"__name__": "__main__"}, io.StringIO()
    before, saving, after = _split_at_saving()
    blocks = BLOCK.findall(before + after)
    assert len(BLOCK.findall(saving)) == 3  # these have tests of their own
    assert len(blocks) >= 6
    with contextlib.redirect_stdout(output):
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)
    namespace["client"].close()
    assert MODEL_NAME in output.getvalue()
    assert f"an answer of ft:{MODEL_NAME}:" in output.getvalue()
    assert "lora.r 8 4" in output.getvalue()
    assert 'trainingType "Standard" was ignored' in output.getvalue()
    assert "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" in output.getvalue()
    assert (reader_directory / "my-adapter" / "adapter_model.safetensors").exists()
    assert list(reader_directory.glob("step-*-adapter_model.safetensors"))


def test_the_first_block_saves_all_files_and_jobs(
    reader_directory: Path, sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path
) -> None:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / "base", name=MODEL_NAME)
        other = make_file(session, storage, project, chat_lines(11))  # not used by a job
        data, validation = (make_file(session, storage, project, chat_lines(count)) for count in (12, 13))
        make_job(session, project, data, MODEL_NAME, {"seed": 77}, validation)
        validate_job(session)
        job = finish_job(session, storage, project, start_job(session))
        make_job(session, project, data, MODEL_NAME)
    _run_saving_block(0)
    directory = reader_directory / "openai-backup" / "jobs" / job.id
    saved = json.loads((directory / "job.json").read_text())
    assert (saved["seed"], saved["training_file"]) == (77, data.id)
    assert saved["method"]["supervised"]["hyperparameters"]["n_epochs"]
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    assert "Created fine-tuning job" in events[-1]["message"]
    assert (directory / "checkpoints.jsonl").read_text()
    files = reader_directory / "openai-backup" / "files"
    for file in (other, data, validation):
        (path,) = (files / file.id).iterdir()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    assert (files / saved["result_files"][0]).is_dir()
    assert len(list((reader_directory / "openai-backup" / "jobs").iterdir())) == 2


def test_the_first_block_downloads_only_missing_files_and_reports_deleted_ones(
    reader_directory: Path, sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / "base", name=MODEL_NAME)
        make_job(session, project, make_file(session, storage, project), MODEL_NAME)
    with openai.OpenAI() as client:
        (file,) = client.files.list()
        _run_saving_block(0)
        kept = next((reader_directory / "openai-backup" / "files" / file.id).iterdir())
        kept.write_text("mine")
        _run_saving_block(0)
        assert kept.read_text() == "mine"  # not downloaded again
        shutil.rmtree(kept.parent)
        client.files.delete(file.id)
    _run_saving_block(0)
    assert f"{file.id} was not saved:" in capsys.readouterr().out
    assert not kept.parent.exists()


@pytest.fixture
def account(reader_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInOpenAI]:
    with stand_in_openai() as account:
        monkeypatch.setenv("OPENAI_BASE_URL", account.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield account


def test_the_second_block_saves_the_answers_of_the_old_model(reader_directory: Path, account: StandInOpenAI) -> None:
    asked: list[dict[str, Any]] = []
    account.answer = lambda body: asked.append(body) or "unchanged"  # type: ignore[func-returns-value]
    rows = [
        *chat_lines(2).decode().splitlines(),
        json.dumps({"messages": [{"role": "user", "content": "hi"}], "tools": [1]}),
    ]
    (reader_directory / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    _run_saving_block(1)
    saved = [json.loads(line) for line in (reader_directory / "reference-answers.jsonl").read_text().splitlines()]
    assert [row["answer"]["choices"][0]["message"]["content"] for row in saved] == ["unchanged"] * 3
    assert [row["recorded_answer"] for row in saved] == ["unchanged"] * 3  # what `tunery eval` reads
    assert [row["messages"] for row in saved] == [json.loads(row)["messages"] for row in rows]
    assert [(row["messages"][-1]["role"], row.get("tools")) for row in asked] == [("user", None)] * 2 + [("user", [1])]
    assert {row["temperature"] for row in asked} == {0}


@pytest.mark.usefixtures("account")
def test_the_third_block_saves_evals_with_their_runs_and_items(reader_directory: Path) -> None:
    _run_saving_block(2)
    directory = reader_directory / "openai-backup" / "evals" / "eval-1"
    assert json.loads((directory / "eval.json").read_text())["id"] == "eval-1"
    lines = [json.loads(line)["id"] for line in (directory / "eval.run-1.jsonl").read_text().splitlines()]
    assert lines == ["eval.run-1", "eval.run.output_item-1"]


def _split_at_saving() -> tuple[str, str, str]:
    """The page before the section on what to save, that section, and the page after it."""
    before, saving, rest = PAGE.read_text(encoding="utf-8").partition(SAVING_HEADING)
    section, heading, after = rest.partition("\n## ")
    return before, saving + section, heading + after


def _run_saving_block(number: int) -> None:
    block = BLOCK.findall(_split_at_saving()[1])[number]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block, f"{PAGE.name}, to be saved, block {number}", "exec"), namespace)
    namespace["client"].close()
