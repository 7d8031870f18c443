"""The `tunery` command as a user types it, against the real API behind a real socket."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.client import database
from app.cli.main import app as command_line
from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.services.access import keys
from app.storage import LocalStorage
from tests.commands.trained import make_trained_job
from tests.factories import chat_lines, find_key, make_base_model, make_file, make_job
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


# Built once: they take 80 ms of processor time in each command.
command_tree = cache(get_command)
tls_context = cache(ssl.create_default_context)


@pytest.fixture(autouse=True)
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.testing._get_command", command_tree)
    monkeypatch.setattr("httpx2._transports.default.create_ssl_context", lambda **_: tls_context())


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own Tunery, if it has one."""
    for name in ("BASE_URL", "API_KEY", "ADMIN_KEY_FILE", "SECRET_KEYS", "DEBUG", "PROFILE"):
        monkeypatch.delenv(f"TUNERY_{name}", raising=False)
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path / "no-data-dir"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setattr("app.cli.commands.jobs.progress.POLL_SECONDS", 0.02)
    monkeypatch.setattr("app.cli.client.transfers.ATTEMPT_PAUSE_SECONDS", 0.0)


@pytest.fixture
def bare_tunery() -> Tunery:
    """The command with nothing in the environment but what a test gives."""

    def run(*arguments: object, env: Mapping[str, str] | None = None, **more: Any) -> Result:
        done = CliRunner().invoke(command_line, [str(one) for one in arguments], env=env, **more)
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def tunery(
    bare_tunery: Tunery, live_server: LiveServer, api_key: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tunery]:
    """The command with the address and a key of the project `default`."""
    monkeypatch.setenv("TUNERY_BASE_URL", live_server.root)
    monkeypatch.setenv("TUNERY_API_KEY", api_key)
    with kept_engines(database):
        yield bare_tunery


@pytest.fixture
def operator(tunery: Tunery, sessions: Sessions, api_key: str) -> Tunery:
    """The command with an admin key."""
    with transaction(sessions) as session:
        key = find_key(session, api_key)
        assert key is not None
        key.scopes = list(keys.ADMIN_SCOPES)
    return tunery


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
def waiting_job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    """A job that no worker has begun."""
    with transaction(sessions) as session:
        return make_job(session, project, make_file(session, storage, project))


@pytest.fixture
def trained_job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, tmp_path: Path) -> Job:
    """A job that succeeded; its archive is what a worker publishes."""
    with transaction(sessions) as session:
        return make_trained_job(session, storage, project, tmp_path / "published")
