from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.api.transport import request_bodies
from app.db.engine import Sessions, transaction
from app.db.tables import File, Project
from app.settings import Settings
from app.storage import LocalStorage, StoredObject
from tests.deadline import until
from tests.factories import chat_lines, make_key
from tests.http.conftest import Upload
from tests.serving import LiveServer

STALLED = 12  # uploads at once, more than the threads that store
GOOD = b'{"prompt": "a", "completion": "b"}\n'


def left_on_disk(storage: LocalStorage) -> list[str]:
    return [path.name for path in storage.root.rglob("*") if path.is_file()]


def rows(sessions: Sessions) -> int:
    with transaction(sessions) as session:
        return session.query(File).count()


class TestUpload:
    def test_an_upload_is_stored_byte_by_byte(self, upload: Upload, client: TestClient, storage: LocalStorage) -> None:
        content = chat_lines()
        body = upload(content).json()
        assert body["object"] == "file"
        assert body["bytes"] == len(content)
        assert body["sha256"] == hashlib.sha256(content).hexdigest()
        assert (body["purpose"], body["status"], body["line_count"]) == ("fine-tune", "processed", 12)
        assert client.get(f"/v1/files/{body['id']}/content").content == content
        assert left_on_disk(storage) == [body["id"]]

    @pytest.mark.parametrize("purpose", ["batch", "evals"])
    def test_another_purpose_takes_any_bytes(self, upload: Upload, purpose: str) -> None:
        for content in (b"\x00\xff not JSON", b"", b'{"a": 1}\n'):
            answer = upload(content, purpose=purpose)
            assert answer.status_code == 200
            assert answer.json()["line_count"] is None

    @pytest.mark.parametrize(
        ("sent", "kept"), [("../../etc/passwd", "passwd"), ("x" * 300, "x" * 255), ("..", "upload")]
    )
    def test_a_filename_is_never_a_path(self, upload: Upload, storage: LocalStorage, sent: str, kept: str) -> None:
        body = upload(GOOD, filename=sent).json()
        assert body["filename"] == kept
        assert left_on_disk(storage) == [body["id"]]

    @pytest.mark.parametrize("seconds", ["10", "2592001", "1e4", "9" * 30, None])
    def test_an_expiry_out_of_bounds_is_refused(self, upload: Upload, sessions: Sessions, seconds: str | None) -> None:
        fields = {"expires_after[anchor]": "created_at"} | (
            {} if seconds is None else {"expires_after[seconds]": seconds}
        )
        answer = upload(GOOD, **fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "expires_after[seconds]"
        assert rows(sessions) == 0

    def test_another_anchor_is_refused(self, upload: Upload) -> None:
        fields = {"expires_after[anchor]": "last_used_at", "expires_after[seconds]": "3600"}
        assert upload(GOOD, **fields).json()["error"]["param"] == "expires_after[anchor]"

    def test_a_missing_purpose_or_file_is_refused(self, client: TestClient) -> None:
        missing = client.post("/v1/files", files={"file": b"x"})
        unknown = client.post("/v1/files", data={"purpose": "fun"}, files={"file": b"x"})
        no_file = client.post("/v1/files", files={"purpose": (None, b"batch")})
        for answer, param in ((missing, "purpose"), (unknown, "purpose"), (no_file, "file")):
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert "fine-tune" in unknown.json()["error"]["message"]


class TestUploadOfATable:
    @pytest.mark.parametrize(("purpose", "code"), [("fine-tune", "invalid_training_file"), ("evals", "invalid_value")])
    @pytest.mark.parametrize("content", [b"text,label\n" + b"Hello,x\n" * 40, b"PK\x03\x04\x14", b'[{"prompt": "a"}]'])
    def test_a_table_is_refused_as_a_dataset(
        self, upload: Upload, storage: LocalStorage, content: bytes, purpose: str, code: str
    ) -> None:
        answer = upload(content, purpose=purpose)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "file", code)
        assert left_on_disk(storage) == []


class TestUploadOfADataset:
    @pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
    def test_an_empty_dataset_is_refused(self, upload: Upload, content: bytes) -> None:
        assert "empty" in upload(content).json()["error"]["message"]

    def test_the_schema_of_lines_is_not_checked(self, upload: Upload) -> None:
        assert upload(b'{"what": "ever"}\n').status_code == 200


class TestLimits:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_file_bytes": 100_000, "max_line_bytes": 10_000})

    def test_a_file_of_exactly_the_limit_is_taken(self, upload: Upload) -> None:
        assert upload(b"x" * 100_000, purpose="batch").status_code == 200

    def test_a_file_over_the_limit_leaves_nothing(
        self, upload: Upload, sessions: Sessions, storage: LocalStorage
    ) -> None:
        for size in (100_001, 1_000_000):
            answer = upload(b"x" * size, purpose="batch")
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "file_too_large"
            assert "100,000 bytes" in answer.json()["error"]["message"]
        assert (rows(sessions), left_on_disk(storage)) == (0, [])

    def test_a_line_over_the_limit_is_named(self, upload: Upload) -> None:
        message = upload(GOOD + b'{"prompt": "' + b"x" * 10_000 + b'"}\n').json()["error"]["message"]
        assert "Line 2: longer" in message

    def test_a_declared_length_over_the_limit_is_refused_unread(self, live_server: LiveServer, api_key: str) -> None:
        head = request_head(live_server, api_key, content_length=10**12)
        with raw_connection(live_server) as connection:
            connection.sendall(head)
            assert connection.recv(100).startswith(b"HTTP/1.1 413")

    def test_a_form_that_goes_on_after_its_end_is_refused(self, client: TestClient, storage: LocalStorage) -> None:
        def long_after_the_end() -> Iterator[bytes]:
            yield FORM + b"x\r\n--XX--\r\n"
            yield from [b" " * 50_000] * 10

        headers = {"Content-Type": "multipart/form-data; boundary=XX"}
        assert client.post("/v1/files", content=long_after_the_end(), headers=headers).status_code == 413
        assert left_on_disk(storage) == []


