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
from tests.factories import make_file, make_job
from tests.http.conftest import Upload


class TestGet:
    def test_an_expired_file_is_not_found(self, upload: Upload, client: TestClient, sessions: Sessions) -> None:
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

    def test_a_page_follows_a_file_that_was_deleted_meanwhile(self, client: TestClient, ids: list[str]) -> None:
        client.delete(f"/v1/files/{ids[3]}")
        listed = client.get("/v1/files", params={"after": ids[3]}).json()["data"]
        assert [file["id"] for file in listed] == ids[2::-1]


class TestDelete:
    def test_the_bytes_of_a_deleted_file_are_kept_for_a_job(
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
