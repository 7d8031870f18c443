"""Uploads by parts: OpenAI's contract, and what it leaves open."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.tables import File, UploadPart
from app.db.tables import Upload as UploadRow
from app.domain.files import MAX_PART_BYTES
from app.settings import Settings
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import chat_lines
from tests.sentences import Reviewed

Json = dict[str, Any]
CONTENT = chat_lines(30)
THIRDS = [CONTENT[:700], CONTENT[700:1500], CONTENT[1500:]]


@pytest.fixture
def begin(client: TestClient) -> Callable[..., Json]:
    def post(size_bytes: int = len(CONTENT), **fields: Any) -> Json:
        body = {"filename": "train.jsonl", "purpose": "fine-tune", "mime_type": "text/jsonl", "bytes": size_bytes}
        answer = client.post("/v1/uploads", json=body | fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    return post


@pytest.fixture
def add(client: TestClient) -> Callable[[str, bytes], Response]:
    return lambda upload_id, data: client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", data)})


@pytest.fixture
def complete(client: TestClient) -> Callable[..., Response]:
    def post(upload_id: str, part_ids: Sequence[str], **fields: Any) -> Response:
        return client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": list(part_ids)} | fields)

    return post


Begin = Callable[..., Json]
Add = Callable[[str, bytes], Response]
Complete = Callable[..., Response]


def expire(sessions: Sessions, upload_id: str) -> None:
    with transaction(sessions) as session:
        past = func.clock_timestamp() - timedelta(seconds=1)
        session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(expires_at=past))


def objects(storage: LocalStorage, prefix: str) -> list[str]:
    return sorted(storage.older_than(prefix, float("inf")))


class TestBegin:
    def test_an_upload_begins_with_an_hour(self, begin: Begin) -> None:
        upload = begin()
        assert upload["id"].startswith("upload_")
        assert upload["expires_at"] == upload["created_at"] + 3600
        assert {key: upload[key] for key in ("object", "bytes", "filename", "purpose", "status", "file")} == {
            "object": "upload", "bytes": len(CONTENT), "filename": "train.jsonl", "purpose": "fine-tune",
            "status": "pending", "file": None,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"bytes": (8 << 30) + 1}, "bytes"),
            ({"bytes": 10**30}, None),
            ({"filename": "a\x00b"}, "filename"),
            ({"expires_after": {"anchor": "created_at", "seconds": 10}}, "expires_after.seconds"),
            ({"part_size": 5}, "part_size"),
        ],
    )
    def test_an_upload_that_is_no_file_is_refused(self, client: TestClient, fields: Json, param: str | None) -> None:
        body = {"filename": "a", "purpose": "batch", "mime_type": "text/plain", "bytes": 5} | fields
        assert error_of(client.post("/v1/uploads", json=body))["param"] == param


class TestParts:
    def test_parts_become_the_file_in_the_named_order(
        self, client: TestClient, begin: Begin, add: Add, complete: Complete, storage: LocalStorage
    ) -> None:
        upload_id = begin(expires_after={"anchor": "created_at", "seconds": 3600})["id"]
        last, first, middle = (add(upload_id, THIRDS[number]).json() for number in (2, 0, 1))
        assert (first["object"], first["upload_id"], first["bytes"]) == ("upload.part", upload_id, 700)
        done = complete(
            upload_id, [first["id"], middle["id"], last["id"]], md5=hashlib.md5(CONTENT).hexdigest().upper()
        ).json()
        assert done["status"] == "completed"
        file = done["file"]
        assert (file["bytes"], file["sha256"]) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
        assert (file["line_count"], file["filename"]) == (30, "train.jsonl")
        assert file["expires_at"] == file["created_at"] + 3600
        assert client.get(f"/v1/files/{file['id']}").json() == file
        assert client.get(f"/v1/files/{file['id']}/content").content == CONTENT
        middle_of_it = client.get(f"/v1/files/{file['id']}/content", headers={"Range": "bytes=690-1510"})
        assert middle_of_it.content == CONTENT[690:1511]

    def test_parts_are_listed_in_order(self, client: TestClient, begin: Begin, add: Add) -> None:
        upload_id = begin()["id"]
        parts = [add(upload_id, third).json() for third in THIRDS[:2]]
        listed = client.get(f"/v1/uploads/{upload_id}/parts").json()
        assert (listed["data"], listed["has_more"]) == (parts, False)
        assert client.get(f"/v1/uploads/{upload_id}").json()["received_bytes"] == 1500

    def test_a_part_has_at_most_64_mib(self, client: TestClient, begin: Begin, storage: LocalStorage) -> None:
        upload_id = begin(MAX_PART_BYTES, purpose="batch")["id"]
        url = f"/v1/uploads/{upload_id}/parts"
        assert client.post(url, files={"data": ("upload", b"x" * MAX_PART_BYTES)}).status_code == 200
        for size in (MAX_PART_BYTES + 1, MAX_PART_BYTES + 200_000):
            error = error_of(client.post(url, files={"data": ("upload", b"x" * size)}), 413)
            assert (error["param"], error["code"]) == ("data", "file_too_large")
        assert len(objects(storage, "uploads")) == 1
        assert list(storage.staging.iterdir()) == []

    def test_parts_have_at_most_the_bytes_of_retries(self, begin: Begin, add: Add) -> None:
        upload_id = begin(10, purpose="batch")["id"]
        assert add(upload_id, b"x" * 60_000_000).status_code == 200
        assert "10 bytes" in error_of(add(upload_id, b"x" * 60_000_000))["message"]

    @pytest.mark.parametrize(
        ("request_body", "param", "code"),
        [
            ({"files": {"other": (None, "x")}}, "other", "unknown_parameter"),
            ({"files": {"file": ("a", b"x")}}, "file", "unknown_parameter"),
            ({"content": b"x" * 100}, None, "invalid_multipart"),
            ({"files": [("data", ("a", b"x")), ("data", ("b", b"y"))]}, "data", "invalid_value"),
        ],
    )
    def test_a_part_is_the_form_field_data(
        self, client: TestClient, begin: Begin, storage: LocalStorage, request_body: Json, param: str, code: str
    ) -> None:
        error = error_of(client.post(f"/v1/uploads/{begin()['id']}/parts", **request_body))
        assert (error["param"], error["code"]) == (param, code)
        assert (objects(storage, "uploads"), list(storage.staging.iterdir())) == ([], [])


class TestComplete:
    @pytest.fixture
    def part_ids(self, begin: Begin, add: Add) -> tuple[str, list[str]]:
        upload_id = begin()["id"]
        return upload_id, [add(upload_id, third).json()["id"] for third in THIRDS]

    def test_a_repeated_completion_returns_the_same_file(
        self, complete: Complete, part_ids: tuple[str, list[str]], storage: LocalStorage
    ) -> None:
        first = complete(*part_ids)
        again = complete(*part_ids)
        assert (again.status_code, again.json()) == (200, first.json())
        assert len(objects(storage, "files")) == 1

    def test_a_completion_with_another_list_is_refused(
        self, complete: Complete, part_ids: tuple[str, list[str]]
    ) -> None:
        upload_id, ids = part_ids
        file_id = complete(upload_id, ids).json()["file"]["id"]
        error = error_of(complete(upload_id, ids[::-1]))
        assert error["code"] == "invalid_upload_state"
        assert file_id in error["message"]

    def test_concurrent_completions_make_one_file(
        self, complete: Complete, part_ids: tuple[str, list[str]], storage: LocalStorage, sessions: Sessions
    ) -> None:
        answers: list[Json] = []
        threads = [threading.Thread(target=lambda: answers.append(complete(*part_ids).json())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({json.dumps(answer) for answer in answers}) == 1
        with transaction(sessions) as session:
            assert session.scalar(select(func.count()).select_from(File)) == 1
        assert len(objects(storage, "files")) == 1

    def test_unknown_repeated_and_foreign_parts_are_refused(
        self, begin: Begin, add: Add, complete: Complete, part_ids: tuple[str, list[str]]
    ) -> None:
        upload_id, ids = part_ids
        foreign = add(begin()["id"], THIRDS[0]).json()["id"]
        for wrong in ([*ids[:2], "part_none"], [ids[0], ids[1], ids[1]], [foreign, *ids[1:]]):
            error = error_of(complete(upload_id, wrong))
            assert error["param"] == "part_ids"
            assert any(part_id in error["message"] for part_id in wrong)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "part_ids"),
            ({"part_ids": [7]}, "part_ids.0"),
            ({"part_ids": [], "md5": "abc"}, "md5"),
            ({"part_ids": [], "sha256": "abc"}, "sha256"),
        ],
    )
    def test_a_completion_of_another_shape_is_refused(
        self, client: TestClient, begin: Begin, body: Json, param: str
    ) -> None:
        assert error_of(client.post(f"/v1/uploads/{begin()['id']}/complete", json=body))["param"] == param

    def test_an_upload_of_nothing_is_a_file_but_no_dataset(self, begin: Begin, complete: Complete) -> None:
        file = complete(begin(0, purpose="batch")["id"], []).json()["file"]
        assert (file["bytes"], file["sha256"]) == (0, hashlib.sha256().hexdigest())
        assert "empty" in error_of(complete(begin(0)["id"], []))["message"]

    def test_a_large_dataset_is_checked_in_a_child(
        self, begin: Begin, add: Add, complete: Complete, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def here(*_: object) -> None:
            raise AssertionError("a large file was checked in the API's process")

        monkeypatch.setattr("app.services.files.files.read_lines", here)
        large = chat_lines(4000)
        upload_id = begin(len(large))["id"]
        ids = [add(upload_id, piece).json()["id"] for piece in (large[:200_000], large[200_000:])]
        assert complete(upload_id, ids).json()["file"]["line_count"] == 4000
        broken = large + b'{"a": NaN}\n'
        upload_id = begin(len(broken))["id"]
        ids = [add(upload_id, piece).json()["id"] for piece in (broken[:200_000], broken[200_000:])]
        assert "Line 4001: NaN" in error_of(complete(upload_id, ids))["message"]


class TestTheEnd:
    def test_cancelling_is_final_and_may_be_repeated(self, client: TestClient, begin: Begin) -> None:
        upload_id = begin()["id"]
        first, second = (client.post(f"/v1/uploads/{upload_id}/cancel") for _ in range(2))
        assert first.json()["status"] == "cancelled"
        assert second.json() == first.json()

    @pytest.mark.parametrize("ending", ["cancelled", "completed", "expired"])
    def test_an_ended_upload_takes_nothing_more(
        self, client: TestClient, begin: Begin, add: Add, complete: Complete, sessions: Sessions, ending: str,
        reviewed: Reviewed,
    ) -> None:  # fmt: skip
        upload_id = begin(5, purpose="batch")["id"]
        path, part_id = f"/v1/uploads/{upload_id}", add(upload_id, b"12345").json()["id"]
        calls: dict[str, Callable[[], Any]] = {
            "part": lambda: add(upload_id, b"12345"),
            "content": lambda: client.put(f"{path}/content", content=b"12345"),
            "cancelled": lambda: client.post(f"{path}/cancel"),
            "completed": lambda: complete(upload_id, [part_id]),
            "expired": lambda: expire(sessions, upload_id),
        }
        calls.pop(ending)()
        calls.pop("expired", None)
        assert client.get(path).json()["status"] == ending
        code = "upload_expired" if ending == "expired" else "invalid_upload_state"
        errors = {name: error_of(call()) for name, call in calls.items()}
        assert {name: error["code"] for name, error in errors.items()} == dict.fromkeys(calls, code)
        reviewed(re.sub("(upload_|file-)[0-9a-f]+", r"\1…", errors["part"]["message"]))

    @pytest.mark.parametrize("ending", ["cancel", "expire"])
    def test_an_end_during_a_completion_is_decided_by_the_row(
        self, client: TestClient, begin: Begin, add: Add, complete: Complete, sessions: Sessions,
        storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, ending: str,
    ) -> None:  # fmt: skip
        """Cancelled meanwhile: no file. Only its time ran out: begun in time is in time."""
        upload_id = begin(5, purpose="batch")["id"]
        part_id = add(upload_id, b"12345").json()["id"]
        compose = storage.compose

        def end_it_meanwhile(key: str, parts: Sequence[str]) -> object:
            if ending == "cancel":
                assert client.post(f"/v1/uploads/{upload_id}/cancel").status_code == 200
            else:
                expire(sessions, upload_id)
            return compose(key, parts)

        monkeypatch.setattr(storage, "compose", end_it_meanwhile)
        answer = complete(upload_id, [part_id])
        if ending == "expire":
            assert answer.json()["status"] == "completed"
            return
        assert error_of(answer)["code"] == "invalid_upload_state"
        assert objects(storage, "files") == []
        with transaction(sessions) as session:
            assert session.scalar(select(func.count()).select_from(File)) == 0

    def test_a_cancel_during_a_part_leaves_no_part(
        self, client: TestClient, begin: Begin, add: Add, storage: LocalStorage, sessions: Sessions,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        upload_id = begin(5, purpose="batch")["id"]
        put = storage.put

        def cancel_meanwhile(key: str, source: Any) -> object:
            client.post(f"/v1/uploads/{upload_id}/cancel")
            return put(key, source)

        monkeypatch.setattr(storage, "put", cancel_meanwhile)
        assert error_of(add(upload_id, b"12345"))["code"] == "invalid_upload_state"
        assert objects(storage, "uploads") == []
        with transaction(sessions) as session:
            assert session.scalar(select(func.count()).select_from(UploadPart)) == 0


class TestLimits:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_upload_bytes": 1000, "upload_ttl_seconds": 7200, "max_file_bytes": 10})

    def test_the_operator_sets_the_limits(self, client: TestClient, begin: Begin) -> None:
        assert begin(1000, purpose="batch")["expires_at"] - begin(1000, purpose="batch")["created_at"] >= 7199
        body = {"filename": "a", "purpose": "batch", "mime_type": "text/plain", "bytes": 1001}
        error = error_of(client.post("/v1/uploads", json=body))
        assert (error["param"], error["code"]) == ("bytes", "file_too_large")
        assert "1,000" in error["message"]
