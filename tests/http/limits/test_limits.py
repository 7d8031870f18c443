from __future__ import annotations

import threading
from typing import Any

import openai
import pytest
from sqlalchemy import func, select, text, update
from starlette.testclient import TestClient

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.tables import Attempt, File, Job, Project
from app.domain.jobs.states import JobState
from app.storage import LocalStorage
from tests.factories import append_step_event, chat_lines, validate_job
from tests.http.conftest import Upload
from tests.serving import LiveServer

JOBS = "/v1/fine_tuning/jobs"


def limit(sessions: Sessions, **limits: int) -> None:
    with transaction(sessions) as session:
        session.execute(update(Project).values(**limits))


def refused(answer: Any, param: str | None, code: str = "insufficient_quota") -> dict[str, Any]:
    assert answer.status_code == 429, answer.text
    error = dict(answer.json()["error"])
    assert (error["code"], error["param"]) == (code, param)
    assert 0 < int(answer.headers["retry-after"]) <= 60
    return error


class TestRequestsPerSecond:
    @pytest.mark.parametrize("path", ["/v1/files", f"{JOBS}/ftjob-none"])
    def test_above_the_limit_are_429_until_the_time_in_retry_after(
        self, client: TestClient, sessions: Sessions, path: str
    ) -> None:
        limit(sessions, max_requests_per_second=1)
        first, second = client.get(path), client.get(path)
        assert first.status_code in (200, 404)
        refused(second, None, "rate_limit_exceeded")
        assert second.json()["error"]["type"] == "requests"
        assert 0 < int(second.headers["retry-after-ms"]) <= 1000
        assert "x-should-retry" not in second.headers

    def test_every_response_has_the_rate_limit_in_its_headers(self, client: TestClient, sessions: Sessions) -> None:
        limit(sessions, max_requests_per_second=1000)
        for path in ("/v1/files", f"{JOBS}/ftjob-none", "/v1/files?limit=no"):
            answer = client.get(path)
            assert answer.headers["x-ratelimit-limit-requests"] == "1000"
            assert 900 <= int(answer.headers["x-ratelimit-remaining-requests"]) < 1000
            assert answer.headers["x-ratelimit-reset-requests"].endswith("ms")
            assert len(answer.headers.get_list("x-ratelimit-limit-requests")) == 1

    def test_projects_have_rate_limits_of_their_own(
        self, client: TestClient, sessions: Sessions, foreign_headers: dict[str, str]
    ) -> None:
        limit(sessions, max_requests_per_second=1)
        assert [client.get("/v1/files").status_code for _ in range(2)] == [200, 429]
        assert client.get("/v1/files", headers=foreign_headers).status_code == 200


