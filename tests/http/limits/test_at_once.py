"""Limits are exact: of many concurrent creates as many succeed as the limit allows, and the others are 429s."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, update
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project, Upload
from app.services import webhooks
from app.services.access import quotas
from app.services.deliveries import targets
from app.services.jobs import evaluations
from app.settings import Settings
from app.storage import LocalStorage
from tests.deadline import until
from tests.factories import make_file
from tests.serving import LiveServer

LIMIT = 10
TARGET = {"kind": "vllm", "urls": ["https://vllm.example.com"]}
Body = Callable[[int], dict[str, Any]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With as many connections as in production, and the limits of settings that a test overrides."""
    limits = dict.fromkeys(("max_queued_jobs", "max_pending_uploads", "max_event_streams"), LIMIT)
    return settings.model_copy(update=limits | {"database_pool_size": 20, "max_pending_upload_bytes": LIMIT << 20})


@pytest.fixture
def creations(
    succeeded: Job, sessions: Sessions, storage: LocalStorage, project: Project, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[str, Body]]:
    """{limit: (path, body of the create with this number)}; every limit is LIMIT."""
    monkeypatch.setattr(webhooks, "MAX_ENDPOINTS", LIMIT)
    monkeypatch.setattr(targets, "MAX_TARGETS", LIMIT)
    monkeypatch.setattr(evaluations, "MAX_UNFINISHED", LIMIT)
    with transaction(sessions) as session:
        heldout = make_file(session, storage, project, None, "evals", "heldout.jsonl", line_count=None).id
    job = {"model": succeeded.base_model, "training_file": succeeded.training_file_id}
    endpoint = {"url": "https://hooks.example.com/", "event_types": ["fine_tuning.job.succeeded"]}
    upload = {"filename": "a.jsonl", "purpose": "fine-tune", "mime_type": "application/jsonl"}
    return {
        "max_unfinished_evaluations": (
            f"fine_tuning/jobs/{succeeded.id}/evaluations",
            lambda _: {"file": heldout, "graders": []},
        ),
        "max_webhook_endpoints": ("webhook_endpoints", lambda number: endpoint | {"name": str(number)}),
        "max_delivery_targets": ("delivery_targets", lambda number: {"name": f"t{number}", "destination": TARGET}),
        "max_queued_jobs": ("fine_tuning/jobs", lambda _: job),
        "max_pending_uploads": ("uploads", lambda _: upload | {"bytes": 1}),
        "max_pending_upload_bytes": ("uploads", lambda _: upload | {"bytes": 2 << 20}),
    }


KINDS = (
    "max_unfinished_evaluations",
    "max_webhook_endpoints",
    "max_delivery_targets",
    "max_queued_jobs",
    "max_pending_uploads",
    "max_pending_upload_bytes",
)


def send_at_once(server: LiveServer, api_key: str, requests: int, path: str, body: Body) -> list[httpx2.Response]:
    barrier = threading.Barrier(requests, timeout=30)
    headers = {"Authorization": f"Bearer {api_key}"}

    def create(number: int) -> httpx2.Response:
        with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
            barrier.wait()
            return client.post(path, json=body(number))

    with ThreadPoolExecutor(requests) as pool:
        return list(pool.map(create, range(requests)))


@pytest.mark.parametrize("requests", [24, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", KINDS)
def test_creates_at_once_do_not_exceed_a_limit(
    limit: str, requests: int, creations: dict[str, tuple[str, Body]], live_server: LiveServer, api_key: str
) -> None:
    answers = send_at_once(live_server, api_key, requests, *creations[limit])
    refused = [answer for answer in answers if answer.status_code == 429]
    room = LIMIT // 2 if limit == "max_pending_upload_bytes" else LIMIT
    assert Counter(answer.status_code for answer in answers) == {200: room, 429: requests - room}
    assert {answer.json()["error"]["param"] for answer in refused} == {limit}
    assert {answer.headers["retry-after"] for answer in refused} == {"60"}


def test_creates_at_once_that_begin_far_from_a_limit_do_not_exceed_it(
    creations: dict[str, tuple[str, Body]],
    live_server: LiveServer,
    api_key: str,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quotas, "MAX_IN_FLIGHT", 20)  # as many as the connections of the server
    with transaction(sessions) as session:
        session.execute(update(Project).values(max_queued_jobs=45))
    answers = send_at_once(live_server, api_key, 60, *creations["max_queued_jobs"])
    assert Counter(answer.status_code for answer in answers) == {200: 45, 429: 15}


def test_an_upload_that_has_ended_or_expired_makes_room(
    client: TestClient, creations: dict[str, tuple[str, Body]], sessions: Sessions
) -> None:
    path, body = creations["max_pending_uploads"]
    made = [client.post(f"/v1/{path}", json=body(0)) for _ in range(LIMIT + 1)]
    assert [answer.status_code for answer in made] == [200] * LIMIT + [429]
    assert client.post(f"/v1/uploads/{made[0].json()['id']}/cancel").status_code == 200
    assert client.post(f"/v1/{path}", json=body(0)).status_code == 200
    assert client.post(f"/v1/{path}", json=body(0)).status_code == 429
    with transaction(sessions) as session:
        session.execute(update(Upload).where(Upload.id == made[1].json()["id"]).values(expires_at=func.now()))
    assert client.post(f"/v1/{path}", json=body(0)).status_code == 200


def test_a_stream_more_than_the_limit_of_a_key_is_refused_until_one_ends(
    live_server: LiveServer, api_key: str, foreign_headers: dict[str, str]
) -> None:
    def follow(client: httpx2.Client, **headers: str) -> httpx2.Response:
        return client.send(client.build_request("GET", "events/stream", headers=headers), stream=True)

    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx2.Client(base_url=live_server.url, headers=headers) as client:
        streams = [follow(client) for _ in range(LIMIT)]
        refused = follow(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
        refused.read()
        assert refused.json()["error"]["param"] == "max_event_streams"
        assert client.head("events/stream").status_code == 200
        others = follow(client, **foreign_headers)
        assert [stream.status_code for stream in (*streams, others)] == [200] * (LIMIT + 1)
        streams.pop().close()
        until(lambda: follow(client).status_code == 200, "the closed stream makes room")
