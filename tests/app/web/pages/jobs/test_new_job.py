"""What the form of a new job takes from another job."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from app.web.api_client import ApiClient
from app.web.pages.jobs.new_job import with_evaluation

EVALUATION = {"file": "file-1", "graders": []}
JOBS: dict[str, dict[str, Any]] = {
    "first": {"cloned_from": None, "request": {"evaluation": EVALUATION, "seed": 7}},
    "second": {"cloned_from": "first", "request": {"seed": 8}},
    "third": {"cloned_from": "second", "request": {}},
    "without": {"cloned_from": "second", "request": {"evaluation": None}},
    "old": {"cloned_from": None, "request": None},
}


class Jobs:
    async def get(self, path: str) -> dict[str, Any]:
        return JOBS[path.removeprefix("fine_tuning/jobs/")]


def request_of(name: str) -> Any:
    return asyncio.run(with_evaluation(cast(ApiClient, Jobs()), JOBS[name]))["request"]


def test_the_evaluation_of_a_clone_is_that_of_the_job_that_requested_it() -> None:
    assert request_of("third") == {"evaluation": EVALUATION}
    assert request_of("second") == {"evaluation": EVALUATION, "seed": 8}
    assert request_of("first") == JOBS["first"]["request"]


def test_a_clone_without_an_evaluation_has_none() -> None:
    assert request_of("without") == {"evaluation": None}
    assert request_of("old") == {}