class TestStoredBytes:
    def test_above_the_limit_are_refused_and_nothing_is_kept(
        self, upload: Upload, client: TestClient, sessions: Sessions, storage: LocalStorage
    ) -> None:
        content = chat_lines()
        limit(sessions, max_stored_bytes=2 * len(content))
        assert [upload(content).status_code for _ in range(2)] == [200, 200]
        answer = upload(b"x", purpose="batch")
        assert f"{2 * len(content):,}" in refused(answer, "max_stored_bytes")["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert len(client.get("/v1/files").json()["data"]) == 2
        assert len([path for path in storage.staging.parent.rglob("file-*") if path.is_file()]) == 2

    def test_count_until_the_bytes_are_deleted(self, upload: Upload, client: TestClient, sessions: Sessions) -> None:
        limit(sessions, max_stored_bytes=5)
        file_id = upload(b"12345", purpose="batch").json()["id"]
        client.delete(f"/v1/files/{file_id}")
        refused(upload(b"1", purpose="batch"), "max_stored_bytes")
        with transaction(sessions) as session:
            files.mark_purged(session, session.get_one(File, file_id))
        assert upload(b"12345", purpose="batch").status_code == 200

    def test_two_at_once_do_not_both_take_the_last_place(
        self, live_server: LiveServer, sessions: Sessions, api_key: str
    ) -> None:
        limit(sessions, max_stored_bytes=50)
        client = openai.OpenAI(api_key=api_key, base_url=live_server.url)
        results: list[str] = []

        def send() -> None:
            try:
                results.append(client.files.create(file=b"0123456789", purpose="batch").status)
            except openai.RateLimitError as error:
                results.append(str(error.code))

        threads = [threading.Thread(target=send) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["insufficient_quota"] * 5 + ["processed"] * 5


class TestQueuedJobs:
    def test_do_not_count_one_that_runs_and_count_it_again_when_it_resumes(
        self, client: TestClient, sessions: Sessions, training_file: str, base_model: str
    ) -> None:
        limit(sessions, max_queued_jobs=1)
        body = {"model": base_model, "training_file": training_file}
        first = client.post(JOBS, json=body).json()["id"]
        with transaction(sessions) as session:
            validate_job(session)
        assert client.post(f"{JOBS}/{first}/pause").json()["status"] == "paused"
        assert client.post(JOBS, json=body).status_code == 200
        refused(client.post(f"{JOBS}/{first}/resume"), "max_queued_jobs")
        assert client.get(f"{JOBS}/{first}").json()["status"] == "paused"

    def test_a_wrong_state_is_reported_before_a_full_queue(
        self, client: TestClient, sessions: Sessions, training_file: str, base_model: str
    ) -> None:
        job_id = client.post(JOBS, json={"model": base_model, "training_file": training_file}).json()["id"]
        limit(sessions, max_queued_jobs=0)
        assert client.post(f"{JOBS}/{job_id}/resume").status_code == 400

    def test_a_limit_of_nothing_refuses_the_first(
        self, client: TestClient, sessions: Sessions, training_file: str, base_model: str
    ) -> None:
        limit(sessions, max_queued_jobs=0)
        refused(client.post(JOBS, json={"model": base_model, "training_file": training_file}), "max_queued_jobs")


def usage(client: TestClient) -> tuple[float, float]:
    used = client.get("/v1/project").json()["usage"]
    return used["gpu_seconds_this_month"], used["held_gpu_seconds"]


class TestGpuSeconds:
    def test_gpu_seconds_are_attempts_times_their_gpus_within_the_month(
        self, client: TestClient, sessions: Sessions, running: Job, project: Project
    ) -> None:
        month = func.date_trunc("month", func.clock_timestamp(), "UTC")
        with transaction(sessions) as session:
            session.execute(
                update(Attempt).where(Attempt.kind == "train").values(
                    gpus=2, started_at=month - text("interval '100 s'"), ended_at=month + text("interval '30 s'")
                )
            )  # fmt: skip
        assert usage(client) == (60, 0)

    def test_gpu_seconds_exclude_earlier_months_and_validation(
        self, client: TestClient, sessions: Sessions, running: Job
    ) -> None:
        month = func.date_trunc("month", func.clock_timestamp(), "UTC")
        with transaction(sessions) as session:
            session.execute(
                update(Attempt).where(Attempt.kind == "train").values(
                    started_at=month - text("interval '100 s'"), ended_at=month - text("interval '1 s'")
                )
            )  # fmt: skip
            session.execute(
                update(Attempt).where(Attempt.kind == "validate").values(ended_at=month + text("interval '9 s'"))
            )
        assert usage(client) == (0, 0)

    def test_hold_what_a_running_job_says_it_will_still_take(
        self, client: TestClient, sessions: Sessions, running: Job
    ) -> None:
        with transaction(sessions) as session:
            session.execute(update(Attempt).values(gpus=3))
            append_step_event(session, session.get_one(Job, running.id), 1, 101)
        used, held = usage(client)
        assert 0 < used < 60
        assert held == 300

    def test_above_the_limit_a_job_is_refused_while_another_holds_the_rest(
        self, client: TestClient, sessions: Sessions, running: Job, training_file: str, base_model: str
    ) -> None:
        limit(sessions, max_gpu_seconds_per_month=90)
        body = {"model": base_model, "training_file": training_file}
        assert client.post(JOBS, json=body).status_code == 200
        with transaction(sessions) as session:
            append_step_event(session, session.get_one(Job, running.id), 1, 101)
        refused(client.post(JOBS, json=body), "max_gpu_seconds_per_month")
        with transaction(sessions) as session:
            append_step_event(session, session.get_one(Job, running.id), 99, 101)
        assert client.post(JOBS, json=body).status_code == 200

    def test_a_job_that_runs_is_not_stopped_by_them(self, client: TestClient, sessions: Sessions, running: Job) -> None:
        limit(sessions, max_gpu_seconds_per_month=0)
        with transaction(sessions) as session:
            assert session.scalar(select(Job.state).where(Job.id == running.id)) == JobState.RUNNING
