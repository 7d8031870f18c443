from __future__ import annotations

from typing import Any

import openai
import pytest
from fastapi import FastAPI
from sqlalchemy import func, text, update
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.jobs import jobs
from app.db.tables import ApiKey, Project
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import make_file, make_job, make_project

PROJECTS = "/v1/organization/projects"


@pytest.fixture
def research(admin: TestClient) -> str:
    """The id of a project that an admin made."""
    return str(admin.post(PROJECTS, json={"name": "research"}).json()["id"])


class TestProjects:
    def test_a_project_has_limits_and_a_weight(self, admin: TestClient) -> None:
        body = {"name": " research ", "limits": {"max_queued_jobs": 5}, "share_weight": 2.5}
        made = admin.post(PROJECTS, json=body).json()
        assert (made["name"], made["status"], made["share_weight"]) == ("research", "active", 2.5)
        assert made["limits"]["max_queued_jobs"] == 5
        assert made["limits"]["max_stored_bytes"] is None
        seen = admin.get(f"{PROJECTS}/{made['id']}").json()
        assert seen.pop("usage") == {
            "stored_bytes": 0, "queued_jobs": 0, "running_jobs": 0, "gpu_seconds_this_month": 0, "held_gpu_seconds": 0,
        }  # fmt: skip
        assert seen == made

    def test_a_change_keeps_absent_fields(self, admin: TestClient, research: str) -> None:
        admin.post(f"{PROJECTS}/{research}", json={"limits": {"max_queued_jobs": 5, "max_running_jobs": 1}})
        changed = admin.post(f"{PROJECTS}/{research}", json={"name": "lab", "limits": {"max_queued_jobs": None}}).json()
        assert (changed["name"], changed["share_weight"]) == ("lab", 1)
        assert (changed["limits"]["max_queued_jobs"], changed["limits"]["max_running_jobs"]) == (None, 1)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"name": "default"}, "name"),
            ({"name": "  "}, "name"),
            ({"name": "a\u0007b"}, "name"),
            ({"name": "a", "share_weight": 0}, "share_weight"),
            ({"name": "a", "limits": {"max_stored_bytes": -1}}, "limits.max_stored_bytes"),
            ({"name": "a", "limits": {"max_requests_per_second": 0}}, "limits.max_requests_per_second"),
            ({"name": "a", "limits": {"max_jobs": 1}}, "limits.max_jobs"),
        ],
    )
    def test_an_invalid_project_is_refused(self, admin: TestClient, body: dict[str, Any], param: str) -> None:
        assert error_of(admin.post(PROJECTS, json=body))["param"] == param
        assert len(admin.get(PROJECTS).json()["data"]) == 1

    def test_the_name_of_another_project_is_refused(self, admin: TestClient, research: str) -> None:
        assert error_of(admin.post(f"{PROJECTS}/{research}", json={"name": "default"}))["param"] == "name"
        assert admin.get(f"{PROJECTS}/{research}").json()["name"] == "research"

    def test_a_key_sees_its_own_project(self, client: TestClient, project: Project) -> None:
        client.post("/v1/files", data={"purpose": "batch"}, files={"file": b"12345"})
        seen = client.get("/v1/project").json()
        assert (seen["id"], seen["usage"]["stored_bytes"]) == (project.id, 5)
        assert seen["api_key"]["scopes"] == ["all"]


class TestArchive:
    def test_an_archived_project_has_no_valid_key(self, admin: TestClient, research: str) -> None:
        key = admin.post(f"{PROJECTS}/{research}/api_keys", json={"name": "a"}).json()["value"]
        theirs = {"Authorization": f"Bearer {key}"}
        assert admin.get("/v1/files", headers=theirs).status_code == 200
        assert admin.post(f"{PROJECTS}/{research}/archive").json()["status"] == "archived"
        assert admin.get("/v1/files", headers=theirs).status_code == 401
        assert research not in [each["id"] for each in admin.get(PROJECTS).json()["data"]]
        everything = admin.get(PROJECTS, params={"include_archived": True}).json()["data"]
        assert research in [each["id"] for each in everything]

    def test_an_archived_project_takes_no_changes(self, admin: TestClient, research: str) -> None:
        once = admin.post(f"{PROJECTS}/{research}/archive").json()
        assert admin.post(f"{PROJECTS}/{research}/archive").json() == once
        error_of(admin.post(f"{PROJECTS}/{research}", json={"name": "other"}))
        error_of(admin.post(f"{PROJECTS}/{research}/api_keys", json={"name": "a"}))

    def test_unfinished_jobs_refuse_an_archive(
        self, admin: TestClient, sessions: Sessions, storage: LocalStorage, base_model: str
    ) -> None:
        with transaction(sessions) as session:
            other = make_project(session, "other")
            job = make_job(session, other, make_file(session, storage, other))
        error = error_of(admin.post(f"{PROJECTS}/{other.id}/archive"))
        assert (error["param"], job.id in error["message"]) == ("cancel_jobs", True)
        assert admin.post(f"{PROJECTS}/{other.id}/archive", json={"cancel_jobs": True}).status_code == 200
        with transaction(sessions) as session:
            found = jobs.get(session, other.id, job.id)
            assert found is not None
            assert found.state == "cancelled"

    def test_a_key_does_not_archive_its_own_project(self, admin: TestClient, project: Project) -> None:
        error_of(admin.post(f"{PROJECTS}/{project.id}/archive"))
        assert admin.get("/v1/files").status_code == 200


