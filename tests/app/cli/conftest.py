"""The `tunery` command as a user types it, against the real API behind a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.client import database
from app.cli.main import app as command_line
from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.app.cli.trained import make_trained_job
from tests.factories import chat_lines, make_base_model
from tests.kept_engines import kept_engines
from tests.serving import LiveServer


@dataclass(frozen=True)
class Result:
    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.exit_code == 0, self.err
        return json.loads(self.out)


Tunery = Callable[..., Result]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own Tunery, if it has one."""
    for name in ("TUNERY_BASE_URL", "TUNERY_API_KEY", "DATABASE_URL", "REDIS_URL", "TUNERY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path / "no-data-dir"))
    monkeypatch.setattr("app.cli.commands.jobs.progress.POLL_SECONDS", 0.02)
    monkeypatch.setattr("app.cli.client.transfers.ATTEMPT_PAUSE_SECONDS", 0.0)


@pytest.fixture
def bare_tunery() -> Tunery:
    """The command with nothing in the environment but what a test gives."""

    def run(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
        done = CliRunner().invoke(command_line, [str(one) for one in arguments], env=env)
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def tunery(
    bare_tunery: Tunery, live_server: LiveServer, api_key: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tunery]:
    """The command of somebody who has the address, a key of the project `default`, and the database."""
    monkeypatch.setenv("TUNERY_BASE_URL", live_server.root)
    monkeypatch.setenv("TUNERY_API_KEY", api_key)
    monkeypatch.setenv("DATABASE_URL", database_url)
    with kept_engines(database):
        yield bare_tunery


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(chat_lines())
    return path


@pytest.fixture
def base_model(sessions: Sessions, tmp_path: Path) -> Iterator[str]:
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "tiny")
    return "tiny"


@pytest.fixture
def trained_job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, tmp_path: Path) -> Job:
    """A job that succeeded; its archive is what a worker publishes."""
    with transaction(sessions) as session:
        return make_trained_job(session, storage, project, tmp_path / "published")
