"""The requests of pages, however many objects they show."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx2

from app.web.pages.admin import projects_of
from app.web.pages.queue import FEW, QueuePage
from tests.api_objects import NEW_JOB
from tests.dashboard.stub_api import stub_client

OLDEST = [f"ftjob-{number}" for number in range(50, 100)]


class Api:
    """An API whose oldest unfinished jobs are the last ones of the queue."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    async def get(self, path: str) -> Any:
        self.requests.append(path)
        return NEW_JOB | {"id": path.rpartition("/")[2]}

    async def items(self, path: str, limit: int, **_: Any) -> Any:
        self.requests.append(path)
        return [NEW_JOB | {"id": job_id} for job_id in OLDEST[:limit]]


def test_the_names_of_a_hundred_waiting_jobs_take_few_requests() -> None:
    api, page = Api(), QueuePage.__new__(QueuePage)
    page.api, page._names = cast(Any, api), {}
    page.session = cast(Any, SimpleNamespace(project={"id": "own"}))
    page._project_ids = {f"ftjob-{number}": "own" for number in range(100)} | {"ftjob-other": "another"}
    asyncio.run(page._load_names())
    assert len(api.requests) == FEW + 1
    assert page._names.keys() == {f"ftjob-{number}" for number in range(FEW)} | set(OLDEST)
    asyncio.run(page._load_names())
    assert len(page._names) == len(OLDEST) + 2 * FEW


def test_the_usage_of_all_projects_takes_one_request() -> None:
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        found = [{"id": f"proj_{number}", "usage": {"stored_bytes": number}} for number in range(3)]
        return httpx2.Response(200, json={"data": found})

    listed = asyncio.run(projects_of(stub_client(answer)))
    assert [one["id"] for one in listed] == ["proj_2", "proj_1", "proj_0"]
    (request,) = requests
    assert request.url.params["include_usage"] == request.url.params["include_archived"] == "true"
