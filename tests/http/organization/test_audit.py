from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, delete, event, select, text, update
from sqlalchemy.exc import DBAPIError
from starlette.testclient import TestClient

from app.api.auth import CallerDep
from app.api.dependencies import SessionDep
from app.db.access import audit
from app.db.engine import Sessions, make_sessions, transaction
from app.db.tables import ApiKey, AuditEntry, File, Job, Project
from app.storage import LocalStorage
from tests.api_objects import param_of
from tests.factories import make_project, make_succeeded_job
from tests.http.conftest import Upload

LOG = "/v1/organization/audit_logs"
T = 1_790_000_000
JOBS = "/v1/fine_tuning/jobs"


def entries(admin: TestClient, **filters: Any) -> list[dict[str, Any]]:
    answer = admin.get(LOG, params={"limit": 100, **filters})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def insert_entries(sessions: Sessions, times: list[float]) -> list[str]:
    """Ids of entries that were written at these times, in seconds since 1970."""
    with transaction(sessions) as session:
        for number, seconds in enumerate(times):
            moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
            row = {"actor_type": "system", "actor_id": "test", "object_ids": []}
            session.add(AuditEntry(id=f"audit_log-{number}", action="test", created_at=moment, **row))
            session.flush()
    return [f"audit_log-{number}" for number in range(len(times))]


