"""The API with its files in a bucket: every way of uploading, downloads, redirects, and a bucket that fails."""

from __future__ import annotations

import hashlib
import random
import secrets
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.storage.s3 import S3Storage
from tests.api_objects import error_of
from tests.factories import chat_lines
from tests.faulty_proxy import Fault, FaultyProxy
from tests.http.conftest import begin_upload
from tests.s3 import S3Server, with_prefix
from tests.serving import serve

CONTENT = random.Random(5).randbytes(7_000_000)
FULL = Fault(methods=("PUT", "POST"), status=507, code="XMinioStorageFull")
DENIED = Fault(methods=("PUT", "POST"), status=403, code="AccessDenied")


@pytest.fixture
def storage(proxy: FaultyProxy, tmp_path: Path) -> S3Storage:
    return S3Storage(with_prefix(proxy.location, secrets.token_hex(4)), tmp_path / "staging", attempts=1)


def upload(client: TestClient, content: bytes = CONTENT, purpose: str = "user_data") -> httpx2.Response:
    return client.post("/v1/files", files={"file": ("data.bin", content)}, data={"purpose": purpose})


class TestFiles:
    def test_a_data_set_is_checked_in_a_child_process(self, client: TestClient) -> None:
        content = chat_lines() * 300
        path = begin_upload(client, len(content), "fine-tune") + "/content"
        assert client.put(path, content=content).json()["file"]["status"] == "processed"

    def test_parts_of_any_size_become_one_file(self, client: TestClient, storage: S3Storage) -> None:
        path = begin_upload(client, len(CONTENT))
        cuts = [0, 10, 6_000_000, 6_000_001, len(CONTENT)]
        pieces = [CONTENT[start:end] for start, end in pairwise(cuts)]
        ids = [client.post(f"{path}/parts", files={"data": ("part", piece)}).json()["id"] for piece in pieces]
        md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
        done = client.post(f"{path}/complete", json={"part_ids": ids, "md5": md5}).raise_for_status().json()
        assert client.get(f"/v1/files/{done['file']['id']}/content").content == CONTENT
        assert list(storage.staging.iterdir()) == []


