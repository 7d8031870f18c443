"""A slot that answers on trial, over the API and the real broker: with the real program, or with one that waits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from app.db.engine import transaction
from app.db.scheduling import workers
from app.settings import Settings
from app.trial_queue import PREFIX, as_redis_py
from tests.deadline import until
from tests.serving import LiveServer
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.answers import ANSWER_COMMAND, TrialAnswers

BASE = "tiny"
CHAT = "/v1/chat/completions"
WITH_TOOLS = "with-tools"
SAY = [{"role": "user", "content": "say 3"}]
# A program that says one word, and goes on when the file `go` exists; it writes `stopped` if nobody waits any more.
WAITING = """
import json, sys, threading, time
from pathlib import Path
directory = Path(sys.argv[1])
go, stopped = directory.parent / "go", directory.parent / "stopped"
def read():
    for line in sys.stdin:
        control = json.loads(line)
        if control["stop"]:
            stopped.write_text(control["stop"])
        else:
            threading.Thread(target=answer, args=(control["question"]["id"],)).start()
def answer(id):
    print(json.dumps({"id": id, "type": "text", "text": "one"}), flush=True)
    while not go.exists() and not stopped.exists():
        time.sleep(0.01)
    print(json.dumps({"id": id, "type": "text", "text": " two"}), flush=True)
    print(json.dumps({"id": id, "type": "end", "prompt_tokens": 3, "completion_tokens": 2}), flush=True)
read()
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"trial_answers": True})


@pytest.fixture
def http(live_server: LiveServer, api_key: str) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx2.Client(base_url=live_server.root, headers=headers, trust_env=False, timeout=120) as client:
        yield client


Start = Callable[..., TrialAnswers]


@pytest.fixture
def start(harness: WorkerHarness) -> Iterator[Start]:
    started: list[TrialAnswers] = []

    def start(*command: str) -> TrialAnswers:
        models = {BASE, WITH_TOOLS}
        answers = TrialAnswers(harness.resources, OWNER, "gpu0@test", lambda: models, command or ANSWER_COMMAND)
        answers.start()
        started.append(answers)
        with redis.Redis.from_url(as_redis_py(harness.resources.settings.redis_url)) as client:
            until(lambda: client.exists(f"{PREFIX}:idle:{OWNER}"), "the slot is offered")
        with transaction(harness.sessions) as session:
            workers.heartbeat(session, OWNER, "gpu", "host", 1, {"models": sorted(models), "trial_answers": True})
        return answers

    yield start
    harness.resources.stop.set()
    for answers in started:
        answers.close()


@pytest.fixture
def waiting(tmp_path: Path, harness: WorkerHarness) -> tuple[tuple[str, str], Path]:
    """(a program that waits, the directory of its files)."""
    program = tmp_path / "waiting.py"
    program.write_text(WAITING)
    directory = harness.resources.settings.data_dir / "run"
    directory.mkdir(parents=True, exist_ok=True)
    return (sys.executable, str(program)), directory


def ask(http: httpx2.Client, model: str = BASE, path: str = CHAT, **more: Any) -> httpx2.Response:
    """The first answer that is not a 429: the slot is offered a moment after its start."""
    asked = {"messages": SAY} if path == CHAT else {}
    body = {"model": model, "temperature": 0, "max_tokens": 6} | asked | more
    found: list[httpx2.Response] = []
    until(lambda: found.append(http.post(path, json=body)) or found[-1].status_code != 429, "a free slot", 30)
    return found[-1]