class TestEveryChange:
    def test_a_change_is_recorded_with_its_actor(
        self, admin: TestClient, upload: Upload, project: Project, sessions: Sessions
    ) -> None:
        answer = upload()
        (entry,) = entries(admin)
        with transaction(sessions) as session:
            key_id = session.scalar(select(ApiKey.id))
        assert entry["type"] == "files.create"
        assert entry["actor"] == {"type": "api_key", "id": key_id, "api_key": {"id": key_id}}
        assert entry["project"] == {"id": project.id}
        assert entry["object_ids"] == [answer.json()["id"]]
        assert entry["request_id"] == answer.headers["x-request-id"]
        assert entry["ip_address"] == "testclient"
        assert abs(entry["effective_at"] - answer.json()["created_at"]) <= 1

    def test_every_changing_route_is_recorded_once(
        self, admin: TestClient, sessions: Sessions, upload: Upload, base_model: str, storage: LocalStorage,
        project: Project,
    ) -> None:  # fmt: skip
        with transaction(sessions) as session:
            tuned = make_succeeded_job(session, storage, project).fine_tuned_model
        file_id = upload().json()["id"]
        body = {"model": base_model, "training_file": file_id}
        job_id = admin.post(JOBS, json=body).json()["id"]
        admin.post(f"{JOBS}/{job_id}/cancel")
        admin.delete(f"/v1/models/{tuned}")
        admin.delete(f"/v1/files/{file_id}")
        made = admin.post("/v1/organization/projects", json={"name": "lab"}).json()["id"]
        path = f"/v1/organization/projects/{made}"
        admin.post(path, json={"share_weight": 2})
        key_id = admin.post(f"{path}/api_keys", json={"name": "k"}).json()["id"]
        admin.post(f"{path}/api_keys/{key_id}", json={"name": "l"})
        admin.post(f"{path}/api_keys/{key_id}/rotate")
        admin.delete(f"{path}/api_keys/{key_id}")
        admin.post(f"{path}/archive")
        recorded = [(entry["type"], entry["object_ids"], entry["project"]["id"]) for entry in reversed(entries(admin))]
        assert recorded == [
            ("files.create", [file_id], project.id),
            ("fine_tuning.jobs.create", [job_id], project.id),
            ("fine_tuning.jobs.cancel", [job_id], project.id),
            ("models.delete", [tuned], project.id),
            ("files.delete", [file_id], project.id),
            ("organization.projects.create", [made], project.id),
            ("organization.projects.update", [made], made),
            ("organization.projects.api_keys.create", [made, key_id], made),
            ("organization.projects.api_keys.update", [made, key_id], made),
            ("organization.projects.api_keys.rotate", [made, key_id], made),
            ("organization.projects.api_keys.delete", [made, key_id], made),
            ("organization.projects.archive", [made], made),
        ]

    def test_refused_and_reading_calls_are_not_recorded(
        self, admin: TestClient, upload: Upload, base_model: str, training_file: str
    ) -> None:
        before = len(entries(admin))
        admin.get("/v1/files")
        admin.post(f"{JOBS}/plan", json={"model": base_model, "training_file": training_file})
        admin.post(JOBS, json={"model": "none", "training_file": training_file})
        upload(b"not json")
        admin.delete("/v1/files/file-none")
        admin.post("/v1/organization/projects", json={"name": "default"})
        assert len(entries(admin)) == before

    def test_a_new_route_is_recorded(self, app: FastAPI, admin: TestClient) -> None:
        def make(caller: CallerDep, session: SessionDep) -> dict[str, str]:
            return {"id": make_project(session, "by-a-new-route").id}

        app.add_api_route("/v1/files/{file_id}/tomorrow", make, methods=["POST"])
        made = admin.post("/v1/files/file-1/tomorrow").json()["id"]
        (entry,) = entries(admin)
        assert (entry["type"], entry["object_ids"]) == ("files.tomorrow", ["file-1", made])

    def test_an_entry_is_written_with_its_change(
        self, app: FastAPI, admin: TestClient, upload: Upload, sessions: Sessions
    ) -> None:
        engine: Engine = app.state.app_state.database

        def refuse(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if statement.startswith("INSERT INTO audit_log"):
                raise RuntimeError("no room in the log")

        event.listen(engine, "before_cursor_execute", refuse)
        assert upload().status_code == 500
        event.remove(engine, "before_cursor_execute", refuse)
        with transaction(sessions) as session:
            assert session.scalars(select(File)).all() == []
            assert session.scalars(select(AuditEntry)).all() == []

    def test_concurrent_changes_have_their_own_actors(
        self, admin: TestClient, sessions: Sessions, foreign_headers: dict[str, str]
    ) -> None:
        def send(headers: dict[str, str]) -> None:
            for number in range(5):
                answer = admin.post(
                    "/v1/files", data={"purpose": "batch"}, files={"file": b"%d" % number}, headers=headers
                )
                assert answer.status_code == 200

        threads = [threading.Thread(target=send, args=(headers,)) for headers in ({}, foreign_headers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with transaction(sessions) as session:
            owners = {file.id: file.project_id for file in session.scalars(select(File))}
            by_key = {key.id: key.project_id for key in session.scalars(select(ApiKey))}
        recorded = entries(admin)
        assert len(recorded) == 10
        for entry in recorded:
            assert owners[entry["object_ids"][0]] == entry["project"]["id"] == by_key[entry["actor"]["id"]]


class TestTheLog:
    def test_the_log_is_append_only(self, admin: TestClient, upload: Upload, sessions: Sessions) -> None:
        upload()
        for statement in (
            update(AuditEntry).values(actor_id="somebody else"), delete(AuditEntry), text("TRUNCATE audit_log"),
        ):  # fmt: skip
            with pytest.raises(DBAPIError, match="append-only"), transaction(sessions) as session:
                session.execute(statement)
        assert len(entries(admin)) == 1

    def test_the_log_is_paged_and_filtered(self, admin: TestClient, upload: Upload, project: Project) -> None:
        ids = [upload(b"x", purpose="batch").json()["id"] for _ in range(3)]
        admin.delete(f"/v1/files/{ids[0]}")
        first = admin.get(LOG, params={"limit": 3}).json()
        assert [entry["object_ids"] for entry in first["data"]] == [[ids[0]], [ids[2]], [ids[1]]]
        assert first["has_more"]
        rest = admin.get(LOG, params={"after": first["last_id"]}).json()
        assert [entry["object_ids"] for entry in rest["data"]] == [[ids[0]]]
        assert len(entries(admin, **{"event_types[]": "files.delete"})) == 1
        assert len(entries(admin, **{"resource_ids[]": ids[0]})) == 2
        assert len(entries(admin, **{"project_ids[]": project.id})) == 4
        assert entries(admin, **{"project_ids[]": "proj_none"}) == []
        assert entries(admin, **{"actor_ids[]": "key_none"}) == []
        moment = first["data"][0]["effective_at"]
        assert len(entries(admin, **{"effective_at[gte]": moment - 60, "effective_at[lt]": moment + 60})) == 4
        assert entries(admin, **{"effective_at[lt]": moment - 60}) == []
        assert admin.get(LOG, params={"after": "none"}).status_code == 400

    def test_the_log_is_filtered_by_whole_seconds(self, admin: TestClient, sessions: Sessions) -> None:
        insert_entries(sessions, [T - 0.5, T, T + 0.9, T + 1])
        expected = {
            "gt": [T + 1], "gte": [T + 1, T, T], "lt": [T - 1], "lte": [T, T, T - 1],
        }  # fmt: skip
        for name, times in expected.items():
            assert [entry["effective_at"] for entry in entries(admin, **{f"effective_at[{name}]": T})] == times, name
        both = {"effective_at[gt]": T - 2, "effective_at[gte]": T, "effective_at[lte]": T, "effective_at[lt]": T + 9}
        assert [entry["effective_at"] for entry in entries(admin, **both)] == [T, T]
        assert entries(admin, **{"effective_at[gt]": 4_000_000_000}) == []
        assert entries(admin, **{"effective_at[lte]": 1}) == []
        for name in expected:
            for value in ("", "-1", "1.5", 253_402_300_799):
                assert param_of(admin.get(LOG, params={f"effective_at[{name}]": value})) == f"effective_at[{name}]"

    def test_the_log_is_paged_backwards(self, admin: TestClient, sessions: Sessions) -> None:
        newest_first = insert_entries(sessions, [T, T + 1, T + 2, T + 3, T + 4])[::-1]
        nearest = admin.get(LOG, params={"before": newest_first[3], "limit": 2}).json()
        assert ([entry["id"] for entry in nearest["data"]], nearest["has_more"]) == (newest_first[1:3], True)
        rest = admin.get(LOG, params={"before": nearest["first_id"], "limit": 2}).json()
        assert ([entry["id"] for entry in rest["data"]], rest["has_more"]) == (newest_first[:1], False)
        between = admin.get(LOG, params={"after": newest_first[0], "before": newest_first[4], "limit": 2}).json()
        assert ([entry["id"] for entry in between["data"]], between["has_more"]) == (newest_first[1:3], True)
        assert param_of(admin.get(LOG, params={"before": "none"})) == "before"

    def test_filters_that_match_nothing_are_refused(self, admin: TestClient) -> None:
        for query in ("actor_emails[]=a@example.com", "tenant_only=true"):
            assert param_of(admin.get(f"{LOG}?{query}")) == query.partition("=")[0]
        assert admin.get(f"{LOG}?tenant_only=false").status_code == 200


class TestAct:
    def test_a_change_after_the_end_of_its_request_is_not_attributed_to_it(self, engine: Engine) -> None:
        """A task that outlives the request that started it still has the request's context."""
        sessions = make_sessions(engine)
        audit.audit_sessions(sessions)
        with audit.audited_as(audit.AuditContext(action="a", actor_id="key_1")) as context:
            pass
        token = audit.CURRENT_CONTEXT.set(context)
        with transaction(sessions) as session:
            make_project(session, "later")
        audit.CURRENT_CONTEXT.reset(token)
        with transaction(sessions) as session:
            assert session.scalars(select(AuditEntry)).all() == []

    def test_an_entry_names_each_object_once(self, engine: Engine) -> None:
        sessions = make_sessions(engine)
        audit.audit_sessions(sessions)
        with audit.audited_as(audit.AuditContext(action="a", actor_id="key_1")), transaction(sessions) as session:
            made = [make_project(session, f"p{number}") for number in range(30)]
            made[0].share_weight = 2
        with transaction(sessions) as session:
            (entry,) = session.scalars(select(AuditEntry))
            assert entry.object_ids == [project.id for project in made[: audit.MAX_OBJECTS]]
            assert session.scalars(select(Job)).all() == []
