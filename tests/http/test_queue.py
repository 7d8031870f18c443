"""/v1/queue and /v1/workers, and what a create call may ask of the queue."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from app.api.schemas.queue import QueueBody, WorkerBody
from app.db.engine import Sessions, transaction
from app.db.scheduling import device_losses, workers
from app.db.tables import Job, Project
from app.domain.jobs.states import Reason
from app.domain.scheduling.worker_capacity import worker_capacity
from app.services.access import keys
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import WORKER, forecast_queue, make_file, make_job, make_project, start_job, validate_job

JOBS = "/v1/fine_tuning/jobs"
ABOUT = {"kind": "cpu", "device": "a CPU", "memory_bytes": 8 << 30, "models": ["tiny", "secret"], "labels": ["fast"]}


@pytest.fixture
def scene(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> list[Job]:
    """A job of ours runs, one waits, and one of another project waits, too."""
    with transaction(sessions) as session:
        other = make_project(session, "other")
        jobs = [make_job(session, who, make_file(session, storage, who)) for who in (project, project, other)]
        for _ in jobs:
            validate_job(session)
        workers.heartbeat(session, WORKER, "gpu", "host7", 4711, ABOUT)
        workers.heartbeat(session, "cpu0@host7#1", "cpu", "host7", 4712, {})
        running = start_job(session)
        assert running.id == jobs[0].id
        forecast_queue(session, worker_capacity(ABOUT), running_seconds=[60.0])
    return jobs


class TestQueue:
    def test_a_key_sees_its_jobs_and_counts_of_others(self, client: TestClient, scene: list[Job]) -> None:
        seen = client.get("/v1/queue").json()
        QueueBody.model_validate(seen)
        assert [job["id"] for job in seen["running"]] == [scene[0].id]
        assert [job["id"] for job in seen["waiting"]] == [scene[1].id]
        assert seen["waiting"][0]["position"] == 2
        assert seen["own"] == {"validating": 0, "waiting": 1, "running": 1}
        assert seen["others"] == {"validating": 0, "waiting": 1, "running": 0}
        assert seen["workers"] == {"alive": 1, "busy": 1}
        assert [each["project_id"] for each in seen["projects"]] == [scene[0].project_id]
        assert scene[2].id not in str(seen)

    def test_an_admin_sees_the_whole_queue(
        self, client: TestClient, scene: list[Job], admin_headers: dict[str, str]
    ) -> None:
        seen = client.get("/v1/queue", headers=admin_headers).json()
        assert [job["id"] for job in seen["waiting"]] == [scene[2].id, scene[1].id]
        assert [job["position"] for job in seen["waiting"]] == [1, 2]
        assert len(seen["projects"]) == 3
        first = client.get("/v1/queue", headers=admin_headers, params={"limit": 1}).json()
        assert (len(first["waiting"]), first["has_more"]) == (1, True)

    def test_a_waiting_job_says_when_it_may_start(self, client: TestClient, scene: list[Job]) -> None:
        job = client.get(f"{JOBS}/{scene[1].id}").json()
        assert job["queue_position"] == 2
        assert job["expected_start"] > job["created_at"] + 500
        assert job["waiting_for"] is None
        listed = client.get(JOBS).json()["data"]
        assert next(each for each in listed if each["id"] == job["id"]) == job


class TestWorkers:
    def test_workers_have_no_admin_fields(self, client: TestClient, scene: list[Job]) -> None:
        listed = client.get("/v1/workers").json()
        gpu = next(worker for worker in listed["data"] if worker["queue"] == "gpu")
        WorkerBody.model_validate(gpu)
        assert (gpu["status"], gpu["job_id"], gpu["models"], gpu["labels"]) == ("busy", scene[0].id, ["tiny"], ["fast"])
        assert "host7" not in str(listed)

    def test_the_job_of_another_project_is_not_disclosed(
        self, client: TestClient, scene: list[Job], foreign_headers: dict[str, str], admin_headers: dict[str, str]
    ) -> None:
        def gpu(headers: dict[str, str]) -> dict[str, Any]:
            listed = client.get("/v1/workers", headers=headers).json()["data"]
            return next(worker for worker in listed if worker["queue"] == "gpu")

        assert (gpu(foreign_headers)["status"], gpu(foreign_headers)["job_id"]) == ("busy", None)
        seen = gpu(admin_headers)
        assert (seen["job_id"], seen["hostname"], seen["name"]) == (scene[0].id, "host7", WORKER)

    @pytest.mark.parametrize("name", ["id", "name", "slot"])
    def test_an_admin_resumes_a_worker_that_lost_its_gpu(
        self, client: TestClient, sessions: Sessions, scene: list[Job], admin_headers: dict[str, str], name: str
    ) -> None:
        def gpu() -> dict[str, Any]:
            body = client.get("/v1/organization/status", headers=admin_headers).json()
            codes = {problem["code"] for problem in body["problems"]}
            (worker,) = (each for each in body["workers"] if each["queue"] == "gpu")
            return worker | {"slot": worker["name"].partition("#")[0], "is_problem": "workers_out_of_service" in codes}

        with transaction(sessions) as session:
            for _ in range(device_losses.MAX_IN_A_ROW):
                device_losses.count(session, WORKER, scene[0].id, Reason.DEVICE_LOST)
        seen = gpu()
        assert (seen["status"], seen["is_problem"]) == ("out_of_service", True)
        path = "/v1/organization/workers/{}/resume"
        error_of(client.post(path.format(quote(seen[name]))), 403)
        error_of(client.post(path.format("gpu7@host7"), headers=admin_headers), 404)
        for _ in range(2):  # the second time nothing changes
            resumed = client.post(path.format(quote(seen[name])), headers=admin_headers).json()
            assert (resumed["id"], resumed["status"]) == (seen["id"], "busy")
        assert (gpu()["status"], gpu()["is_problem"]) == ("busy", False)
        (entry,) = client.get("/v1/organization/audit_logs", headers=admin_headers).json()["data"]
        assert entry["type"] == "organization.workers.resume"
        assert set(entry["object_ids"]) == {seen[name], seen["slot"]}


class TestCreate:
    def body(self, training_file: str, **more: Any) -> dict[str, Any]:
        return {"model": "tiny", "training_file": training_file} | more

    def test_returns_the_requested_queue_options(self, client: TestClient, base_model: str, training_file: str) -> None:
        asked = self.body(training_file, priority=-3, worker_labels=["b=1", "a", "a"])
        job = client.post(JOBS, json=asked).json()
        assert (job["priority"], job["urgent"], job["worker_labels"]) == (-3, False, ["a", "b=1"])
        assert (job["queue_position"], job["expected_start"], job["waiting_for"]) == (None, None, None)

    def test_an_urgent_job_needs_a_project_that_may_or_an_admin(
        self, client: TestClient, base_model: str, training_file: str, sessions: Sessions, project: Project
    ) -> None:
        asked = self.body(training_file, urgent=True)
        assert error_of(client.post(JOBS, json=asked), 403)["code"] == "permission_denied"
        with transaction(sessions) as session:
            secret = keys.issue(session, project, "admin", keys.ADMIN_SCOPES).secret
        assert client.post(JOBS, json=asked, headers={"Authorization": f"Bearer {secret}"}).json()["urgent"]
        with transaction(sessions) as session:
            session.get_one(Project, project.id).may_be_urgent = True
        assert client.post(JOBS, json=asked).json()["urgent"]
