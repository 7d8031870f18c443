"""Aliases of base models, from the admin's request to the job that names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobBody
from app.db.engine import Sessions, transaction
from app.db.tables import Job
from app.services import base_models
from tests.factories import make_base_model
from tests.serving import LiveServer

ALIASES = "/v1/organization/model_aliases"
NAME = "gpt-4o-mini-2024-07-18"

pytestmark = pytest.mark.usefixtures("base_model")


@pytest.fixture
def alias(admin: TestClient) -> str:
    answer = admin.post(ALIASES, json={"name": NAME, "model": "tiny"})
    assert answer.status_code == 200, answer.text
    return NAME


class TestAdministration:
    def test_sets_lists_replaces_and_removes(self, admin: TestClient, sessions: Sessions, tmp_path: Path) -> None:
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

    def test_needs_an_admin_key(self, client: TestClient) -> None:
        assert client.post(ALIASES, json={"name": NAME, "model": "tiny"}).status_code == 403
        assert client.get(ALIASES).status_code == 403

    def test_all_problems_are_named_at_once(self, admin: TestClient) -> None:
        error = admin.post(ALIASES, json={"name": "ft:x", "model": "none"}).json()["error"]
        assert "is not a model name" in error["message"]
        assert 'no base model is named "none"; registered: tiny' in error["message"]

    def test_may_not_hide_a_registered_model(self, admin: TestClient) -> None:
        error = admin.post(ALIASES, json={"name": "tiny", "model": "tiny"}).json()["error"]
        assert (error["param"], "is a registered base model" in error["message"]) == ("name", True)

    def test_of_an_unknown_alias_says_which_there_are(self, admin: TestClient, alias: str) -> None:
        answer = admin.delete(f"{ALIASES}/gpt-4o")
        assert (answer.status_code, f"aliases: {alias}" in answer.json()["error"]["message"]) == (404, True)

    def test_is_in_the_audit_log(self, admin: TestClient, alias: str) -> None:
        (entry,) = admin.get("/v1/organization/audit_logs").json()["data"]
        assert (entry["type"], entry["object_ids"]) == ("organization.model_aliases.create", [alias])


class TestModels:
    def test_lists_the_alias_with_its_base_model(self, client: TestClient, alias: str) -> None:
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert (listed[alias]["alias_of"], listed[alias]["fine_tunable"]) == ("tiny", True)
        assert "alias_of" not in listed["tiny"]
        assert client.get(f"/v1/models/{alias}").json() == listed[alias]

    def test_an_alias_is_not_deleted_as_a_trained_model(self, client: TestClient, alias: str) -> None:
        answer = client.delete(f"/v1/models/{alias}")
        assert (answer.status_code, "tunery models unalias" in answer.json()["error"]["message"]) == (403, True)


class TestJobs:
    @pytest.fixture
    def create(self, client: TestClient, training_file: str) -> Any:
        return lambda **body: client.post("/v1/fine_tuning/jobs", json={"training_file": training_file} | body)

    def test_trains_the_base_model_and_shows_the_alias(
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

    def test_an_unknown_model_is_an_error_that_lists_the_aliases(self, create: Any, alias: str) -> None:
        answer = create(model="gpt-4o")
        assert answer.status_code == 404
        assert f"Available models: tiny. Aliases: {alias} (tiny)." in answer.json()["error"]["message"]

    def test_the_alias_of_a_removed_model_says_what_to_do(
        self, create: Any, admin: TestClient, alias: str, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            base_models.remove(session, "tiny")
        answer = create(model=alias)
        message = answer.json()["error"]["message"]
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "`tunery models add tiny DIRECTORY`" in message
        assert f"`tunery models alias {alias} BASE`" in message
        assert admin.get(ALIASES).json()["data"][0]["registered"] is False
        assert admin.get("/v1/models").json()["data"] == []

    def test_a_plain_client_stays_as_it_is(
        self, live_server: LiveServer, api_key: str, base_model: str, sessions: Sessions, tmp_path: Path
    ) -> None:
        with transaction(sessions) as session:
            base_models.set_alias(session, NAME, base_model)
        with openai.OpenAI(base_url=live_server.url, api_key=api_key) as plain:
            line = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
            file = plain.files.create(file=("train.jsonl", line * 10), purpose="fine-tune")
            job = plain.fine_tuning.jobs.create(model=NAME, training_file=file.id)
            assert plain.fine_tuning.jobs.retrieve(job.id).model == base_model
            assert plain.models.retrieve(NAME).id == NAME
