"""What a slot does when broker, storage or a second API process misbehave, with a program that waits."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from app.db.engine import transaction
from app.db.scheduling import workers
from app.domain.answers.trial import TrialQuestion, TrialRecord
from app.trial_queue import PREFIX, as_redis_py
from tests.commands.trained import make_trained_job, write_adapter
from tests.deadline import until
from tests.factories import make_key, make_project
from tests.worker.answers.conftest import BASE, CHAT, SAY, Start, ask
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.answers import TrialAnswers, prepare
from worker.jobs.base_and_adapter import AttemptFailed

Waiting = tuple[tuple[str, str], Path]
# A program that reads nothing until the file `go` exists, and obeys no stop: a schema names the signal that ends it.
STUBBORN = """
import json, os, signal, sys, time
from pathlib import Path
go = Path(sys.argv[1]).parent / "go"
while not go.exists():
    time.sleep(0.01)
for line in sys.stdin:
    question = json.loads(line)["question"]
    if question is None:
        continue
    if question["json_schema"]:
        os.kill(os.getpid(), signal.Signals[question["json_schema"]["title"]])
    print(json.dumps({"id": question["id"], "type": "text", "text": "one"}), flush=True)
    if question["messages"][0]["content"] == "hang":
        time.sleep(600)
    print(json.dumps({"id": question["id"], "type": "end"}), flush=True)
"""


def question(id: str, model: str = BASE, project_id: str = "") -> TrialQuestion:
    return TrialQuestion(
        id=id, project_id=project_id, model=model, messages=SAY, prompt=None, max_new_tokens=4, temperature=0, top_p=1,
        seed=None, stop=[],
    )  # fmt: skip


def test_after_a_broker_that_failed_in_the_middle_the_next_question_gets_its_own_answer(
    http: httpx2.Client, start: Start, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.answers.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("app.services.answers.trial.SILENCE_SECONDS", 1.0)
    answers = start(*waiting[0])
    send, failed = answers._slot.send, threading.Event()

    def fail_once(record: TrialRecord) -> bool:
        if record.type == "text" and not failed.is_set():
            failed.set()
            raise redis.ConnectionError("gone")
        return send(record)

    monkeypatch.setattr(answers._slot, "send", fail_once)
    assert ask(http).status_code == 502
    (waiting[1] / "go").touch()
    monkeypatch.setattr("app.services.answers.trial.SILENCE_SECONDS", 30.0)
    answered = ask(http)
    assert answered.status_code == 200
    assert answered.json()["choices"][0]["message"]["content"] == "one two"


def signs_of(answers: TrialAnswers, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the records that the slot sends from now on; signs of life come every 10 ms."""
    monkeypatch.setattr("worker.answers.ALIVE_SECONDS", 0.01)
    send, signs = answers._slot.send, list[str]()

    def note(record: TrialRecord) -> bool:
        signs.append(record.type)
        return send(record)

    monkeypatch.setattr(answers._slot, "send", note)
    return signs


