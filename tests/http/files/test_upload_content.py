"""The content of an upload as one stream: what curl sends, what a break leaves, who may go on."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.domain.files import MAX_PART_BYTES
from app.errors import BadRequest
from app.services.files import uploads
from app.services.files.files import StagedFile
from app.settings import Settings
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.deadline import until
from tests.factories import chat_lines
from tests.http.conftest import begin_upload
from tests.serving import LiveServer

CONTENT = chat_lines(40)
SIZE = len(CONTENT)
Begin = Callable[..., str]


@pytest.fixture
def begin(client: TestClient) -> Begin:
    """The URL of a new upload's content."""

    def post(size_bytes: int = SIZE, purpose: str = "fine-tune") -> str:
        return f"{begin_upload(client, size_bytes, purpose)}/content"

    return post


@pytest.fixture
def put(client: TestClient) -> Callable[..., Response]:
    def send(url: str, data: Any, content_range: str | None = None) -> Response:
        headers = {"Content-Range": content_range} if content_range else {}
        return client.put(url, content=data, headers=headers)

    return send


Put = Callable[..., Response]


def offset(client: TestClient, url: str) -> int:
    answer = client.head(url)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


class TestPut:
    def test_the_whole_content_completes_the_upload(self, client: TestClient, begin: Begin, put: Put) -> None:
        url = begin()
        assert offset(client, url) == 0
        done = put(url, CONTENT).json()
        assert (done["status"], done["received_bytes"]) == ("completed", SIZE)
        assert done["file"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
        assert done["file"]["line_count"] == 40
        head = client.head(url)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == (str(SIZE), str(SIZE))
        assert head.headers["upload-complete"] == "?1"

    def test_ranges_continue_the_content(self, client: TestClient, begin: Begin, put: Put) -> None:
        url = begin()
        first = put(url, CONTENT[:1000], f"bytes 0-999/{SIZE}").json()
        assert (first["status"], first["received_bytes"], first["file"]) == ("pending", 1000, None)
        assert client.head(url).headers["upload-complete"] == "?0"
        assert put(url, CONTENT[1000:2000], "bytes 1000-1999/*").json()["received_bytes"] == 2000
        done = put(url, CONTENT[2000:], f"bytes 2000-{SIZE - 1}/{SIZE}").json()
        assert done["file"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()

    def test_content_without_a_range_begins_anew(
        self, client: TestClient, begin: Begin, put: Put, storage: LocalStorage
    ) -> None:
        url = begin()
        put(url, b"x" * 1000, f"bytes 0-999/{SIZE}")
        assert put(url, CONTENT).json()["file"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
        assert len(list(storage.older_than("uploads", float("inf")))) == 1

    def test_a_bad_dataset_may_be_sent_again(self, begin: Begin, put: Put) -> None:
        url = begin()
        assert "Line 41: " in error_of(put(begin(SIZE + 5), CONTENT + b"oops\n"))["message"]
        assert "Line 1: " in error_of(put(url, b"x" * SIZE))["message"]
        assert put(url, CONTENT).json()["status"] == "completed"

    def test_whole_content_can_be_completed_by_a_second_call(
        self, client: TestClient, begin: Begin, put: Put, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the process died between the last byte and the file."""
        url = begin()
        with monkeypatch.context() as patch:
            patch.setattr("app.services.files.upload_completion.complete", lambda *_: 1 / 0)
            assert put(url, CONTENT).status_code == 500
        assert offset(client, url) == SIZE
        done = client.post(url.replace("/content", "/complete"), json={}).json()
        assert done["file"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()

    @pytest.mark.parametrize(
        ("content_range", "data", "code"),
        [
            (f"bytes 5-{SIZE - 1}/{SIZE}", CONTENT[5:], "upload_offset_mismatch"),
            (f"bytes 0-9/{SIZE + 1}", CONTENT[:10], "invalid_value"),
            (f"bytes 0-{SIZE}/*", CONTENT + b"x", "invalid_value"),
            (f"bytes 0-9/{SIZE}", CONTENT[:9], "upload_size_mismatch"),
            (f"bytes 0-9/{SIZE}", CONTENT[:11], "upload_size_mismatch"),
            ("bytes 9-5/20", b"", "invalid_value"),
            ("bytes */20", b"", "invalid_value"),
            ("lines 0-5/20", b"", "invalid_value"),
            (None, CONTENT[:-1], "upload_size_mismatch"),
            (None, CONTENT + b"x", "upload_size_mismatch"),
        ],
    )
    def test_a_range_that_does_not_fit_is_refused(
        self, client: TestClient, begin: Begin, put: Put, content_range: str | None, data: bytes, code: str
    ) -> None:
        url = begin()
        error = error_of(put(url, data, content_range))
        assert (error["param"], error["code"]) == ("Content-Range", code)
        assert offset(client, url) == 0

    def test_chunked_content_has_the_declared_size(self, client: TestClient, begin: Begin, put: Put) -> None:
        url = begin()
        for data, stored_bytes in (([CONTENT, b"x"], None), ([CONTENT[:1000]], 1000)):
            url = begin()
            assert error_of(put(url, iter(data)))["code"] == "upload_size_mismatch"
            assert stored_bytes is None or offset(client, url) == stored_bytes


class TestTwoWriters:
    def test_only_the_latest_writer_adds_pieces(
        self, client: TestClient, begin: Begin, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        """A connection that broke may go on sending into the void of our buffers; it may not add to what follows."""
        upload_id = begin().split("/")[3]

        def staged(data: bytes) -> StagedFile:
            file = StagedFile(storage.staging, MAX_PART_BYTES)
            file.write(data)
            return file

        old = uploads.begin_writing(sessions, storage, project.id, upload_id, None)
        assert uploads.add_piece(sessions, storage, old, staged(CONTENT[:100]), 0).bytes == 100
        new = uploads.begin_writing(sessions, storage, project.id, upload_id, 100)
        left = staged(CONTENT[100:200])
        with pytest.raises(BadRequest, match="A later request"):
            uploads.add_piece(sessions, storage, old, left, 100)
        assert uploads.add_piece(sessions, storage, new, staged(CONTENT[100:200]), 100).start == 100
        with transaction(sessions) as session:
            assert uploads.progress(session, project.id, upload_id)[1] == 200
        assert len(list(storage.older_than("uploads", float("inf")))) == 2


class TestOverASocket:
    def request(self, server: LiveServer, api_key: str, url: str, length: int) -> socket.socket:
        connection = socket.create_connection((server.host, server.port), timeout=30)
        lines = [
            f"PUT {url} HTTP/1.1", f"Host: {server.host}", f"Authorization: Bearer {api_key}",
            f"Content-Length: {length}", "", "",
        ]  # fmt: skip
        connection.sendall("\r\n".join(lines).encode())
        return connection

    def test_content_before_a_break_is_kept(
        self, client: TestClient, live_server: LiveServer, api_key: str, begin: Begin, put: Put, storage: LocalStorage
    ) -> None:
        data = bytes(range(256)) * 20_000
        url = begin(len(data), purpose="batch")
        with self.request(live_server, api_key, url, len(data)) as connection:
            connection.sendall(data[:3_500_000])
            # The server writes batches of 1 MiB and the rest of a read, so two of them are certain.
            until(
                lambda: any(path.stat().st_size >= 2 << 20 for path in storage.staging.iterdir()), "the server has it"
            )
        until(lambda: offset(client, url) > 0, "the server has it")
        there = offset(client, url)
        assert 2 << 20 <= there <= 3_500_000
        done = put(url, data[there:], f"bytes {there}-{len(data) - 1}/{len(data)}").json()
        assert done["file"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert list(storage.staging.iterdir()) == []

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_curl_needs_two_commands_and_one_more_after_a_break(
        self, live_server: LiveServer, api_key: str, client: TestClient, begin: Begin, put: Put, tmp_path: Path
    ) -> None:
        path = tmp_path / "train.jsonl"
        path.write_bytes(CONTENT)
        curl = ["curl", "--silent", "--fail-with-body", "--header", f"Authorization: Bearer {api_key}"]
        whole = begin()
        done = subprocess.run([*curl, "-T", path, live_server.root + whole], capture_output=True, text=True, check=True)
        assert '"status":"completed"' in done.stdout
        broken = begin()
        put(broken, CONTENT[:777], f"bytes 0-776/{SIZE}")
        head = subprocess.run([*curl, "-I", live_server.root + broken], capture_output=True, text=True, check=True)
        assert "upload-offset: 777" in head.stdout.lower()
        command = [*curl, "-C", "777", "-T", path, live_server.root + broken]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert hashlib.sha256(CONTENT).hexdigest() in done.stdout


class TestAClientThatFallsSilent:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"body_idle_seconds": 0.3})

    def test_a_silent_client_is_closed_and_its_content_kept(
        self, client: TestClient, live_server: LiveServer, api_key: str, begin: Begin, storage: LocalStorage
    ) -> None:
        url = begin()
        with TestOverASocket().request(live_server, api_key, url, SIZE) as connection:
            connection.sendall(CONTENT[:500])
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        until(lambda: offset(client, url) == 500, "the server has it")
        assert list(storage.staging.iterdir()) == []


class TestManySilentClients:
    def test_silent_clients_hold_no_thread(self, live_server: LiveServer, api_key: str, begin: Begin) -> None:
        """Fifty of them are more than there are threads, and another client is answered all the same."""
        url = begin()
        with ExitStack() as connections:
            for _ in range(50):
                connections.enter_context(TestOverASocket().request(live_server, api_key, url, SIZE))
            headers = {"Authorization": f"Bearer {api_key}"}
            answer = httpx2.get(f"{live_server.url}/files", headers=headers, timeout=20, trust_env=False)
        assert answer.status_code == 200
