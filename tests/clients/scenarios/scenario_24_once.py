"""24: a create that is sent twice with one key makes one job."""

from __future__ import annotations

import uuid
from typing import Any

import openai
import pytest
from gateway import gateway
from material import chats, lines
from world import MODEL, ROOT_URL, connect, need_word


@pytest.fixture(autouse=True)
def _keys_are_known() -> None:
    need_word("Idempotency-Key")


@pytest.fixture
def key() -> dict[str, str]:
    return {"Idempotency-Key": f"scenario-{uuid.uuid4()}"}


def create(client: openai.OpenAI, training_file: str, key: dict[str, str], **more: Any) -> Any:
    return client.fine_tuning.jobs.create(model=MODEL, training_file=training_file, extra_headers=key, **more)


def test_two_creates_with_one_key_are_one_job(client: openai.OpenAI, training_file: str, key: dict[str, str]) -> None:
    first, second = (create(client, training_file, key, suffix="once") for _ in range(2))
    client.fine_tuning.jobs.cancel(first.id)
    assert first.id == second.id
    assert sum(job.id == first.id for job in client.fine_tuning.jobs.list(limit=100)) == 1


def test_a_lost_answer_and_the_clients_own_retry_are_one_job(training_file: str, key: dict[str, str]) -> None:
    """The service has created the job, the gateway answers 503, the client asks again."""
    loses = lambda request, number: request == "POST /v1/fine_tuning/jobs" and number == 1  # noqa: E731
    with gateway(ROOT_URL, loses=loses) as front, connect(base_url=f"{front.url}/v1") as client:
        before = {job.id for job in client.fine_tuning.jobs.list(limit=100)}
        job = create(client, training_file, key)
        client.fine_tuning.jobs.cancel(job.id)
        assert front.seen.count("POST /v1/fine_tuning/jobs") == 2
        assert {seen.id for seen in client.fine_tuning.jobs.list(limit=100)} - before == {job.id}


def test_a_file_that_is_sent_again_is_one_file(client: openai.OpenAI, key: dict[str, str]) -> None:
    """The client draws another multipart boundary for each request, so the bodies differ though the files do not."""
    content = lines(chats(10, start=200))
    first, second = (
        client.files.create(file=("once.jsonl", content), purpose="fine-tune", extra_headers=key) for _ in range(2)
    )
    assert first.id == second.id
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("once.jsonl", lines(chats(11))), purpose="fine-tune", extra_headers=key)
