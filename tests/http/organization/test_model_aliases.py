"""Aliases of base models, from the admin's request to the job that names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobBody
from app.db.engine import Sessions, transaction
from app.db.tables import Job
from app.services import base_models
from tests.factories import make_base_model
from tests.sentences import Reviewed

ALIASES = "/v1/organization/model_aliases"
NAME = "gpt-4o-mini-2024-07-18"

pytestmark = pytest.mark.usefixtures("base_model")


@pytest.fixture
def alias(admin: TestClient) -> str:
    answer = admin.post(ALIASES, json={"name": NAME, "model": "tiny"})
    assert answer.status_code == 200, answer.text
    return NAME


class TestAdministration:
    def test_an_alias_is_set_listed_replaced_and_removed(
        self, admin: TestClient, sessions: Sessions, tmp_path: Path
    ) -> None:
        made = admin.post(ALIASES, json={"name": NAME, "model": "tiny"}).json()
        assert (made["id"], made["object"], made["model"], made["registered"]) == (
            NAME, "organization.model_alias", "tiny", True,
        )  # fmt: skip
        assert admin.get(ALIASES).json() == {"object": "list", "data": [made]}
        with transaction(sessions) as session:
            make_base_model(session, tmp_path / "second", name="second")
        assert admin.post(ALIASES, json={"name": NAME, "model": "second"}).json()["model"] == "second"
        assert len(admin.get(ALIASES).json()["data"]) == 1
        assert admin.delete(f"{ALIASES}/{NAME}").json() == {
            "id": NAME, "object": "organization.model_alias", "deleted": True,
        }  # fmt: skip
        assert admin.get(ALIASES).json()["data"] == []

    def test_all_problems_are_named_at_once(self, admin: TestClient) -> None:
        for name in ("ft:x", "tiny"):  # no model name, and one of a base model
            error = admin.post(ALIASES, json={"name": name, "model": "none"}).json()["error"]
            assert (error["param"], "model:" in error["message"]) == ("name", True)

    def test_an_unknown_alias_is_not_found(self, admin: TestClient, alias: str) -> None:
        answer = admin.delete(f"{ALIASES}/gpt-4o")
        assert (answer.status_code, alias in answer.json()["error"]["message"]) == (404, True)


class TestModels:
    def test_models_list_an_alias_with_its_base(self, client: TestClient, alias: str) -> None:
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert (listed[alias]["alias_of"], listed[alias]["fine_tunable"]) == ("tiny", True)
        assert "alias_of" not in listed["tiny"]
        assert client.get(f"/v1/models/{alias}").json() == listed[alias]

    def test_an_alias_is_not_deleted_as_a_trained_model(self, client: TestClient, alias: str) -> None:
        assert client.delete(f"/v1/models/{alias}").status_code == 403


class TestJobs:
    @pytest.fixture
    def create(self, client: TestClient, training_file: str) -> Any:
        return lambda **body: client.post("/v1/fine_tuning/jobs", json={"training_file": training_file} | body)

    def test_a_job_trains_the_base_and_shows_the_alias(
        self, create: Any, client: TestClient, alias: str, sessions: Sessions
    ) -> None:
        job = create(model=alias).json()
        JobBody.model_validate(job)
        assert (job["model"], job["model_alias"]) == ("tiny", alias)
        assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["model_alias"] == alias
        with transaction(sessions) as session:
            row = session.get_one(Job, job["id"])
            assert (row.base_model, row.spec["model_alias"]) == ("tiny", alias)

    def test_without_an_alias_stores_nothing_that_an_earlier_worker_refuses(
        self, create: Any, alias: str, sessions: Sessions
    ) -> None:
        job = create(model="tiny").json()
        assert job["model_alias"] is None
        with transaction(sessions) as session:
            assert "model_alias" not in session.get_one(Job, job["id"]).spec

    def test_a_clone_trains_the_same_base_model_after_the_alias_was_changed(
        self, create: Any, client: TestClient, alias: str, sessions: Sessions, tmp_path: Path
    ) -> None:
        job = create(model=alias).json()
        with transaction(sessions) as session:
            make_base_model(session, tmp_path / "second", name="second")
            base_models.set_alias(session, alias, "second")
        clone = client.post(f"/v1/fine_tuning/jobs/{job['id']}/clone", json={}).json()
        assert (clone["model"], clone["model_alias"]) == ("tiny", None)

    def test_a_plan_shows_both_names(self, client: TestClient, training_file: str, alias: str) -> None:
        plan = client.post("/v1/fine_tuning/jobs/plan", json={"model": alias, "training_file": training_file}).json()
        assert (plan["model"], plan["model_alias"]) == ("tiny", alias)

    def test_a_report_on_a_file_accepts_it(self, client: TestClient, training_file: str, alias: str) -> None:
        answer = client.post(f"/v1/files/{training_file}/validate?model={alias}")
        assert answer.status_code == 200, answer.text

    def test_an_unknown_model_is_an_error_that_lists_the_aliases(
        self, create: Any, alias: str, reviewed: Reviewed
    ) -> None:
        answer = create(model="gpt-4o")
        assert answer.status_code == 404
        reviewed(answer.json()["error"]["message"])

    def test_the_alias_of_a_removed_model_says_what_to_do(
        self, create: Any, admin: TestClient, alias: str, sessions: Sessions, reviewed: Reviewed
    ) -> None:
        with transaction(sessions) as session:
            base_models.remove(session, "tiny")
        answer = create(model=alias)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        reviewed(answer.json()["error"]["message"])
        assert admin.get(ALIASES).json()["data"][0]["registered"] is False
        assert admin.get("/v1/models").json()["data"] == []
