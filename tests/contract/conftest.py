"""The official client over a real socket, as it is and in the mode that validates every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.factories import chat_lines, finish_job, start_job, validate_job
from tests.serving import LiveServer

Connect = Callable[..., openai.OpenAI]


@pytest.fixture
def connect(live_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """`connect(api_key=...)` -> a client, closed at the end of the test."""
    monkeypatch.setenv("NO_PROXY", "*")
    with ExitStack() as clients:
        yield lambda **options: clients.enter_context(openai.OpenAI(base_url=live_server.url, **options))


@pytest.fixture(params=[False, True], ids=["lenient", "strict"])
def official(connect: Connect, api_key: str, request: pytest.FixtureRequest) -> openai.OpenAI:
    return connect(api_key=api_key, _strict_response_validation=request.param)


@pytest.fixture
def work(sessions: Sessions, storage: LocalStorage, project: Project) -> Callable[[], Job]:
    """Take the oldest job through validation and training, as a worker would."""

    def train() -> Job:
        with transaction(sessions) as session:
            validate_job(session)
            return finish_job(session, storage, project, start_job(session))

    return train


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(chat_lines())
    return path
