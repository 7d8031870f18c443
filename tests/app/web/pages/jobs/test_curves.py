"""The losses of listed jobs, requested once for each state of a job."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from app.web.api_client import ApiClient
from app.web.pages.jobs import jobs
from app.web.pages.jobs.jobs import Curves

JOB = {"id": "ftjob-1", "status": "running", "trained_steps": 2, "training_file": "file-1"}
CURVE = {"fine_tuning_job_id": "ftjob-1", "steps": [1, 2], "train_losses": [2.0, 1.0], "best_valid_loss": 1.5}


class Answers:
    """An API with one job, which remembers the paths of its requests."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        transport = httpx2.MockTransport(self._answer)
        self.client = ApiClient(httpx2.AsyncClient(base_url="http://api/v1/", transport=transport), "key", lambda: None)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.paths.append(request.url.path)
        is_file = "/files/" in request.url.path
        return httpx2.Response(200, json={"filename": "a.jsonl"} if is_file else {"data": self._curves(request)})

    def _curves(self, request: httpx2.Request) -> list[dict[str, Any]]:
        return [CURVE | {"fine_tuning_job_id": job_id} for job_id in request.url.params["jobs"].split(",")]


def test_a_curve_is_requested_again_only_when_its_job_has_moved_on() -> None:
    answers = Answers()
    kept = Curves(answers.client)
    asyncio.run(kept.load([JOB]))
    asyncio.run(kept.load([JOB]))
    assert sorted(answers.paths) == ["/v1/files/file-1", "/v1/fine_tuning/loss_curves"]
    assert (kept.last_train_loss(JOB), kept.of(JOB)["best_valid_loss"], kept.filename(JOB)) == ("1.000", 1.5, "a.jsonl")
    asyncio.run(kept.load([JOB | {"trained_steps": 3}]))
    assert len(answers.paths) == 3


def test_fifty_jobs_of_one_file_need_two_requests() -> None:
    answers = Answers()
    jobs = [JOB | {"id": f"ftjob-{number}"} for number in range(50)]
    kept = Curves(answers.client)
    asyncio.run(kept.load(jobs))
    assert sorted(answers.paths) == ["/v1/files/file-1", "/v1/fine_tuning/loss_curves"]
    assert {kept.last_train_loss(job) for job in jobs} == {"1.000"}


def test_a_job_without_a_step_has_no_curve_to_request() -> None:
    answers = Answers()
    asyncio.run(Curves(answers.client).load([JOB | {"status": "queued", "trained_steps": None}]))
    assert answers.paths == ["/v1/files/file-1"]


def test_curves_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers()
    monkeypatch.setattr(jobs, "MAX_KEPT", 0)
    kept = Curves(answers.client)
    asyncio.run(kept.load([JOB]))
    asyncio.run(kept.load([JOB | {"id": "ftjob-2"}]))
    assert kept.of(JOB) == jobs.NO_CURVE
