"""Deliveries of a job over HTTP: by request, by `deliver_to`, by a project's default; listed, withdrawn."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.operations import status
from app.db.tables import Delivery, Job
from app.settings import Settings
from tests.api_objects import param_of

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"delivery_directories": (str(tmp_path),)})


@pytest.fixture
def job(succeeded: Job) -> Job:
    return succeeded


def make_target(client: TestClient, tmp_path: Path, name: str = "production", **fields: Any) -> None:
    body = {"name": name, "destination": {"kind": "directory", "path": str(tmp_path)}} | fields
    assert client.post("/v1/delivery_targets", json=body).status_code == 200


class TestRequest:
    def test_the_result_is_delivered_and_the_job_shows_it(self, client: TestClient, job: Job, tmp_path: Path) -> None:
        make_target(client, tmp_path)
        before = client.get(f"{JOBS}/{job.id}")
        delivery = client.post(f"{JOBS}/{job.id}/deliveries", json={"target": "production"}).json()
        assert (delivery["status"], delivery["model"]) == ("pending", job.fine_tuned_model)
        after = client.get(f"{JOBS}/{job.id}", headers={"If-None-Match": before.headers["etag"]})
        shown = {key: delivery[key] for key in ("id", "target", "status", "model", "served_model", "check", "error")}
        assert after.json()["deliveries"] == [shown]
        assert client.get(JOBS).json()["data"][0]["deliveries"] == [shown]
        assert client.get(f"{JOBS}/{job.id}/deliveries").json()["data"] == [delivery]
        assert client.get(f"{JOBS}/{job.id}/deliveries/{delivery['id']}").json() == delivery

    def test_a_checkpoint_is_delivered_by_its_id_and_by_its_model(
        self, client: TestClient, job: Job, tmp_path: Path
    ) -> None:
        make_target(client, tmp_path)
        checkpoint = client.get(f"{JOBS}/{job.id}/checkpoints").json()["data"][-1]
        by_id = {"target": "production", "checkpoint": checkpoint["id"]}
        by_model = {"target": "production", "checkpoint": checkpoint["fine_tuned_model_checkpoint"]}
        first, second = (client.post(f"{JOBS}/{job.id}/deliveries", json=body).json() for body in (by_id, by_model))
        assert first["model"] == second["model"] == checkpoint["fine_tuned_model_checkpoint"]
        assert first["id"] == second["id"]  # the same adapter and target: it is delivered again

    def deliver(self, client: TestClient, sessions: Sessions, job: Job, **columns: Any) -> None:
        """Request a delivery, and let a sender have carried it out."""
        assert client.post(f"{JOBS}/{job.id}/deliveries", json={"target": "production"}).status_code == 200
        with transaction(sessions) as session:
            session.execute(update(Delivery).values(attempt=1, next_attempt_at=None, state="delivered", **columns))

    def test_an_adapter_at_a_target_gets_no_second_name_there(
        self, client: TestClient, sessions: Sessions, job: Job, tmp_path: Path
    ) -> None:
        make_target(client, tmp_path)
        self.deliver(client, sessions, job, location={"path": "x"})
        client.post("/v1/delivery_targets/production", json={"served_model": "bot"})
        assert param_of(client.post(f"{JOBS}/{job.id}/deliveries", json={"target": "production"})) == "target"
        with transaction(sessions) as session:
            session.execute(update(Delivery).values(location=None))  # a failed attempt has brought nothing
        again = client.post(f"{JOBS}/{job.id}/deliveries", json={"target": "production"})
        assert again.json()["served_model"] == "bot"

    @pytest.mark.parametrize(
        "columns",
        [{"location": {"path": "x"}}, {"lease_owner": "sender", "lease_expires_at": datetime.now(UTC)}],
        ids=["located", "claimed"],
    )
    def test_a_target_with_adapters_stays_where_it_is(
        self, client: TestClient, sessions: Sessions, job: Job, tmp_path: Path, columns: dict[str, Any]
    ) -> None:
        make_target(client, tmp_path)
        self.deliver(client, sessions, job, **columns)
        target = "/v1/delivery_targets/production"
        there, elsewhere = (
            {"destination": {"kind": "directory", "path": str(path)}} for path in (tmp_path, tmp_path / "other")
        )
        assert client.post(target, json=there).status_code == 200
        assert param_of(client.post(target, json=elsewhere)) == "destination"
        with transaction(sessions) as session:
            session.execute(update(Delivery).values(state="withdrawn", lease_owner=None, lease_expires_at=None))
        assert client.post(target, json=elsewhere).status_code == 200

    def test_a_target_with_adapters_gets_further_servers(
        self, client: TestClient, sessions: Sessions, job: Job, tmp_path: Path
    ) -> None:
        engine = {"kind": "vllm", "urls": ["https://one.example.com"]}
        make_target(client, tmp_path, destination=engine)
        self.deliver(client, sessions, job, location={"paths": {}})
        more = {"destination": engine | {"urls": ["https://one.example.com", "https://two.example.com"]}}
        assert client.post("/v1/delivery_targets/production", json=more).status_code == 200

    def test_a_copy_refuses_what_would_wait_for_ever(
        self, client: TestClient, sessions: Sessions, job: Job, tmp_path: Path
    ) -> None:
        make_target(client, tmp_path)
        with transaction(sessions) as session:
            status.report(session, status.COPY)
        refused = client.post(f"{JOBS}/{job.id}/deliveries", json={"target": "production"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")

    def test_an_unknown_target_and_checkpoint_are_named(self, client: TestClient, job: Job, tmp_path: Path) -> None:
        path = f"{JOBS}/{job.id}/deliveries"
        assert param_of(client.post(path, json={"target": "x"})) == "target"
        make_target(client, tmp_path)
        assert param_of(client.post(path, json={"target": "x"})) == "target"
        assert param_of(client.post(path, json={"target": "production", "checkpoint": "x"})) == "checkpoint"

    def test_a_deleted_model_is_not_delivered(self, client: TestClient, job: Job, tmp_path: Path) -> None:
        make_target(client, tmp_path)
        assert client.delete(f"/v1/models/{job.fine_tuned_model}").status_code == 200
        response = client.post(f"{JOBS}/{job.id}/deliveries", json={"target": "production"})
        assert response.status_code == 400

    @pytest.mark.parametrize(("is_delivered", "status"), [(False, "withdrawn"), (True, "withdrawing")])
    def test_only_what_was_attempted_is_withdrawn_by_a_sender(
        self, client: TestClient, job: Job, tmp_path: Path, sessions: Sessions, is_delivered: bool, status: str
    ) -> None:
        make_target(client, tmp_path)
        delivery = client.post(f"{JOBS}/{job.id}/deliveries", json={"target": "production"}).json()
        if is_delivered:
            self.deliver(client, sessions, job)
        path = f"{JOBS}/{job.id}/deliveries/{delivery['id']}"
        assert [client.delete(path).json()["status"] for _ in range(2)] == [status, status]


class TestDeliverTo:
    def create(self, client: TestClient, job: Job, **fields: Any) -> Any:
        return client.post(JOBS, json={"model": job.base_model, "training_file": job.training_file_id} | fields)

    def test_a_job_names_its_targets(self, client: TestClient, job: Job, tmp_path: Path) -> None:
        make_target(client, tmp_path)
        created = self.create(client, job, deliver_to=["production"]).json()
        assert (created["deliver_to"], created["deliveries"]) == (["production"], [])
        assert client.post(f"{JOBS}/{created['id']}/clone", json={}).json()["deliver_to"] == ["production"]

    def test_otherwise_it_gets_those_that_are_a_default(self, client: TestClient, job: Job, tmp_path: Path) -> None:
        make_target(client, tmp_path)
        make_target(client, tmp_path, "standard", default=True)
        assert self.create(client, job).json()["deliver_to"] == ["standard"]
        assert self.create(client, job, deliver_to=[]).json()["deliver_to"] == []

    def test_an_unknown_target_is_refused_with_all_other_problems(self, client: TestClient, job: Job) -> None:
        text = self.create(client, job, deliver_to=["x"], lora={"r": 0}).json()["error"]["message"]
        assert all(param in text for param in ("deliver_to", "lora.r"))