class TestUnarchive:
    def test_an_unarchive_enables_valid_keys(self, admin: TestClient, research: str) -> None:
        made = [admin.post(f"{PROJECTS}/{research}/api_keys", json={"name": name}).json() for name in "ab"]
        admin.post(f"{PROJECTS}/{research}/archive")
        admin.delete(f"{PROJECTS}/{research}/api_keys/{made[1]['id']}")
        opened = admin.post(f"{PROJECTS}/{research}/unarchive")
        assert (opened.status_code, opened.json()["status"], opened.json()["archived_at"]) == (200, "active", None)
        theirs = [{"Authorization": f"Bearer {key['value']}"} for key in made]
        assert [admin.get("/v1/files", headers=headers).status_code for headers in theirs] == [200, 401]
        assert research in [each["id"] for each in admin.get(PROJECTS).json()["data"]]
        assert admin.post(f"{PROJECTS}/{research}", json={"name": "lab"}).json()["name"] == "lab"

    def test_an_unarchive_is_audited_once(self, admin: TestClient, research: str) -> None:
        def unarchived() -> int:
            assert admin.post(f"{PROJECTS}/{research}/unarchive").json()["status"] == "active"
            recorded = admin.get("/v1/organization/audit_logs", params={"project_ids[]": research}).json()["data"]
            return [entry["type"] for entry in recorded].count("organization.projects.unarchive")

        assert unarchived() == 0
        admin.post(f"{PROJECTS}/{research}/archive")
        assert [unarchived(), unarchived()] == [1, 1]


class TestKeys:
    def test_a_secret_is_shown_once(self, admin: TestClient, research: str) -> None:
        made = admin.post(f"{PROJECTS}/{research}/api_keys", json={"name": "ci", "scopes": ["jobs:read"]}).json()
        secret = made.pop("value")
        path = f"{PROJECTS}/{research}/api_keys/{made['id']}"
        assert admin.get(path).json() == made
        assert admin.get(f"{PROJECTS}/{research}/api_keys").json()["data"] == [made]
        assert secret not in admin.get(path).text
        assert made["redacted_value"] == f"{secret[:9]}…{secret[-4:]}"
        theirs = {"Authorization": f"Bearer {secret}"}
        assert admin.get("/v1/fine_tuning/jobs", headers=theirs).status_code == 200
        assert admin.get("/v1/files", headers=theirs).status_code == 403

    def test_a_changed_key_has_other_scopes(self, admin: TestClient, research: str) -> None:
        made = admin.post(f"{PROJECTS}/{research}/api_keys", json={"name": "a"}).json()
        path = f"{PROJECTS}/{research}/api_keys/{made['id']}"
        changed = admin.post(path, json={"name": "b", "scopes": ["files:read"], "expires_in_seconds": 600}).json()
        assert (changed["name"], changed["scopes"]) == ("b", ["files:read"])
        assert changed["expires_at"] is not None
        theirs = {"Authorization": f"Bearer {made['value']}"}
        assert admin.get("/v1/models", headers=theirs).status_code == 403

    def test_a_rotated_secret_overlaps(self, admin: TestClient, research: str) -> None:
        made = admin.post(f"{PROJECTS}/{research}/api_keys", json={"name": "a"}).json()
        path = f"{PROJECTS}/{research}/api_keys/{made['id']}"
        turned = admin.post(f"{path}/rotate").json()
        assert turned["value"] != made["value"]
        assert turned["previous_value_expires_at"] - turned["rotated_at"] in (86_400, 86_401)
        assert admin.get("/v1/files", headers={"Authorization": f"Bearer {made['value']}"}).status_code == 200
        again = admin.post(f"{path}/rotate", json={"overlap_seconds": 0}).json()
        for value, status in ((made["value"], 401), (turned["value"], 401), (again["value"], 200)):
            assert admin.get("/v1/files", headers={"Authorization": f"Bearer {value}"}).status_code == status

    def test_keys_are_filtered_by_access(self, admin: TestClient, research: str, sessions: Sessions) -> None:
        path = f"{PROJECTS}/{research}/api_keys"
        active, expired, revoked = (admin.post(path, json={"name": name}).json()["id"] for name in "abc")
        with transaction(sessions) as session:
            past = func.now() - text("interval '1 hour'")
            session.execute(update(ApiKey).where(ApiKey.id == expired).values(expires_at=past))
        admin.delete(f"{path}/{revoked}")
        for query, expected in {
            "": [expired, active],
            "?owner_project_access=any": [expired, active],
            "?owner_project_access=active": [active],
            "?owner_project_access=inactive": [expired],
            "?owner_project_access=inactive&include_revoked=true": [revoked, expired],
            "?owner_project_access=active&include_revoked=true": [active],
        }.items():
            assert [key["id"] for key in admin.get(f"{path}{query}").json()["data"]] == expected, query

    def test_a_revoked_key_stays_revoked(self, admin: TestClient, research: str) -> None:
        made = admin.post(f"{PROJECTS}/{research}/api_keys", json={"name": "a"}).json()
        path = f"{PROJECTS}/{research}/api_keys/{made['id']}"
        turned = admin.post(f"{path}/rotate").json()
        for _ in range(2):
            assert admin.delete(path).json() == {
                "id": made["id"], "object": "organization.project.api_key.deleted", "deleted": True,
            }  # fmt: skip
        for value in (made["value"], turned["value"]):
            assert admin.get("/v1/files", headers={"Authorization": f"Bearer {value}"}).status_code == 401
        assert admin.get(f"{PROJECTS}/{research}/api_keys").json()["data"] == []
        listed = admin.get(f"{PROJECTS}/{research}/api_keys", params={"include_revoked": True}).json()["data"]
        assert [key["status"] for key in listed] == ["revoked"]
        for body, call in (({"name": "b"}, path), ({}, f"{path}/rotate")):
            error_of(admin.post(call, json=body))

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"name": "a", "scopes": []}, "scopes"),
            ({"name": "a", "scopes": ["root"]}, "scopes"),
            ({"name": "a", "expires_in_seconds": 1}, "expires_in_seconds"),
        ],
    )
    def test_an_invalid_key_is_refused(
        self, admin: TestClient, research: str, body: dict[str, Any], param: str
    ) -> None:
        assert error_of(admin.post(f"{PROJECTS}/{research}/api_keys", json=body))["param"] == param


