from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobBody
from app.api.schemas.records import EventBody
from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints, claims, jobs, leases
from app.db.jobs.leases import FencedError
from app.db.tables import Attempt, Job, Project
from app.domain.jobs.states import Desired, Reason, training_seconds
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import (
    append_step_event,
    forecast_queue,
    lease_of,
    make_failed_job,
    make_file,
    make_job,
    make_succeeded_job,
    start_job,
    validate_job,
)
from tests.sentences import Reviewed
from tests.stack import as_redis_py

JOBS = "/v1/fine_tuning/jobs"
pytestmark = pytest.mark.usefixtures("base_model")
T = 1_790_000_000
Make = Callable[..., Job]


@pytest.fixture
def make(sessions: Sessions, storage: LocalStorage, project: Project) -> Make:
    """`make()` -> a job in `validating_files`."""

    def build(**asked: Any) -> Job:
        with transaction(sessions) as session:
            return make_job(session, project, make_file(session, storage, project), **asked)

    return build


@pytest.fixture
def succeeded(sessions: Sessions, storage: LocalStorage, project: Project) -> Job:
    with transaction(sessions) as session:
        return make_succeeded_job(session, storage, project, suffix="demo")


class TestList:
    def test_a_list_has_the_objects_of_single_reads(self, client: TestClient, make: Make, sessions: Sessions) -> None:
        for _ in range(3):
            make()
        with transaction(sessions) as session:
            for _ in range(3):
                validate_job(session)
            start_job(session)
            forecast_queue(session)
        listed = client.get(JOBS).json()["data"]
        assert [job["status"] for job in listed] == ["queued", "queued", "running"]
        assert [job["queue_position"] for job in listed] == [2, 1, None]
        assert listed == [client.get(f"{JOBS}/{job['id']}").json() for job in listed]


class TestCancel:
    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_a_cancel_ends_every_open_state(
        self, client: TestClient, make: Make, sessions: Sessions, steps: int
    ) -> None:
        job = make()
        with transaction(sessions) as session:
            for advance in (validate_job, start_job)[:steps]:
                job = advance(session)
        body = client.post(f"{JOBS}/{job.id}/cancel").json()
        JobBody.model_validate(body)
        assert body["status"] == "cancelled"
        assert body["finished_at"] is not None
        assert body["error"] is None

    def test_a_cancel_fences_the_worker(self, client: TestClient, make: Make, sessions: Sessions) -> None:
        make()
        with transaction(sessions) as session:
            validate_job(session)
            job = start_job(session)
        client.post(f"{JOBS}/{job.id}/cancel")
        with pytest.raises(FencedError), transaction(sessions) as session:
            leases.renew(session, Job, lease_of(job), 60)


class TestPauseAndResume:
    def test_a_queued_job_pauses_at_once_and_queues_again(
        self, client: TestClient, make: Make, sessions: Sessions, redis_url: str
    ) -> None:
        job = make()
        with transaction(sessions) as session:
            validate_job(session)
        assert client.post(f"{JOBS}/{job.id}/pause").json()["status"] == "paused"
        with transaction(sessions) as session:
            assert claims.claim(session, "train", "w", 60) is None
        assert client.post(f"{JOBS}/{job.id}/resume").json()["status"] == "queued"
        with redis.Redis.from_url(as_redis_py(redis_url)) as broker:
            assert broker.blpop(["tunery:gpu"], timeout=10)
        with transaction(sessions) as session:
            assert start_job(session).id == job.id

    def test_a_running_job_gets_one_request_and_pauses_at_its_next_step(
        self, client: TestClient, make: Make, sessions: Sessions
    ) -> None:
        make()
        with transaction(sessions) as session:
            validate_job(session)
            job = start_job(session)
        assert client.get(f"{JOBS}/{job.id}").json()["pause_requested"] is False
        for _ in range(2):
            answer = client.post(f"{JOBS}/{job.id}/pause").json()
            assert (answer["status"], answer["pause_requested"]) == ("running", True)
        assert client.get(f"{JOBS}/{job.id}").json()["pause_requested"] is True
        with transaction(sessions) as session:
            assert leases.read_held(session, Job, lease_of(job), Job.desired).desired == Desired.PAUSE
            claims.finish_held_attempt(session, lease_of(job), Reason.PAUSED, "The job was paused")
        paused = client.get(f"{JOBS}/{job.id}").json()
        assert (paused["status"], paused["pause_requested"]) == ("paused", False)
        events = client.get(f"{JOBS}/{job.id}/events").json()["data"]
        assert len(events) == 6  # the second request made no event

    def test_a_pause_and_a_resume_need_their_states(self, client: TestClient, make: Make, succeeded: Job) -> None:
        validating = make()
        for job, verb in ((validating, "pause"), (validating, "resume"), (succeeded, "pause"), (succeeded, "resume")):
            error = error_of(client.post(f"{JOBS}/{job.id}/{verb}"))
            assert error["code"] == "invalid_job_state"
            assert job.state in error["message"]

    def test_a_paused_job_can_be_cancelled(self, client: TestClient, make: Make, sessions: Sessions) -> None:
        job = make()
        with transaction(sessions) as session:
            validate_job(session)
        client.post(f"{JOBS}/{job.id}/pause")
        assert error_of(client.post(f"{JOBS}/{job.id}/pause"))["code"] == "invalid_job_state"
        assert client.post(f"{JOBS}/{job.id}/cancel").json()["status"] == "cancelled"


