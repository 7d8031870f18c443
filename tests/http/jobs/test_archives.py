"""An archive that is assembled when it is read is a file as any other: ranges, HEAD, ETag, digest, deletion."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from starlette.testclient import TestClient

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.tables import Checkpoint, Job, Project
from app.storage import LocalStorage
from tests.archives import tar_bytes
from tests.factories import make_file, make_succeeded_job
from worker.jobs.stored_files import StoredFile


@dataclass(frozen=True)
class Archive:
    id: str
    content: bytes
    member_ids: list[str]

    @property
    def path(self) -> str:
        return f"/v1/files/{self.id}/content"


@pytest.fixture
def archive(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Archive:
    contents = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 5000}
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
        parts = [
            make_file(session, storage, project, text, "fine-tune-results", name, job)
            for name, text in contents.items()
        ]
        content = tar_bytes(contents)
        digest = hashlib.sha256(content).hexdigest()
        stored = StoredFile("adapter.tar", "jobs/none", len(content), digest)
        row = files.insert_archive(session, stored.row(project.id, job.id), parts)
        checkpoint = session.query(Checkpoint).filter_by(job_id=job.id).first()
        checkpoint.file_ids, checkpoint.archive_file_id = [part.id for part in parts], row.id
        return Archive(row.id, content, [part.id for part in parts])


def test_its_content_has_the_size_and_digest_of_its_row(client: TestClient, archive: Archive) -> None:
    answer = client.get(archive.path)
    assert answer.content == archive.content
    assert answer.headers["content-type"] == "application/x-tar"
    assert client.get(f"/v1/files/{archive.id}").json()["bytes"] == len(archive.content)


def test_ranges_and_head_are_those_of_a_stored_file(client: TestClient, archive: Archive) -> None:
    part = client.get(archive.path, headers={"Range": "bytes=500-1700"})
    assert part.status_code == 206
    assert part.content == archive.content[500:1701]
    last = client.get(archive.path, headers={"Range": "bytes=-100"})
    assert last.content == archive.content[-100:]
    head = client.head(archive.path)
    assert (head.headers["content-length"], head.content) == (str(len(archive.content)), b"")
    assert client.get(archive.path, headers={"If-None-Match": head.headers["etag"]}).status_code == 304
    assert client.get(archive.path, headers={"Range": "bytes=999999-"}).status_code == 416


def test_it_uses_no_storage_of_its_project(client: TestClient, archive: Archive) -> None:
    listed = client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"]
    stored = sum(file["bytes"] for file in client.get("/v1/files").json()["data"] if file["id"] != archive.id)
    assert archive.id in {file["id"] for file in listed}
    assert client.get("/v1/project").json()["usage"]["stored_bytes"] == stored


def test_its_members_stay_readable_in_it_until_it_is_deleted_too(
    client: TestClient, archive: Archive, sessions: Sessions
) -> None:
    for file_id in archive.member_ids:
        client.delete(f"/v1/files/{file_id}")
        assert client.get(f"/v1/files/{file_id}/content").status_code == 404
    with transaction(sessions) as session:
        assert files.lock_purgeable(session) == []
    assert client.get(archive.path).content == archive.content
    client.delete(f"/v1/files/{archive.id}")
    with transaction(sessions) as session:
        assert {file.id for file in files.lock_purgeable(session)} == set(archive.member_ids)


def test_an_archive_that_an_earlier_release_stored_is_still_served(
    client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        job: Job = make_succeeded_job(session, storage, project)
        stored = session.get_one(files.File, job.adapter_archive_file_id)
        assert stored.archive_members is None
    answer = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter/archive")
    assert hashlib.sha256(answer.content).hexdigest() == job.adapter_sha256