class TestIds:
    def test_unknown_and_foreign_ids_are_not_found(
        self, app: FastAPI, admin: TestClient, research: str, project: Project
    ) -> None:
        own_key = admin.get("/v1/project").json()["api_key"]["id"]
        seen = 0
        for template, item in app.openapi()["paths"].items():
            if not template.startswith(f"{PROJECTS}/{{project_id}}"):
                continue
            foreign = template.replace("{project_id}", research).replace("{key_id}", own_key)
            paths = [template.replace("{project_id}", "proj_none").replace("{key_id}", own_key)]
            if "{key_id}" in template:
                paths.append(foreign)
            for method in item:
                for path in paths:
                    answer = admin.request(method.upper(), path, json={"name": "x"} if method == "post" else None)
                    if path.endswith(("/archive", "/rotate", "/unarchive")) and answer.status_code == 400:
                        answer = admin.request(method.upper(), path)
                    if path.endswith("/retention_rules") and answer.status_code == 400:
                        answer = admin.request(method.upper(), path, json={"rules": {"logs": 1}})
                    assert answer.status_code == 404, (method, path, answer.text)
                    seen += 1
        assert seen >= 12
        assert admin.get("/v1/files").status_code == 200


class TestTheOfficialClient:
    def test_the_official_client_manages_projects_and_keys(self, app: FastAPI, admin: TestClient, api_key: str) -> None:
        del admin.headers["Authorization"]
        client = openai.OpenAI(
            api_key="none", admin_api_key=api_key, base_url="http://testserver/v1", http_client=admin,
            _strict_response_validation=True,
        )  # fmt: skip
        organization = client.admin.organization
        made = organization.projects.create(name="from-openai")
        assert organization.projects.retrieve(made.id).name == "from-openai"
        assert organization.projects.update(made.id, name="renamed").name == "renamed"
        assert {each.name for each in organization.projects.list(limit=1)} == {"renamed", "default"}
        key = organization.projects.api_keys
        value = client.post(
            f"/organization/projects/{made.id}/api_keys", body={"name": "k"}, cast_to=dict[str, Any],
            options={"headers": {"Authorization": f"Bearer {api_key}"}},
        )  # fmt: skip
        listed = list(key.list(made.id, limit=1))
        assert [each.id for each in listed] == [value["id"]]
        assert key.update(listed[0].id, project_id=made.id, scopes=["jobs:read"]).id == listed[0].id
        assert key.delete(listed[0].id, project_id=made.id).deleted
        assert organization.projects.archive(made.id).status == "archived"
