from __future__ import annotations

import hashlib

from starlette.testclient import TestClient

from app.api.schemas.records import AdapterBody
from app.db.tables import Job
from tests.api_objects import error_of

JOBS = "/v1/fine_tuning/jobs"


class TestManifest:
    def test_an_adapter_has_files_with_digests(self, client: TestClient, succeeded: Job) -> None:
        body = client.get(f"{JOBS}/{succeeded.id}/adapter").json()
        AdapterBody.model_validate(body)
        assert {file["filename"] for file in body["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
        for file in [*body["files"], body["archive"]]:
            content = client.get(f"/v1/files/{file['id']}/content").content
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])

    def test_a_job_without_an_adapter_has_none(self, client: TestClient, job: Job) -> None:
        for path in (f"{JOBS}/{job.id}/adapter", f"{JOBS}/{job.id}/adapter/archive"):
            assert error_of(client.get(path), 404)["code"] == "adapter_not_found"

    def test_a_deleted_file_of_an_adapter_is_named(self, client: TestClient, succeeded: Job) -> None:
        file_id = client.get(f"{JOBS}/{succeeded.id}").json()["adapter"]["archive_file_id"]
        client.delete(f"/v1/files/{file_id}")
        answer = client.get(f"{JOBS}/{succeeded.id}/adapter")
        assert answer.status_code == 404
        assert file_id in answer.json()["error"]["message"]
