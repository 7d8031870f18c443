"""Checkpoint permissions: OpenAI's calls, and what they open here."""

from __future__ import annotations

from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from starlette.testclient import TestClient

from app.api.schemas.models import PermissionBody
from app.db.engine import Sessions, transaction
from app.db.tables import CheckpointPermission, Job, Project
from tests.api_objects import error_of
from tests.factories import chat_lines, make_key, make_project


@pytest.fixture
def other(sessions: Sessions) -> Project:
    with transaction(sessions) as session:
        return make_project(session, "other")


@pytest.fixture
def theirs(sessions: Sessions, other: Project) -> dict[str, str]:
    """Headers with an ordinary key of the project `other`."""
    with transaction(sessions) as session:
        return {"Authorization": f"Bearer {make_key(session, other)}"}


@pytest.fixture
def path(succeeded: Job) -> str:
    return f"/v1/fine_tuning/checkpoints/{succeeded.fine_tuned_model}/permissions"


@pytest.fixture
def share(client: TestClient, path: str, admin_headers: dict[str, str]) -> Any:
    def send(*project_ids: str) -> Response:
        return client.post(path, json={"project_ids": list(project_ids)}, headers=admin_headers)

    return send


class TestSharing:
    def test_a_shared_model_is_seen_and_trained_further(
        self, client: TestClient, share: Any, other: Project, theirs: dict[str, str], succeeded: Job
    ) -> None:
        files = {"file": ("train.jsonl", chat_lines())}
        file_id = client.post("/v1/files", data={"purpose": "fine-tune"}, files=files, headers=theirs).json()["id"]
        body = {"model": succeeded.fine_tuned_model, "training_file": file_id}
        assert client.post("/v1/fine_tuning/jobs", json=body, headers=theirs).status_code == 404

        granted = share(other.id).json()
        PermissionBody.model_validate(granted["data"][0])
        assert [(row["object"], row["project_id"]) for row in granted["data"]] == [("checkpoint.permission", other.id)]

        assert client.get(f"/v1/models/{succeeded.fine_tuned_model}", headers=theirs).status_code == 200
        names = [model["id"] for model in client.get("/v1/models", headers=theirs).json()["data"]]
        assert succeeded.fine_tuned_model in names
        assert sum(name.startswith("ft:") for name in names) == 1, "its checkpoints were not shared"
        created = client.post("/v1/fine_tuning/jobs", json=body, headers=theirs)
        assert (created.status_code, created.json()["model"]) == (200, succeeded.fine_tuned_model)

    def test_a_permission_opens_the_model_alone(
        self, client: TestClient, share: Any, other: Project, theirs: dict[str, str], succeeded: Job, path: str
    ) -> None:
        share(other.id)
        assert client.delete(f"/v1/models/{succeeded.fine_tuned_model}", headers=theirs).status_code == 403
        assert client.get(f"/v1/fine_tuning/jobs/{succeeded.id}/adapter", headers=theirs).status_code == 404
        assert client.get(f"/v1/files/{succeeded.result_file_ids[0]}", headers=theirs).status_code == 404
        assert client.get(path, headers=theirs).status_code == 404

    def test_a_repeated_permission_is_one(self, client: TestClient, share: Any, other: Project, path: str) -> None:
        assert share(other.id).json() == share(other.id, other.id).json()
        assert len(client.get(path).json()["data"]) == 1

    def test_a_withdrawn_permission_ends_the_access(
        self,
        client: TestClient,
        share: Any,
        other: Project,
        theirs: dict[str, str],
        admin_headers: dict[str, str],
        succeeded: Job,
        path: str,
    ) -> None:
        permission = share(other.id).json()["data"][0]["id"]
        gone = client.delete(f"{path}/{permission}", headers=admin_headers)
        assert gone.json() == {"id": permission, "object": "checkpoint.permission", "deleted": True}
        assert client.get(f"/v1/models/{succeeded.fine_tuned_model}", headers=theirs).status_code == 404
        assert error_of(client.delete(f"{path}/{permission}", headers=admin_headers), 404)["param"] == "permission_id"


class TestAllowedKeys:
    def test_an_ordinary_key_reads_and_changes_nothing(
        self, client: TestClient, share: Any, other: Project, path: str
    ) -> None:
        permission = share(other.id).json()["data"][0]["id"]
        assert [row["id"] for row in client.get(path).json()["data"]] == [permission]
        for method, url in (("POST", path), ("DELETE", f"{path}/{permission}")):
            answer = client.request(method, url, json={"project_ids": [other.id]})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")

    def test_a_model_that_does_not_exist_is_a_404_for_every_key(
        self, client: TestClient, admin_headers: dict[str, str]
    ) -> None:
        for headers in (admin_headers, {}):
            for name in ("ft:nothing", "gpt-4o", "a/b"):
                answer = client.get(f"/v1/fine_tuning/checkpoints/{name}/permissions", headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


class TestBadInput:
    def test_unknown_projects_are_named(self, share: Any, other: Project) -> None:
        answer = share("proj_x", other.id, "proj_y")
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "project_ids")
        assert "proj_x, proj_y" in answer.json()["error"]["message"]

    def test_a_model_is_not_shared_with_its_owner(
        self, share: Any, project: Project, client: TestClient, path: str
    ) -> None:
        assert share(project.id).status_code == 400
        assert client.get(path).json()["data"] == []

    def test_a_row_for_the_owner_is_refused_by_the_database(
        self, sessions: Sessions, project: Project, succeeded: Job
    ) -> None:
        row = {"id": "cp_1", "project_id": project.id, "grantee_id": project.id, "model_id": succeeded.fine_tuned_model}
        with pytest.raises(IntegrityError, match="grantee_is_another"), transaction(sessions) as session:
            session.execute(insert(CheckpointPermission).values(row))
