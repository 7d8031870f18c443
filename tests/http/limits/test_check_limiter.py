"""Hostile bodies and datasets against a real API process: others are answered meanwhile, and nothing goes on alone."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from app.api.limits import MAX_SHORT_CHECKS
from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.settings import Settings
from app.storage import LocalStorage
from app.system.limited_process import SERVER
from tests.deadline import until
from tests.factories import make_base_model, make_file, make_key
from tests.serving import LiveServer, api_process

PROCESSES = 2
PLANS = 100  # of one key at once
# Checked in some seconds: lists of numbers are the slowest JSON there is.
SLOW_LINES = (b'{"a": [' + b",".join([b"0"] * 500_000) + b"]}\n") * 24
SLOW_CHAT = b"".join(
    b'{"messages": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "%s"}]}\n' % (n, b"ab " * 300)
    for n in range(6_000)
)


@dataclass(frozen=True)
class Running:
    server: LiveServer
    api: psutil.Process
    key: str

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx2.Client(base_url=self.server.root, headers=headers, timeout=120, trust_env=False)

    def checking(self) -> list[psutil.Process]:
        """The checking processes of the API that run now."""
        servers = [child for child in self.api.children() if SERVER in child.cmdline()]
        return [child for server in servers for child in server.children() if _runs(child)]

    def send(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> socket.socket:
        """A whole request, whose answer nobody has read yet."""
        connection = socket.create_connection((self.server.host, self.server.port), timeout=60)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: tunery\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return connection


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def running(settings: Settings, api_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("TUNERY_CHECK_PROCESSES", str(PROCESSES))
    with api_process(settings) as (server, process):
        yield Running(server, psutil.Process(process.pid), api_key)


@pytest.fixture
def slow_file(sessions: Sessions, storage: LocalStorage, project: Project) -> str:
    with transaction(sessions) as session:
        return make_file(session, storage, project, content=SLOW_CHAT).id


@pytest.fixture
def model(sessions: Sessions, tmp_path: Path) -> str:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "base", "tiny")
    return "tiny"


@dataclass
class Watch:
    """How long `/healthz` took, and how many checking processes there were, asked again and again."""

    seconds: list[float] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)


@contextmanager
def watching(running: Running) -> Iterator[Watch]:
    watch, over = Watch(), threading.Event()

    def look() -> None:
        with running.client() as client:
            while not over.wait(0.02):
                began = time.monotonic()
                assert client.get("/healthz").status_code == 200
                watch.seconds.append(time.monotonic() - began)
                watch.processes.append(len(running.checking()))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield watch
        finally:
            over.set()
            looking.result(60)


def form(content: bytes) -> tuple[bytes, str]:
    request = httpx2.Request("POST", "http://a/", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content)})
    return request.read(), request.headers["content-type"]


@pytest.mark.extended("seconds of hostile work beside other requests")
class TestOthersAreAnswered:
    def test_while_bodies_of_40_000_keys_are_refused(self, running: Running) -> None:
        keys = [f'"k{number}":0' for number in range(40_000)]
        body = "{" + ",".join([*keys, keys[-1]]) + "}"
        with watching(running) as watch, running.client() as client:
            for _ in range(5):
                answer = client.post("/v1/fine_tuning/jobs/plan", content=body)
                assert "appears twice" in answer.json()["error"]["message"]
        assert max(watch.seconds) < 20  # each body took 27 s on an idle machine

    def test_while_a_line_of_319_kb_is_refused(self, running: Running) -> None:
        keys = [f'"k{number}":0' for number in range(30_000)]
        line = ("{" + ",".join([*keys, keys[-1]]) + "}\n").encode()
        with watching(running) as watch, running.client() as client:
            answer = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", line)})
        assert "Line 1: the key" in answer.json()["error"]["message"]
        assert max(watch.seconds) < 20


class TestAClientThatLeaves:
    @pytest.mark.parametrize(
        "what",
        [
            "plan",
            *(pytest.param(what, marks=pytest.mark.extended("the same for plans")) for what in ("upload", "validate")),
        ],
    )
    def test_leaves_no_process(self, running: Running, slow_file: str, model: str, what: str) -> None:
        plan = json.dumps({"model": model, "training_file": slow_file}).encode()
        send: dict[str, Callable[[], socket.socket]] = {
            "upload": lambda: running.send("POST", "/v1/files", *form(SLOW_LINES)),
            "validate": lambda: running.send("POST", f"/v1/files/{slow_file}/validate?model={model}"),
            "plan": lambda: running.send("POST", "/v1/fine_tuning/jobs/plan", plan),
        }
        with watching(running) as watch:
            with ExitStack() as opened:
                for _ in range(4):
                    opened.enter_context(send[what]())
                until(running.checking, "a checking process", seconds=60)
            until(lambda: not running.checking(), "the end of every checking process", seconds=20)
            quiet_until = time.monotonic() + 1
            until(lambda: running.checking() or time.monotonic() > quiet_until, "no next one", seconds=20)
            assert not running.checking()
        assert max(watch.processes) <= PROCESSES


@pytest.mark.extended("a hundred plans beside other requests")
class TestFairness:
    def test_a_hundred_plans_of_one_key_do_not_starve_another(
        self, running: Running, sessions: Sessions, project: Project, slow_file: str, model: str, storage: LocalStorage
    ) -> None:
        with transaction(sessions) as session:
            other_key = make_key(session, project, "other")
            small_file = make_file(session, storage, project).id
        plans = [
            {"model": model, "training_file": slow_file, "hyperparameters": {"context_length": 64 + number}}
            for number in range(PLANS)
        ]
        with watching(running) as watch, ExitStack() as opened:
            for plan in plans:
                opened.enter_context(running.send("POST", "/v1/fine_tuning/jobs/plan", json.dumps(plan).encode()))
            until(running.checking, "a checking process", seconds=60)
            with running.client(other_key) as client:
                for file_id, context_length in ((small_file, 99), (slow_file, 99)):  # a short one, and one that waits
                    asked = {"model": model, "training_file": file_id}
                    asked["hyperparameters"] = {"context_length": context_length}
                    assert client.post("/v1/fine_tuning/jobs/plan", json=asked).status_code == 200
                assert client.get("/v1/fine_tuning/jobs").status_code == 200
            assert running.checking(), "the plans of the first key ended before those of the other"
        until(lambda: not running.checking(), "the end of every checking process", seconds=20)
        assert max(watch.seconds) < 5
        assert max(watch.processes) <= PROCESSES + MAX_SHORT_CHECKS
