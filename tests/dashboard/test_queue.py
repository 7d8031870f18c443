"""The requests of the queue's page, however many jobs wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from app.web.pages.queue import FEW, QueuePage
from tests.api_objects import NEW_JOB

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
