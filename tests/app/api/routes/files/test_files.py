from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.jobs import jobs
from app.db.tables import File, Project
from app.storage import LocalStorage
from tests.app.api.conftest import Upload
from tests.factories import make_file, make_job


class TestGet:
    def test_answers_what_create_answered(self, upload: Upload, client: TestClient) -> None:
        created = upload().json()
        assert client.get(f"/v1/files/{created['id']}").json() == created

    def test_of_an_unknown_file_is_openais_404(self, client: TestClient) -> None:
        answer = client.get("/v1/files/file-nothere")
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["message"] == "No such File object: file-nothere"
        assert (error["type"], error["param"]) == ("invalid_request_error", "id")

    def test_of_an_expired_file_is_a_404(self, upload: Upload, client: TestClient, sessions: Sessions) -> None:
        file_id = upload().json()["id"]
        with transaction(sessions) as session:
            session.execute(update(File).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
        assert client.get(f"/v1/files/{file_id}").status_code == 404
        assert client.get(f"/v1/files/{file_id}/content").status_code == 404
        assert client.get("/v1/files").json()["data"] == []


class TestList:
    @pytest.fixture
    def ids(self, upload: Upload) -> list[str]:
        """Five files, oldest first; every second one for batch."""
        return [str(upload(purpose="batch" if n % 2 else "fine-tune").json()["id"]) for n in range(5)]

    def test_is_newest_first_and_whole_by_default(self, client: TestClient, ids: list[str]) -> None:
        body = client.get("/v1/files").json()
        assert [file["id"] for file in body["data"]] == ids[::-1]
        assert (body["object"], body["has_more"]) == ("list", False)
        assert (body["first_id"], body["last_id"]) == (ids[-1], ids[0])

    def test_pages_through_every_file_once(self, client: TestClient, ids: list[str]) -> None:
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            seen: list[str] = []
            more = True
            after: dict[str, str] = {}
            while more:
                body = client.get("/v1/files", params={"limit": 2, "order": order, **after}).json()
                seen += [file["id"] for file in body["data"]]
                more, after = body["has_more"], {"after": body["last_id"]}
            assert seen == expected

    def test_keeps_one_purpose(self, client: TestClient, ids: list[str]) -> None:
        listed = client.get("/v1/files", params={"purpose": "batch"}).json()["data"]
        assert [file["id"] for file in listed] == [ids[3], ids[1]]

    def test_of_nothing_has_no_first_and_last(self, client: TestClient) -> None:
        body = client.get("/v1/files").json()
        assert body == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}

    def test_goes_on_after_a_file_that_was_deleted_meanwhile(self, client: TestClient, ids: list[str]) -> None:
        client.delete(f"/v1/files/{ids[3]}")
        listed = client.get("/v1/files", params={"after": ids[3]}).json()["data"]
        assert [file["id"] for file in listed] == ids[2::-1]

    def test_clamps_a_limit_above_the_maximum_and_refuses_one_below_1(self, client: TestClient, ids: list[str]) -> None:
        assert len(client.get("/v1/files?limit=99999999999999999999").json()["data"]) == 5
        for limit in ("0", "-1", "many"):
            answer = client.get("/v1/files", params={"limit": limit})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")

    def test_refuses_an_unknown_cursor_and_an_unknown_order(self, client: TestClient) -> None:
        for name, value in (("after", "file-nothere"), ("order", "up")):
            answer = client.get("/v1/files", params={name: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


class TestDelete:
    def test_makes_the_file_disappear_at_once(self, upload: Upload, client: TestClient) -> None:
        file_id = upload().json()["id"]
        assert client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
        for answer in (
            client.get(f"/v1/files/{file_id}"),
            client.get(f"/v1/files/{file_id}/content"),
            client.delete(f"/v1/files/{file_id}"),
        ):
            assert answer.status_code == 404

    def test_keeps_the_bytes_while_a_job_needs_them(
        self, client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
    ) -> None:
        with transaction(sessions) as session:
            file = make_file(session, storage, project)
            job = make_job(session, project, file)
        assert client.delete(f"/v1/files/{file.id}").status_code == 200
        with transaction(sessions) as session:
            assert files.lock_purgeable(session) == []
            assert storage.stat(file.storage_key).size_bytes == file.bytes
            jobs.cancel(session, project.id, job.id)
            assert [purgeable.id for purgeable in files.lock_purgeable(session)] == [file.id]