def test_a_slot_sends_keepalives_while_it_fetches_an_adapter(
    http: httpx2.Client, start: Start, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    (waiting[1] / "go").touch()
    signs = signs_of(start(*waiting[0]), monkeypatch)

    def fetch_slowly(*arguments: Any) -> Any:
        until(lambda: signs.count("alive") > 3, "signs of life")
        return prepare(*arguments)

    monkeypatch.setattr("worker.answers.prepare", fetch_slowly)
    assert ask(http).status_code == 200


def test_a_question_that_arrives_during_an_answer_is_refused_at_once(
    harness: WorkerHarness, http: httpx2.Client, start: Start, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two API processes may claim a slot: its key is written anew between the claim and the question."""
    monkeypatch.setattr("worker.answers.ALIVE_SECONDS", 0.05)
    answers = start(*waiting[0])
    with (
        redis.Redis.from_url(as_redis_py(harness.resources.settings.redis_url), decode_responses=True) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask, http)
        until(lambda: answers._process is not None, "the first question is being answered")
        client.rpush(f"{PREFIX}:ask:{OWNER}", question("second").model_dump_json())
        until(lambda: client.llen(f"{PREFIX}:answer:second"), "the refusal")
        (record,) = client.lrange(f"{PREFIX}:answer:second", 0, -1)  # type: ignore[misc]
        (waiting[1] / "go").touch()
        assert asked.result().status_code == 200
    assert TrialRecord.model_validate_json(record).reason == "busy"


@pytest.fixture
def stubborn(waiting: Waiting) -> Waiting:
    """(the program STUBBORN, the directory of its files)."""
    (python, program), directory = waiting
    Path(program).write_text(STUBBORN)
    return (python, program), directory


@pytest.mark.parametrize("signal", ["SIGPROF", "SIGABRT"])
def test_a_schema_that_ends_the_program_is_a_400_and_another_project_is_answered(
    harness: WorkerHarness, http: httpx2.Client, start: Start, stubborn: Waiting, signal: str
) -> None:
    (stubborn[1] / "go").touch()
    start(*stubborn[0])
    schema = {"name": "x", "schema": {"title": signal}}
    refused = ask(http, response_format={"type": "json_schema", "json_schema": schema})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    with transaction(harness.sessions) as session:
        http.headers["Authorization"] = f"Bearer {make_key(session, make_project(session, 'other'))}"
    assert ask(http).status_code == 200


def test_a_program_that_goes_on_without_its_client_is_killed(
    http: httpx2.Client, start: Start, stubborn: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.answers.STOP_SECONDS", 0.1)
    monkeypatch.setattr("worker.answers.ALIVE_SECONDS", 0.1)
    (stubborn[1] / "go").touch()
    answers = start(*stubborn[0])
    hang = [{"role": "user", "content": "hang"}]
    with http.stream("POST", CHAT, json={"model": BASE, "messages": hang, "stream": True}) as stream:
        lines = stream.iter_lines()
        until(lambda: "one" in next(lines), "the first text")
        process = answers._process
    assert process is not None
    until(lambda: not process.is_running, "the program is killed")
    assert ask(http).status_code == 200


def test_a_slot_sends_keepalives_while_the_program_does_not_read_a_long_question(
    http: httpx2.Client, start: Start, stubborn: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = start(*stubborn[0])
    signs = signs_of(answers, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, http, messages=[{"role": "user", "content": "long " * 100_000}])
        until(lambda: answers._process is not None, "the program")
        signs.clear()
        until(lambda: signs.count("alive") > 3, "signs of life")
        (stubborn[1] / "go").touch()
        assert asked.result().status_code == 200


def test_an_adapter_of_another_base_is_fetched_once_and_refused(
    harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction(harness.sessions) as session:
        job = make_trained_job(session, harness.resources.storage, harness.project, tmp_path / "made", write_adapter)
    asked = question("q", job.fine_tuned_model or "", harness.project.id)
    for _ in range(2):
        with pytest.raises(AttemptFailed) as refused:
            prepare(harness.resources, asked, tmp_path / "adapters")
        assert refused.value.code == "model_unavailable"
        monkeypatch.setattr("worker.answers.fetch_adapter_files", None)


def test_an_adapter_is_fetched_once_while_the_directory_has_those_that_were_used_last(
    harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.answers.MAX_ADAPTERS", 2)
    with transaction(harness.sessions) as session:
        storage = harness.resources.storage
        models = [
            make_trained_job(session, storage, harness.project, tmp_path / name).fine_tuned_model for name in "abc"
        ]
    directory = tmp_path / "adapters"
    (directory / "killed.part").mkdir(parents=True)

    def use(model: str | None) -> str:
        adapter = prepare(harness.resources, question("q", model or "", harness.project.id), directory).adapter
        assert adapter is not None
        return adapter.directory.parent.name

    first, second = use(models[0]), use(models[1])
    with monkeypatch.context() as patch:
        patch.setattr("worker.answers.fetch_adapter_files", None)
        assert use(models[0]) == first
    os.utime(directory / second, (0, 0))  # the times of a fast test may be equal
    assert {each.name for each in directory.iterdir()} == {first, second}
    third = use(models[2])
    assert {each.name for each in directory.iterdir()} == {first, third}
    assert use(models[1]) == second


@pytest.mark.parametrize(
    ("about", "status"),
    [
        ({"models": [BASE]}, 429),
        ({"models": ["another"]}, 503),
        ({"models": [BASE], "slots_per_gpu": 2}, 503),
        ({"models": [BASE], "trial_answers": False}, 503),
        (None, 503),
    ],
)
def test_a_worker_that_can_never_answer_is_no_busy_one(
    harness: WorkerHarness, http: httpx2.Client, about: dict[str, Any] | None, status: int
) -> None:
    if about is not None:
        with transaction(harness.sessions) as session:
            workers.heartbeat(session, OWNER, "gpu", "host", 1, about)
    neutral = {"n": 1, "frequency_penalty": 0, "tools": [], "tool_choice": "none", "parallel_tool_calls": False}
    neutral |= {"user": "me", "logprobs": False, "seed": None, "response_format": {"type": "text"}}
    response = http.post(CHAT, json={"model": BASE, "messages": SAY} | neutral)
    is_served = response.json()["error"]["code"] != "model_not_served"
    assert (response.status_code, is_served) == (status, status == 429)
    assert is_served or response.headers["x-should-retry"] == "false"


def start_and_ask(http: httpx2.Client, start: Start, waiting: Waiting) -> TrialAnswers:
    """Trial answers whose program runs, as it has answered once."""
    (waiting[1] / "go").touch()
    answers = start(*waiting[0])
    assert ask(http).status_code == 200
    return answers


def test_an_idle_base_model_is_unloaded(
    http: httpx2.Client, start: Start, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = start_and_ask(http, start, waiting)
    process = answers._process
    assert process is not None
    assert process.is_running
    monkeypatch.setattr("worker.answers.IDLE_SECONDS", 0.0)
    until(lambda: answers._process is None, "the program is ended")
    assert not process.is_running
    until(lambda: not answers._directory.exists(), "its files are deleted")


def test_the_files_of_answers_are_deleted_while_the_job_runs_that_ended_them(
    http: httpx2.Client, start: Start, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = start_and_ask(http, start, waiting)
    with answers.suspended():
        assert answers._directory.exists()
        monkeypatch.setattr("worker.answers.IDLE_SECONDS", 0.0)
        until(lambda: not answers._directory.exists(), "its files are deleted")


@pytest.mark.parametrize("is_loading", [False, True], ids=["while it generates", "while it loads"])
def test_a_client_that_gives_up_a_whole_answer_stops_the_generation(
    http: httpx2.Client, start: Start, waiting: Waiting, monkeypatch: pytest.MonkeyPatch, is_loading: bool
) -> None:
    has_given_up = threading.Event()

    def load_slowly(*arguments: Any) -> Any:
        assert has_given_up.wait(30)
        return prepare(*arguments)

    start(*waiting[0])
    if is_loading:
        monkeypatch.setattr("worker.answers.prepare", load_slowly)
    with pytest.raises(httpx2.ReadTimeout):
        http.post(CHAT, json={"model": BASE, "messages": SAY}, timeout=2)
    has_given_up.set()
    until((waiting[1] / "stopped").exists, "the program stops", 20)
