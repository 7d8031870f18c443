"""Duplicate protection with the official client's own retry: an answer is lost, the job is there once."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from sqlalchemy import func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.db.engine import Sessions, transaction
from app.db.tables import File, Job
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import chat_lines
from tests.serving import serve

pytestmark = pytest.mark.usefixtures("base_model")
OURS = {"Idempotency-Key": "order-7"}


class LosesAnswers:
    """The request is done, and a proxy in between answers 503 in its place: for the first so many POSTs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.left_to_lose = 0
        self.seen: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self.seen.append(dict(scope["headers"]))
        if not self.left_to_lose:
            await self.app(scope, receive, send)
            return
        self.left_to_lose -= 1
        await self.app(scope, receive, _nowhere)
        await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after-ms", b"1")]})
        await send({"type": "http.response.body", "body": b"upstream went away"})


async def _nowhere(_message: Message) -> None: ...


@pytest.fixture
def proxy(settings: Settings, storage: LocalStorage) -> LosesAnswers:
    return LosesAnswers(create_app(settings, storage=storage))


@pytest.fixture
def client(proxy: LosesAnswers, api_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    monkeypatch.setenv("NO_PROXY", "*")
    app: Any = proxy
    with serve(app) as server, openai.OpenAI(base_url=server.url, api_key=api_key) as client:
        yield client


def count(sessions: Sessions, table: Any) -> int:
    with transaction(sessions) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_create_whose_answer_was_lost_makes_one_job(
    client: openai.OpenAI, proxy: LosesAnswers, sessions: Sessions
) -> None:
    file = client.files.create(file=chat_lines(), purpose="fine-tune")
    proxy.left_to_lose = 2
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_headers=OURS)
    assert [headers[b"x-stainless-retry-count"] for headers in proxy.seen[1:]] == [b"0", b"1", b"2"]
    assert count(sessions, Job) == 1
    assert client.fine_tuning.jobs.retrieve(job.id).id == job.id


def test_the_client_draws_a_new_boundary_and_the_file_is_there_once(
    client: openai.OpenAI, proxy: LosesAnswers, sessions: Sessions
) -> None:
    proxy.left_to_lose = 1
    file = client.files.create(file=io.BytesIO(chat_lines()), purpose="fine-tune", extra_headers=OURS)
    boundaries = {headers[b"content-type"] for headers in proxy.seen}
    assert (len(proxy.seen), len(boundaries)) == (2, 2)
    assert count(sessions, File) == 1
    assert client.files.retrieve(file.id).id == file.id


def test_the_client_sends_no_key_of_its_own_so_a_retry_without_one_makes_two(
    client: openai.OpenAI, proxy: LosesAnswers, sessions: Sessions
) -> None:
    """Why docs/idempotency.md tells to give one."""
    file = client.files.create(file=chat_lines(), purpose="fine-tune")
    proxy.left_to_lose = 1
    client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    assert all(b"idempotency-key" not in headers for headers in proxy.seen)
    assert count(sessions, Job) == 2


def test_another_body_under_the_same_key_is_the_bad_request_that_scripts_catch(client: openai.OpenAI) -> None:
    file = client.files.create(file=chat_lines(), purpose="fine-tune")
    client.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_headers=OURS)
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=2, extra_headers=OURS)
    assert caught.value.code == "idempotency_key_reused"
