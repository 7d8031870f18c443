"""More clients at once than there are connections, or threads: all of them are served, each in its turn."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api.limits import MAX_CACHE_READS, FairLimiter
from app.db.access import idempotency
from app.db.access.idempotency import KeyedRequest
from app.db.engine import Sessions
from app.db.tables import Project
from app.errors import Unavailable
from app.storage import LocalStorage
from tests.deadline import until
from tests.serving import LiveServer

CLIENTS = 120  # the connections of a test's API are 10, its threads 40
JOBS = "/v1/fine_tuning/jobs"


async def send_concurrently(server: LiveServer, api_key: str, method: str, body: Any = None) -> set[int]:
    """The statuses of so many requests, each with a key of its own where that means something."""
    limits = httpx2.Limits(max_connections=CLIENTS)
    headers = {"Authorization": f"Bearer {api_key}"}
    async with httpx2.AsyncClient(
        base_url=server.root, headers=headers, limits=limits, timeout=60.0, trust_env=False
    ) as client:
        asked = (
            client.request(method, JOBS, json=body, headers={"Idempotency-Key": f"k{number}"})
            for number in range(CLIENTS)
        )
        return {answer.status_code for answer in await asyncio.gather(*asked)}


def test_concurrent_lists_all_succeed(live_server: LiveServer, api_key: str) -> None:
    assert asyncio.run(send_concurrently(live_server, api_key, "GET")) == {200}


def test_concurrent_creates_all_succeed(
    live_server: LiveServer, api_key: str, base_model: str, training_file: str
) -> None:
    body = {"model": base_model, "training_file": training_file}
    assert asyncio.run(send_concurrently(live_server, api_key, "POST", body)) == {200}


def test_waiting_duplicates_do_not_block_other_requests(
    client: TestClient,
    sessions: Sessions,
    project: Project,
    app: FastAPI,
    base_model: str,
    training_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {"model": base_model, "training_file": training_file}
    most = app.state.app_state.settings.database_pool_size
    looks, take = [], idempotency.reserve_key
    monkeypatch.setattr("app.db.access.idempotency.reserve_key", lambda *given: (looks.append(1), take(*given))[1])
    with sessions() as first, ThreadPoolExecutor(most) as pool:
        for number in range(most):  # each of them in another process
            assert take(first, KeyedRequest(project.id, f"k{number}", "POST", JOBS, "other")) is None
        headers = [{"Idempotency-Key": f"k{number}"} for number in range(most)]
        duplicates = [pool.submit(client.post, JOBS, json=body, headers=each) for each in headers]
        until(lambda: len(looks) > 3 * most, "all of them look again and again")
        assert client.get(JOBS).status_code == 200
        assert not any(duplicate.done() for duplicate in duplicates)
        first.rollback()
        assert {duplicate.result(20).status_code for duplicate in duplicates} == {200}


def test_plans_that_wait_for_storage_hold_no_connection_and_wait_for_a_bounded_time(
    client: TestClient, app: FastAPI, base_model: str, training_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens, answers, limiter = list[str](), threading.Event(), app.state.app_state.connection_limiter

    def hang(_self: LocalStorage, key: str) -> BinaryIO:
        opens.append(key)
        answers.wait(30)
        raise FileNotFoundError(key)

    monkeypatch.setattr(LocalStorage, "open", hang)
    body, count = {"model": base_model, "training_file": training_file}, limiter.free_permits
    with ThreadPoolExecutor(count) as pool:
        plans = [pool.submit(client.post, f"{JOBS}/plan", json=body) for _ in range(count)]
        try:
            until(lambda: (len(opens), limiter.free_permits) == (MAX_CACHE_READS, count), "all plans wait for storage")
            assert client.get(JOBS).status_code == 200
            assert not any(plan.done() for plan in plans)
            monkeypatch.setattr("app.api.limits.ACQUIRE_TIMEOUT_SECONDS", 0.01)
            late = client.post(f"{JOBS}/plan", json=body)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "service_unavailable")
            assert late.headers["retry-after"] == "5"
        finally:
            answers.set()
        statuses = Counter(plan.result(20).status_code for plan in plans)
        assert statuses[404] >= MAX_CACHE_READS
        assert statuses.keys() <= {404, 503}


def test_a_connection_that_is_not_free_in_time_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.limits.ACQUIRE_TIMEOUT_SECONDS", 0.01)

    async def take_two() -> None:
        limiter = FairLimiter(1, timeout_for="connections")
        async with limiter.permit("a") as first:
            second = limiter.permit("a")
            with pytest.raises(Unavailable, match="try again"):
                await second.acquire()
            second.release()
            assert limiter.free_permits == 0
            for _ in range(2):  # released once
                first.release()
        assert limiter.free_permits == 1

    asyncio.run(take_two())
