from __future__ import annotations

import base64
import errno
import hashlib

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.api.transport import file_response
from app.api.transport.file_response import CHUNK_BYTES
from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import make_file, results_csv
from tests.http.conftest import Upload

CONTENT = bytes(range(256)) * 13_001  # several chunks, and no whole number of them


@pytest.fixture
def path(upload: Upload) -> str:
    return f"/v1/files/{upload(CONTENT, purpose='user_data', filename='größe.bin').json()['id']}/content"


def error_of(answer: Response) -> dict[str, str]:
    return dict(answer.json()["error"])


def test_a_failing_disk_is_a_503_and_no_broken_response(
    client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(file_response, "_read", fail)
    answer = client.get(path)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "service_unavailable")
    assert client.head(path).status_code == 200


class TestContent:
    def test_a_download_has_headers_that_verify_it(self, client: TestClient, path: str) -> None:
        assert len(CONTENT) > 2 * CHUNK_BYTES
        answer = client.get(path)
        sha256 = hashlib.sha256(CONTENT)
        digest = f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
        assert answer.content == CONTENT
        assert answer.headers["content-length"] == str(len(CONTENT))
        assert answer.headers["etag"] == f'"sha256-{sha256.hexdigest()}"'
        assert answer.headers["content-digest"] == answer.headers["repr-digest"] == digest
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["cache-control"] == "private, max-age=86400, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "content-encoding" not in answer.headers

    def test_a_filename_is_escaped_in_the_disposition(self, client: TestClient, upload: Upload) -> None:
        for sent, header in (
            ("größe.bin", "attachment; filename=\"gr__e.bin\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.bin"),
            ("a\\b;.csv", "attachment; filename=\"b;.csv\"; filename*=UTF-8''b%3B.csv"),
        ):
            file_id = upload(b"x", purpose="batch", filename=sent).json()["id"]
            assert client.get(f"/v1/files/{file_id}/content").headers["content-disposition"] == header

    def test_a_range_is_a_206(self, client: TestClient, path: str) -> None:
        answer = client.get(path, headers={"Range": "bytes=100-1999999"})
        assert answer.status_code == 206
        assert answer.content == CONTENT[100:2_000_000]
        assert answer.headers["content-length"] == "1999900"
        assert answer.headers["content-range"] == f"bytes 100-1999999/{len(CONTENT)}"
        assert "content-digest" not in answer.headers

    def test_an_invalid_range_is_a_416(self, client: TestClient, path: str) -> None:
        for asked in (f"bytes={len(CONTENT)}-", "bytes=x"):
            answer = client.get(path, headers={"Range": asked})
            assert answer.status_code == 416
            assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
            assert error_of(answer)["code"] == "range_not_satisfiable"

    def test_an_empty_file_is_downloaded(self, client: TestClient, upload: Upload) -> None:
        path = f"/v1/files/{upload(b'', purpose='batch').json()['id']}/content"
        answer = client.get(path)
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
        assert client.get(path, headers={"Range": "bytes=0-"}).status_code == 416

    def test_a_purged_file_is_not_found(self, client: TestClient, path: str, storage: LocalStorage) -> None:
        storage.delete(f"files/{path.split('/')[3]}")
        assert client.get(path).status_code == 404


class TestResultsCsv:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"results_csv_base64": True})

    @pytest.mark.parametrize("steps", [1, 2, 40_000])
    def test_results_are_base64_if_the_operator_says_so(
        self, client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project, steps: int
    ) -> None:
        content = results_csv(steps)
        with transaction(sessions) as session:
            file = make_file(session, storage, project, content, "fine-tune-results", "step_metrics.csv")
        answer = client.get(f"/v1/files/{file.id}/content")
        assert base64.b64decode(answer.content, validate=True) == content
        assert int(answer.headers["content-length"]) == len(answer.content)
        known = client.get(f"/v1/files/{file.id}/content", headers={"If-None-Match": answer.headers["etag"]})
        assert known.status_code == 304

    def test_other_csv_files_are_not_encoded(self, client: TestClient, upload: Upload) -> None:
        file_id = upload(b"a,b\n", purpose="batch", filename="x.csv").json()["id"]
        assert client.get(f"/v1/files/{file_id}/content").content == b"a,b\n"
