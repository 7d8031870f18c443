"""The commands of docs/guides/coming-from-openai.md, in the order of the page, with a stand-in for OpenAI's API."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import openai
import pytest

from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.domain.planning.base_sizes import COMMON_BASES
from app.settings import Settings
from app.storage import LocalStorage
from tests.commands.conftest import Result, Tunery
from tests.commands.running_slot import running_slot
from tests.commands.stand_in_openai import KEY, StandInOpenAI, chat_lines, stand_in_openai
from tests.commands.trained import make_trained_job
from tests.factories import make_base_model
from tests.serving import LiveServer
from tests.worker.evaluations.conftest import fake
from worker.evaluations.evaluator import Evaluator
from worker.node.slot import try_lock

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGE = (GUIDES / "coming-from-openai.md").read_text(encoding="utf-8")
SHELL = re.compile(r"```sh\n(.*?)```", re.S)
DIFF = re.compile(r"```diff\n(.*?)```", re.S)
BASE = "Qwen3-4B"
ELSEWHERE = ("pip", "vllm")  # programs that the tests do not run
# The adapter answers as the old model did, the base does not.
ANSWERS = """
rows = [json.loads(line) for line in open(directory / 'prompts.jsonl')]
with open(directory / 'answers.jsonl', 'w') as out:
    print(json.dumps({'device': 'cpu', 'compute_dtype': 'bfloat16'}), file=out)
    for row in rows:
        for model, text in (('base', 'no'), ('adapter', f"it is {row['row']}")):
            print(json.dumps({'row': row['row'], 'model': model, 'text': text, 'tokens': 3, 'is_cut': False}), file=out)
"""


@pytest.fixture
def account() -> Iterator[StandInOpenAI]:
    with stand_in_openai() as account:
        account.add_file("file-train")
        account.add_job("ftjob-aaaa")
        yield account


@pytest.fixture
def job(sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path) -> Job:
    """A job here whose adapter is compared with the old model."""
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "base", name="tiny")
        make_base_model(session, tmp_path / "large", name=BASE)
        return make_trained_job(session, storage, project, tmp_path / "made")


@pytest.fixture
def evaluating_worker(settings: Settings, tmp_path: Path) -> Iterator[None]:
    """A worker's slot that runs evaluations, with generated answers of the tests."""
    lock, command = partial(try_lock, tmp_path / "trainer.lock"), fake(tmp_path, ANSWERS)
    with running_slot(settings, lambda resources: Evaluator(resources, "gpu0@test#1", lock, None, command)):
        yield


def commands() -> list[list[str]]:
    lines = "".join(SHELL.findall(PAGE)).splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("export ")]


@pytest.mark.parametrize("have_answers", [True, False], ids=["expected answers", "prompts only"])
def test_every_command_runs_in_the_order_of_the_page(
    operator: Tunery, account: StandInOpenAI, job: Job, evaluating_worker: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, have_answers: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    prompts = [json.loads(line) for line in chat_lines(4).splitlines()]
    for line in () if have_answers else prompts:
        del line["messages"][-1]
    Path("prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    Path("train.jsonl").write_bytes(chat_lines(12))
    done: dict[str, Result] = {}
    for words in commands():
        needs_answers = "eval" in words and "--expected-field" not in words
        if words[0] in ELSEWHERE or (needs_answers and not have_answers):
            continue
        assert words[0] == "tunery", words
        arguments = [job.id if word == "JOB" else word for word in words[1:]]
        more = ["--openai-url", account.url] if arguments[:2] == ["import", "openai"] else []
        done[" ".join(words)] = result = operator(*arguments, *more)
        assert result.exit_code == 0, f"{words}: {result.err}{result.out}"
    assert len(done) >= 8
    (imported, *others) = operator("jobs", "list", "--json").json
    assert (imported["model"], imported["metadata"]["openai_job"]) == (BASE, "ftjob-aaaa")
    assert imported["file_origins"]["training_file"]["id"] == "file-train"
    assert [each["id"] for each in others] == [job.id]
    golden = [json.loads(line) for line in Path("golden.jsonl").read_text().splitlines()]
    assert [row["recorded_answer"] for row in golden] == [f"old: say {n}" for n in range(4)]
    parity = Path("parity.md").read_text()
    assert "recorded_answer" in parity
    assert "4 bits" in parity
    assert {method for method, path in account.requests if "chat" not in path} == {"GET"}


def test_the_diff_is_one_line_of_a_script_that_runs(
    live_server: LiveServer, api_key: str, operator: Tunery, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_bytes(chat_lines(12))
    operator("models", "alias", "gpt-4o-mini-2024-07-18", BASE)
    (diff,) = DIFF.findall(PAGE)
    lines = diff.splitlines()
    assert [line[0] for line in lines if line and line[0] in "+-"] == ["-", "+"]
    script = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    script = script.replace("http://127.0.0.1:8000/v1", live_server.url).replace("tnry_...", api_key)
    script = script.replace('open("train.jsonl", "rb")', '__import__("pathlib").Path("train.jsonl")')  # it is closed
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(script, "the script of the page", "exec"), namespace)
    client = namespace["client"]
    assert isinstance(client, openai.OpenAI)
    client.close()
    assert f"{BASE} validating_files" in capsys.readouterr().out


def test_the_command_prints_the_table(bare_tunery: Tunery) -> None:
    page = (GUIDES / "choose-a-base.md").read_text(encoding="utf-8")
    printed = bare_tunery("models", "memory", "--markdown").out
    assert all(line in page for line in printed.splitlines() if "---" not in line)
    assert [row["base model"] for row in bare_tunery("models", "memory", "--json").json] == [
        base.name for base in COMMON_BASES
    ]


@pytest.mark.parametrize(("name", "billions"), [("Qwen3-4B", 4.02), ("Qwen3-8B", 8.19), ("Llama-3.1-8B", 8.03)])
def test_the_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    (base,) = (each for each in COMMON_BASES if each.name == name)
    assert base.entry.parameters / 1e9 == pytest.approx(billions, abs=0.01)
