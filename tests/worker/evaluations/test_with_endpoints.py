"""A reference endpoint and a model that scores, through the whole evaluation."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.db.tables import Evaluation
from app.settings import Endpoint, Settings
from tests.loopback import Answer
from tests.worker.evaluations.conftest import EXACT, Ask, evaluator, lines, read
from tests.worker.evaluations.test_endpoints import ChatServer, answer, chatting, said
from tests.worker.worker_harness import WorkerHarness

ROWS = 6
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "judge-1",
    "input": [{"role": "user", "content": "Is it right? {{ sample.output_text }}"}],
}


class OldModel:
    """Answers as the adapter does but for row 1, which it refuses; scores by whether the text has a number."""

    def __init__(self) -> None:
        self.has_two = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def respond(self, number: int, body: dict[str, Any]) -> Answer:
        text = body["messages"][0]["content"]
        if body["model"] == "judge-1":
            return said(json.dumps({"result": 1 if "it is" in text else 0}))
        if number == 2:
            self.has_two.set()
            self.go_on.wait(30)
        if text == "say 1":
            return answer(400, {"error": {"message": "flagged"}})
        return said(f"it is {text.removeprefix('say ')}")


@pytest.fixture
def old_model() -> OldModel:
    return OldModel()


@pytest.fixture
def chat_server(old_model: OldModel) -> Iterator[ChatServer]:
    with chatting(old_model.respond) as server:
        yield server
        old_model.go_on.set()


@pytest.fixture
def settings(settings: Settings, chat_server: ChatServer) -> Settings:
    return settings.model_copy(update={"endpoints": {"old": Endpoint(base_url=chat_server.url, concurrency=1)}})


@pytest.fixture
def evaluation(ask: Ask) -> Evaluation:
    return ask(lines(ROWS), graders=[EXACT, JUDGE], reference={"model": "ft:old"})


def test_the_summary_has_the_reference_and_the_scores_of_the_model(
    harness: WorkerHarness, evaluation: Evaluation, chat_server: ChatServer, tmp_path: Path
) -> None:
    assert evaluator(harness, tmp_path).run_next()
    done = read(harness, evaluation)
    assert (done.state, done.error_message) == ("succeeded", None)
    assert done.summary is not None
    exact, judge = done.summary["graders"]
    assert [exact[model]["mean"] for model in ("base", "adapter", "reference")] == [pytest.approx(2 / 6), 1.0, 1.0]
    assert [judge[model]["mean"] for model in ("base", "adapter", "reference")] == [pytest.approx(2 / 6), 1.0, 1.0]
    answers = done.summary["answers"]
    assert [answers[model]["failed"] for model in ("base", "adapter", "reference")] == [0, 0, 1]
    rows = [json.loads(line) for line in harness.content(str(done.results_file_id)).splitlines()]
    assert "flagged" in rows[1]["answers"]["reference"]["error"]
    assert rows[2]["answers"]["reference"]["text"] == "it is 2"
    report = harness.content(str(done.report_file_id)).decode()
    assert "ft:old" in report
    assert len(chat_server.requests) == ROWS + 3 * ROWS - 1  # no score for the answer that is missing


def test_a_worker_that_stops_asks_no_more(
    harness: WorkerHarness, evaluation: Evaluation, old_model: OldModel, chat_server: ChatServer, tmp_path: Path
) -> None:
    old_model.go_on.clear()
    thread = threading.Thread(target=evaluator(harness, tmp_path).run_next)
    thread.start()
    assert old_model.has_two.wait(30)
    harness.resources.stop.set()
    old_model.go_on.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(chat_server.requests) == 2
    assert read(harness, evaluation).state == "queued"