def raw_connection(server: LiveServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=30)


def request_head(server: LiveServer, api_key: str, content_length: int) -> bytes:
    lines = [
        "POST /v1/files HTTP/1.1",
        f"Host: {server.host}",
        f"Authorization: Bearer {api_key}",
        "Content-Type: multipart/form-data; boundary=XX",
        f"Content-Length: {content_length}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)


class TestOverASocket:
    def test_an_upload_cut_in_half_leaves_nothing(
        self, live_server: LiveServer, api_key: str, sessions: Sessions, storage: LocalStorage
    ) -> None:
        with raw_connection(live_server) as connection:
            connection.sendall(request_head(live_server, api_key, 50_000_000) + FORM + b"x" * 3_000_000)
            wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in storage.staging.iterdir()))
        wait_for(lambda: left_on_disk(storage) == [])
        assert rows(sessions) == 0

    def test_a_wrong_key_is_refused_before_the_body_is_sent(
        self, live_server: LiveServer, storage: LocalStorage
    ) -> None:
        with raw_connection(live_server) as connection:
            connection.sendall(request_head(live_server, "wrong", 100_000_000))
            assert connection.recv(100).startswith(b"HTTP/1.1 401")
        assert left_on_disk(storage) == []

    def test_a_line_of_100_mb_costs_no_more_memory_than_a_legal_one(
        self, live_server: LiveServer, api_key: str, storage: LocalStorage
    ) -> None:
        head, chunk, chunks, tail = FORM.replace(b"batch", b"fine-tune"), b"x" * (1 << 20), 100, b"\r\n--XX--\r\n"
        length = len(head) + len(chunk) * chunks + len(tail)
        tracemalloc.start()
        try:
            with raw_connection(live_server) as connection:
                connection.sendall(request_head(live_server, api_key, length) + head)
                for _ in range(chunks):
                    connection.sendall(chunk)
                connection.sendall(tail)
                answer = read_json(connection)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert "Line 1: longer" in answer["error"]["message"]
        assert peak < 32 << 20
        assert left_on_disk(storage) == []


def wait_for(condition: Callable[[], bool]) -> None:
    """Until the server's thread got there; pytest's own timeout ends it."""
    while not condition():
        os.sched_yield()


def read_json(connection: socket.socket) -> dict[str, dict[str, str]]:
    with connection.makefile("rb") as file:
        headers = list(iter(lambda: file.readline().strip().lower(), b""))
        length = next(int(line.split(b":")[1]) for line in headers if line.startswith(b"content-length"))
        return dict(json.loads(file.read(length)))


class TestAFullDisk:
    def test_a_failed_insert_of_the_row_deletes_the_stored_bytes(
        self, upload: Upload, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_arguments: object, **_columns: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("app.services.files.files.files.insert", fail)
        assert upload().status_code == 507
        assert left_on_disk(storage) == []


class TestStalledStorage:
    @pytest.mark.parametrize(("stalled_bytes", "another_key"), [(100, True), (200, False)], ids=["small", "large"])
    def test_uploads_that_wait_leave_a_thread_for_a_small_one(
        self,
        client: TestClient,
        upload: Upload,
        storage: LocalStorage,
        sessions: Sessions,
        project: Project,
        monkeypatch: pytest.MonkeyPatch,
        stalled_bytes: int,
        another_key: bool,
    ) -> None:
        """Of another key beside small uploads, of the same key beside large ones."""
        resumed, put = threading.Event(), LocalStorage.put

        def stall(self: LocalStorage, key: str, source: Path) -> StoredObject:
            assert source.stat().st_size != stalled_bytes or resumed.wait(60)
            return put(self, key, source)

        def staged() -> int:
            return sum(path.stat().st_size == stalled_bytes for path in storage.staging.iterdir())

        monkeypatch.setattr(LocalStorage, "put", stall)
        monkeypatch.setattr(request_bodies, "MAX_SMALL_FILE_BYTES", 150)
        with ThreadPoolExecutor(STALLED + 1) as pool:
            try:
                stalled = [pool.submit(upload, b"x" * stalled_bytes, "batch") for _ in range(STALLED)]
                until(lambda: staged() == STALLED, "all uploads are staged")
                if another_key:
                    with transaction(sessions) as session:
                        client.headers["Authorization"] = f"Bearer {make_key(session, project, 'another')}"
                assert pool.submit(upload, b"x", "batch").result(30).status_code == 200
            finally:
                resumed.set()
            assert {each.result(60).status_code for each in stalled} == {200}
