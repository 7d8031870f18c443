"""Where imported files come from, in the file object and in the jobs that use the file; and the names of files."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.files import FileBody
from app.api.schemas.jobs import JobBody
from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.storage import LocalStorage
from tests.factories import make_succeeded_job

ORIGIN: dict[str, Any] = {"service": "openai", "id": "file-abc", "filename": "train.jsonl", "created_at": 1_740_000_000}


def set_origin(client: TestClient, file_id: str, origin: Any) -> Any:
    return client.post(f"/v1/files/{file_id}", json={"origin": origin})


def test_an_origin_is_set_and_removed(client: TestClient, training_file: str) -> None:
    assert client.get(f"/v1/files/{training_file}").json()["origin"] is None
    changed = set_origin(client, training_file, ORIGIN).json()
    FileBody.model_validate(changed)
    assert changed["origin"] == ORIGIN | {"imported_at": None}
    assert client.get(f"/v1/files/{training_file}").json() == changed
    assert set_origin(client, training_file, None).json()["origin"] is None


def test_an_uploaded_file_is_renamed(client: TestClient, training_file: str) -> None:
    set_origin(client, training_file, ORIGIN)
    renamed = client.post(f"/v1/files/{training_file}", json={"filename": "../support tickets.jsonl"}).json()
    assert (renamed["filename"], renamed["origin"]["id"]) == ("support tickets.jsonl", ORIGIN["id"])
    assert client.get(f"/v1/files/{training_file}").json() == renamed


def test_the_file_of_a_job_keeps_its_name(
    client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
    answer = client.post(f"/v1/files/{job.adapter_archive_file_id}", json={"filename": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "filename")


@pytest.mark.usefixtures("base_model")
def test_jobs_and_clones_show_the_origin_of_their_file(client: TestClient, training_file: str) -> None:
    request = {"model": "tiny", "training_file": training_file}
    assert client.post("/v1/fine_tuning/jobs", json=request).json()["file_origins"] is None
    set_origin(client, training_file, ORIGIN)
    job = client.post("/v1/fine_tuning/jobs", json=request).json()
    JobBody.model_validate(job)
    assert job["file_origins"] == {"training_file": ORIGIN | {"imported_at": None}, "validation_file": None}
    clone = client.post(f"/v1/fine_tuning/jobs/{job['id']}/clone", json={}).json()
    assert clone["file_origins"] == job["file_origins"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"origin": {"service": "openai"}}, "origin.id"),
        ({"origin": ORIGIN | {"url": "x"}}, "origin.url"),
        ({"origin": ORIGIN | {"created_at": -1}}, "origin.created_at"),
        ({"origin": ORIGIN, "filename": ""}, "filename"),
        ({"bytes": 1}, "bytes"),
    ],
)
def test_an_origin_of_another_shape_is_refused(
    client: TestClient, training_file: str, body: dict[str, Any], param: str
) -> None:
    answer = client.post(f"/v1/files/{training_file}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
