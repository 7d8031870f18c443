"""POST /v1/fine_tuning/jobs/{job_id}: what its owner may change of a job that was created."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobBody
from app.db.engine import Sessions, transaction
from app.db.jobs import jobs, leases
from app.db.tables import AuditEntry, Job, Project
from app.services.jobs import jobs as service
from app.storage import LocalStorage
from tests.api_objects import error_of, param_of
from tests.factories import (
    forecast_queue,
    make_failed_job,
    make_file,
    make_job,
    make_succeeded_job,
    start_job,
    validate_job,
)
from tests.sentences import Reviewed

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def waiting(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> list[Job]:
    """Two that are queued, in this order."""
    with transaction(sessions) as session:
        made = [make_job(session, project, make_file(session, storage, project), metadata={"a": "b"}) for _ in "12"]
        for _ in made:
            validate_job(session)
        forecast_queue(session)
    return made


def change(client: TestClient, job: Job, **body: Any) -> Any:
    return client.post(f"{JOBS}/{job.id}", json=body)


def messages(client: TestClient, job: Job) -> list[str]:
    """Newest first."""
    return [event["message"] for event in client.get(f"{JOBS}/{job.id}/events").json()["data"]]


class TestPriority:
    def test_a_priority_changes_the_order_of_the_queue(
        self, client: TestClient, waiting: list[Job], sessions: Sessions
    ) -> None:
        first, second = waiting
        assert client.get(f"{JOBS}/{second.id}").json()["queue_position"] == 2
        changed = change(client, second, priority=7)
        assert changed.status_code == 200, changed.text
        JobBody.model_validate(changed.json())
        assert changed.json()["priority"] == 7
        with transaction(sessions) as session:
            forecast_queue(session)
        assert [client.get(f"{JOBS}/{job.id}").json()["queue_position"] for job in (first, second)] == [2, 1]
        with transaction(sessions) as session:
            assert start_job(session).id == second.id

    def test_the_metadata_of_an_ended_job_may_change_and_its_priority_not(
        self, client: TestClient, base_model: str, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            ended = [
                make_succeeded_job(session, storage, project),
                make_failed_job(session, storage, project),
                make_job(session, project, make_file(session, storage, project)),
            ]
            assert jobs.cancel(session, project.id, ended[2].id) is not None
        for job in ended:
            before = client.get(f"{JOBS}/{job.id}").json()
            for body in ({"priority": 3, "metadata": {"x": "y"}}, {"priority": job.priority}):
                assert error_of(change(client, job, **body))["code"] == "invalid_job_state"
            assert client.get(f"{JOBS}/{job.id}").json() == before
            assert change(client, job, metadata={"verdict": "ship"}).json()["metadata"] == {"verdict": "ship"}

    def test_a_job_that_ends_meanwhile_keeps_its_priority(
        self, client: TestClient, waiting: list[Job], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get = service.get

        def get_and_cancel(session: Any, project_id: str, job_id: str) -> Job:
            found = get(session, project_id, job_id)
            with transaction(sessions) as another:
                jobs.cancel(another, project_id, job_id)
            return found

        monkeypatch.setattr(service, "get", get_and_cancel)
        assert error_of(change(client, waiting[0], priority=3))["code"] == "invalid_job_state"


def test_a_job_is_renamed_at_any_time(
    client: TestClient, base_model: str, sessions: Sessions, storage: LocalStorage, project: Project
) -> None:
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
    renamed = change(client, job, suffix="returns bot").json()
    assert (renamed["user_provided_suffix"], renamed["fine_tuned_model"]) == ("returns bot", job.fine_tuned_model)
    assert [one["id"] for one in client.get(JOBS, params={"search": "returns"}).json()["data"]] == [job.id]
    assert change(client, job, suffix=None).json()["user_provided_suffix"] is None
    assert param_of(change(client, job, suffix="x" * 65)) == "suffix"


class TestMetadata:
    def test_metadata_is_replaced(self, client: TestClient, waiting: list[Job]) -> None:
        job = waiting[0]
        assert change(client, job, metadata={"c": "d"}).json()["metadata"] == {"c": "d"}
        assert client.get(JOBS, params={"metadata[a]": "b"}).json()["data"][0]["id"] == waiting[1].id
        assert change(client, job, metadata=None).json()["metadata"] is None
        assert client.get(JOBS, params={"metadata": "null"}).json()["data"][0]["id"] == job.id


class TestAChange:
    def test_a_change_is_an_event_and_an_audit_entry(
        self, client: TestClient, waiting: list[Job], sessions: Sessions, reviewed: Reviewed
    ) -> None:
        job = waiting[0]
        change(client, job, priority=2, metadata={"c": "d"})
        change(client, job, metadata={})
        change(client, job, priority=1)
        for message in messages(client, job)[:3]:
            reviewed(message)
        with transaction(sessions) as session:
            entries = session.scalars(select(AuditEntry)).all()
        assert {(entry.action, tuple(entry.object_ids)) for entry in entries} == {
            ("fine_tuning.jobs.update", (job.id,))
        }
        assert len(entries) == 3

    @pytest.mark.parametrize("body", [{}, {"priority": 0}, {"metadata": {"a": "b"}}], ids=str)
    def test_an_equal_value_changes_nothing(self, client: TestClient, waiting: list[Job], body: dict[str, Any]) -> None:
        before, messages_before = client.get(f"{JOBS}/{waiting[0].id}"), messages(client, waiting[0])
        assert change(client, waiting[0], **body).json() == before.json()
        assert client.get(f"{JOBS}/{waiting[0].id}").headers["etag"] == before.headers["etag"]
        assert messages(client, waiting[0]) == messages_before

    def test_a_change_keeps_the_lease(self, client: TestClient, waiting: list[Job], sessions: Sessions) -> None:
        with transaction(sessions) as session:
            running = start_job(session)
        assert change(client, running, priority=3, metadata={}).json()["priority"] == 3
        with transaction(sessions) as session:
            assert leases.find_held(session, Job, running.lease_owner or "") is not None

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"priority": 101}, "priority"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"model": "tiny"}, "model"),
            ({"urgent": True}, "urgent"),
        ],
    )
    def test_an_invalid_change_is_refused(
        self, client: TestClient, waiting: list[Job], body: dict[str, Any], param: str
    ) -> None:
        before = client.get(f"{JOBS}/{waiting[0].id}").json()
        assert param_of(change(client, waiting[0], **body)) == param
        assert client.get(f"{JOBS}/{waiting[0].id}").json() == before