class TestEvents:
    def test_events_are_paged_newest_first(
        self, client: TestClient, make: Make, sessions: Sessions, reviewed: Reviewed
    ) -> None:
        make()
        with transaction(sessions) as session:
            validate_job(session)
            job = start_job(session)
            for step in range(1, 31):
                append_step_event(session, job, step, 30)
        body = client.get(f"{JOBS}/{job.id}/events").json()
        assert len(body["data"]) == 20
        assert body["has_more"] is True
        assert body["data"][0]["data"]["step"] == 30
        assert body["data"][0]["type"] == "metrics"
        for event in body["data"]:
            EventBody.model_validate(event)
        rest = client.get(f"{JOBS}/{job.id}/events", params={"after": body["last_id"], "limit": 5000}).json()
        assert ([event["type"] for event in rest["data"]][-4:], rest["has_more"]) == (["message"] * 4, False)
        for event in rest["data"][-4:]:
            reviewed(event["message"].replace(job.id, "ID").replace(job.training_file_id, "FILE"))

    def test_an_event_of_another_job_is_no_cursor(self, client: TestClient, make: Make) -> None:
        first, second = make(), make()
        (event,) = client.get(f"{JOBS}/{first.id}/events").json()["data"]
        assert error_of(client.get(f"{JOBS}/{second.id}/events", params={"after": event["id"]}))["param"] == "after"


class TestCheckpoints:
    def test_the_promoted_checkpoint_is_first(self, client: TestClient, sessions: Sessions, succeeded: Job) -> None:
        with transaction(sessions) as session:
            rows = {row.step_number: row for row in checkpoints.kept(session, succeeded.id)}
            for step, loss in ((1, 1.0), (2, 0.5), (3, 0.5)):
                rows[step].metrics = {**rows[step].metrics, "full_valid_loss": loss}
            rows[3].name, session.get_one(Job, succeeded.id).fine_tuned_model = "ft:latest", rows[2].name
        path = f"{JOBS}/{succeeded.id}/checkpoints"
        seen: list[tuple[int, bool]] = []
        after: dict[str, str] = {}
        while True:
            body = client.get(path, params={"limit": 1, **after}).json()
            seen += [(checkpoint["step_number"], checkpoint["best"]) for checkpoint in body["data"]]
            after = {"after": body["last_id"]}
            if not body["has_more"]:
                break
        assert seen == [(2, True), (3, False), (1, False)]
        assert [(one["step_number"], one["best"]) for one in client.get(path).json()["data"]] == seen


class TestTrainingTime:
    def test_training_time_excludes_pauses(
        self, client: TestClient, make: Make, sessions: Sessions, project: Project
    ) -> None:
        job_id = make().id
        with transaction(sessions) as session:
            validate_job(session)
        for began, seconds, expected in ((T, 34, 34.0), (T + 3_600, 44, 78.0)):
            with transaction(sessions) as session:
                lease = lease_of(start_job(session))
                open_attempt = session.get_one(Attempt, (job_id, lease.attempt))
                open_attempt.started_at = datetime.fromtimestamp(began, UTC)
            running = client.get(f"{JOBS}/{job_id}").json()
            assert (running["training_seconds"], running["attempt_started_at"]) == (expected - seconds, began)
            assert training_seconds(running, now=began + 5) == expected - seconds + 5
            with transaction(sessions) as session:
                jobs.pause(session, project.id, job_id)
                claims.finish_held_attempt(session, lease, Reason.PAUSED, "The job was paused at step 1")
                ended_attempt = session.get_one(Attempt, (job_id, lease.attempt))
                ended_attempt.ended_at = datetime.fromtimestamp(began + seconds, UTC)
            body = client.get(f"{JOBS}/{job_id}").json()
            assert (body["status"], body["training_seconds"], body["attempt_started_at"]) == ("paused", expected, None)
            assert training_seconds(body, now=began + 86_400) == expected
            assert client.get(JOBS).json()["data"] == [body]
            with transaction(sessions) as session:
                jobs.resume(session, project.id, job_id)


class TestAFinishedJob:
    def test_a_failed_job_shows_its_error(
        self, client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            job = make_failed_job(session, storage, project)
        body = client.get(f"{JOBS}/{job.id}").json()
        JobBody.model_validate(body)
        assert body["error"]["code"] == "invalid_training_file"
        assert body["error"]["param"] == "training_file"
        assert "Line 3" in body["error"]["message"]
        assert body["adapter"] is None