class TestABucketThatFails:
    @pytest.mark.parametrize(
        ("fault", "status", "code"),
        [(FULL, 507, "storage_full"), (DENIED, 503, "service_unavailable"), (Fault(), 503, "service_unavailable")],
    )
    def test_a_fault_is_an_error_and_the_next_upload_succeeds(
        self, client: TestClient, proxy: FaultyProxy, storage: S3Storage, fault: Fault, status: int, code: str
    ) -> None:
        proxy.fault = replace(fault)
        response = upload(client)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert ("retry-after" in response.headers) == (status == 503)
        assert client.get("/v1/files").json()["data"] == []
        assert list(storage.staging.iterdir()) == []
        proxy.fault = None
        assert upload(client).status_code == 200

    def test_held_out_rows_that_cannot_be_stored_leave_no_file(
        self, client: TestClient, proxy: FaultyProxy, storage: S3Storage
    ) -> None:
        def split() -> httpx2.Response:
            form = {"purpose": "fine-tune", "held_out_percent": "10"}
            return client.post("/v1/files", files={"file": ("chats.jsonl", chat_lines(20))}, data=form)

        proxy.fault = Fault(methods=("PUT",), skip=1, status=403, code="AccessDenied")
        assert split().status_code == 503
        assert client.get("/v1/files").json()["data"] == []
        assert list(storage.staging.iterdir()) == []
        proxy.fault = None
        assert split().raise_for_status().json()["held_out_file_id"]

    def test_a_fault_keeps_the_stored_content(self, client: TestClient, proxy: FaultyProxy) -> None:
        path = begin_upload(client, len(CONTENT)) + "/content"
        first, total = 5_500_000, len(CONTENT)
        header = {"Content-Range": f"bytes 0-{first - 1}/{total}"}
        client.put(path, content=CONTENT[:first], headers=header).raise_for_status()
        header = {"Content-Range": f"bytes {first}-{total - 1}/{total}"}
        proxy.fault = Fault(methods=("PUT",), status=500, code="InternalError")
        assert client.put(path, content=CONTENT[first:], headers=header).status_code == 503
        proxy.fault = None
        assert client.head(path).headers["upload-offset"] == str(first)
        done = client.put(path, content=CONTENT[first:], headers=header).raise_for_status().json()
        assert client.get(f"/v1/files/{done['file']['id']}/content").content == CONTENT

    def test_a_file_that_breaks_off_is_no_short_file(self, client: TestClient, proxy: FaultyProxy) -> None:
        """The lines of a large dataset are checked in a child process, which only sees an early end."""
        content = chat_lines() * 3000
        path = begin_upload(client, len(content), "fine-tune")
        half = len(content) // 2
        parts = [client.post(f"{path}/parts", files={"data": ("p", each)}) for each in (content[:half], content[half:])]
        ids = [part.json()["id"] for part in parts]
        proxy.fault = Fault(methods=("GET",), skip=2, break_after_bytes=0)  # after the join of the parts
        assert error_of(client.post(f"{path}/complete", json={"part_ids": ids}), 503)["code"] == "service_unavailable"
        proxy.fault = None
        assert client.post(f"{path}/complete", json={"part_ids": ids}).json()["status"] == "completed"

    def test_a_failing_bucket_is_not_ready(self, client: TestClient, proxy: FaultyProxy) -> None:
        proxy.fault = Fault(status=403, code="RequestTimeTooSkewed")
        response = client.get("/readyz")
        assert (response.status_code, response.json()["checks"]["storage"]["ok"]) == (503, False)
        proxy.fault = None
        assert client.get("/readyz").json()["checks"]["storage"] == {"ok": True, "required": True, "detail": "writable"}


class TestRedirects:
    @pytest.fixture
    def storage(self, rclone: S3Server, tmp_path: Path) -> S3Storage:
        location = with_prefix(rclone.location, secrets.token_hex(4))
        return S3Storage(replace(location, redirect_endpoint=rclone.endpoint), tmp_path / "staging")

    def test_a_download_redirects_to_the_bucket(self, client: TestClient) -> None:
        file = upload(client).json()
        path = f"/v1/files/{file['id']}/content"
        response = client.get(path, follow_redirects=False)
        assert (response.status_code, response.content) == (307, b"")
        found = httpx2.get(response.headers["location"], headers={"Range": "bytes=10-19"}, trust_env=False)
        assert found.content == CONTENT[10:20]
        url = httpx2.URL(response.headers["location"])
        assert (
            url.params["response-content-disposition"] == "attachment; filename=\"data.bin\"; filename*=UTF-8''data.bin"
        )
        assert int(url.params["X-Amz-Expires"]) == 900
        altered = str(url.copy_set_param("response-content-type", "text/html"))
        assert httpx2.get(altered, trust_env=False).status_code == 403

    def test_conditional_requests_are_not_redirected(self, client: TestClient) -> None:
        """A head, our ETags, and a range that depends on one."""
        path = f"/v1/files/{upload(client).json()['id']}/content"
        head = client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
        etag = head.headers["etag"]
        assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
        ranged = client.get(path, headers={"If-Range": etag, "Range": "bytes=0-9"})
        assert (ranged.status_code, ranged.content) == (206, CONTENT[:10])

    def test_the_official_client_follows_redirects_without_its_key(
        self, settings: Settings, storage: S3Storage, api_key: str
    ) -> None:
        with serve(create_app(settings, storage=storage)) as server:
            client = openai.OpenAI(base_url=server.url, api_key=api_key)
            file = client.files.create(file=("data.bin", CONTENT), purpose="user_data")
            assert client.files.content(file.id).content == CONTENT
