"""`tunery up` itself, with all its processes: start, stop, and every way to die."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.cli.local_stack import first_run, up
from app.cli.local_stack.checks import machine_checks
from app.cli.local_stack.data_directory import Layout
from app.domain.operations.checks import Check
from tests.commands.local_stack.support import (
    give_away,
    look_of,
    plain_user,
    processes_naming,
    program_environment,
    service_account,
)
from tests.deadline import until
from tests.processes import is_alive
from tests.tiny import make_tiny_base

SERVICES = {"postgres", "valkey", "api", "web", "gpu-worker", "cpu-worker", "reconciler", "webhooks", "deliveries"}
START_SECONDS = 120.0

Start = Callable[..., "Running"]


class Running:
    """One `tunery up`, its words and its addresses."""

    def __init__(self, data_dir: Path, become: Sequence[str] = (), port: int = 0) -> None:
        self.layout = Layout(data_dir)
        self.log = data_dir.with_name(data_dir.name + ".log")
        command = [*become, sys.executable, "-m", "app.cli.local_stack.up", str(data_dir), "127.0.0.1", str(port)]
        environment = program_environment() | {"TUNERY_DEVICE": "cpu"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, cwd="/", stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def runtime(self) -> dict[str, Any]:
        """Once it is ready."""
        until(self._is_ready, "the service is ready", START_SECONDS)
        return json.loads(self.layout.runtime.read_text())

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def get(self, path: str, key: str = "") -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx2.Client(base_url=self.runtime()["base_url"], headers=headers, trust_env=False) as client:
            return client.get(path).status_code

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.said
        return (self.layout.read_runtime() or {}).get("pid") == self.process.pid


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    for name in ("DATABASE_URL", "REDIS_URL", "TUNERY_ADMIN_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    started: list[Running] = []

    def start(data_dir: Path, *arguments: Any, **options: Any) -> Running:
        started.append(Running(data_dir, *arguments, **options))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()


def with_a_model(data_dir: Path) -> Path:
    """A data directory where the conversion is done, though of a tiny model: that story has its own test."""
    data_dir.mkdir()
    (data_dir / "up.lock").touch()
    make_tiny_base(data_dir / "models" / first_run.BUNDLED_MODEL)
    return data_dir


class TestALife:
    def test_first_start_then_a_crash_then_kill_9_then_a_start_that_is_interrupted(
        self, place: Path, start: Start
    ) -> None:
        """One story with one whole start, as a start takes 15 s of computing."""
        data_dir = with_a_model(place / "data")
        before, accounts = look_of(data_dir), Path("/etc/passwd").read_bytes()

        first = start(data_dir)
        pids = first.runtime()["pids"]
        assert set(pids) == SERVICES
        assert all(map(is_alive, pids.values()))
        key = first.layout.admin_key.read_text().strip()
        assert first.said.count(key) == 1
        assert first.get("/readyz") == 200
        assert first.get("/v1/models", key) == 200
        self._is_private(first.layout)
        self._logs_requests_as_json(first)
        self._exposes_metrics(first)
        self._reports_its_status_to_doctor(first)
        assert first.said.count("migrated from") == 1

        second = start(data_dir)
        assert second.process.wait(60) == 1
        assert "Another `tunery up`" in second.said
        assert first.get("/readyz") == 200

        os.kill(pids["api"], signal.SIGKILL)
        api = until(lambda: self._new_pid(first, "api", pids["api"]), "a new API process", 60)
        until(lambda: self._answers(first), "an answer of the new API process", 60)
        assert is_alive(api)
        assert "killed by SIGKILL" in first.said

        first.end(signal.SIGKILL)
        third = start(data_dir)
        until(lambda: third.said.count(" listens on ") == 4, "the line of the API", 60)
        assert not any(is_alive(pid) for pid in {**pids, "api": api}.values())
        assert third.end(signal.SIGINT) == 0
        assert third.said.rstrip().split("\n")[-1].startswith("stopped ")
        assert third.said.count(key) == 1  # only the first start has shown it
        assert third.said.count("migrated from") == 1
        assert processes_naming(data_dir) == {}
        assert third.layout.read_runtime() is None
        assert not third.layout.metrics_targets.exists()
        assert look_of(data_dir) == before
        assert Path("/etc/passwd").read_bytes() == accounts
        assert {path.name for path in place.iterdir()} == {"data", "data.log"}

    def _logs_requests_as_json(self, running: Running) -> None:
        assert re.search(rf"^logs +{re.escape(str(running.layout.logs))}, ", running.said, re.M)
        lines = [json.loads(line) for line in running.layout.log("api").read_text().splitlines()]
        assert {line["route"] for line in lines if line["event"] == "request"} >= {"/readyz", "/v1/models"}
        assert not [line for line in lines if "alembic" in str(line) or "Context impl" in str(line)]

    def _exposes_metrics(self, running: Running) -> None:
        targets = json.loads(running.layout.metrics_targets.read_text())
        assert {each["labels"]["process"] for each in targets} == SERVICES - {"postgres", "valkey"}
        for each in targets:
            answer = httpx2.get(f"http://{each['targets'][0]}/metrics", trust_env=False)
            assert "tunery_build_info{process=" in answer.text

    def _reports_its_status_to_doctor(self, running: Running) -> None:
        def services() -> list[Check]:
            return [check for check in machine_checks(running.layout.root) if check.name in ("service", "no_backup")]

        until(lambda: "ok" in {result.level for result in services()}, "a service that is ok", START_SECONDS)
        assert "No backup was made." in {result.observed for result in services()}

    def _is_private(self, layout: Layout) -> None:
        assert layout.root.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
        assert layout.admin_key.stat().st_mode & 0o777 == 0o600
        assert layout.runtime.stat().st_mode & 0o777 == 0o600
        sockets = [path for path in layout.root.rglob("*") if path.is_socket()]
        assert len(sockets) == 2
        assert {path.parent.stat().st_mode & 0o777 for path in sockets} == {0o700}

    def _answers(self, running: Running) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return running.get("/readyz") == 200
        return False

    def _new_pid(self, running: Running, name: str, old: int) -> int | None:
        pid = (running.layout.read_runtime() or {}).get("pids", {}).get(name)
        return None if pid == old else pid


@pytest.mark.extended("another start of the whole service")
class TestOtherPlaces:
    def test_a_plain_user_starts_it_twice_with_the_same_data(self, place: Path, start: Start) -> None:
        home, become = place / "home", plain_user()
        home.mkdir()
        with_a_model(home / "data")
        give_away(home, become)
        for _ in range(2):
            running = start(home / "data", become)
            running.runtime()
            key = running.layout.admin_key.read_text().strip()
            assert running.get("/v1/models", key) == 200
            owner = service_account().uid if become else os.geteuid()
            assert {path.stat().st_uid for path in running.layout.root.rglob("*") if not path.is_socket()} == {owner}
            assert running.layout.root.stat().st_mode & 0o777 == 0o700
            assert running.end(signal.SIGTERM) == 0
            assert processes_naming(home) == {}
        assert running.said.count(key) == 1

    def test_database_url_and_redis_url_are_used_instead(
        self, tmp_path: Path, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a directory that only we can reach, and started in the background as `make demo` does it."""
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("REDIS_URL", redis_url)
        with up.running_in_background(with_a_model(tmp_path / "data"), tmp_path / "up.log") as service:
            layout = Layout(service.data_dir)
            runtime = layout.read_runtime() or {}
            assert set(runtime["pids"]) == SERVICES - {"postgres", "valkey"}
            assert "external" in service.log.read_text()
            assert not layout.postgres.exists()
            assert not layout.valkey.exists()
            assert layout.root.stat().st_mode & 0o777 == 0o700
        assert not any(map(is_alive, runtime["pids"].values()))
