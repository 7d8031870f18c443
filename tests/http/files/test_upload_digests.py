"""The SHA-256 of an upload's file is right however it came, and its bytes are read again only where they have to be."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import pytest
from httpx2 import Client
from starlette.testclient import TestClient

from app.api.transport import resumable_upload
from app.storage import LocalStorage
from tests.http.conftest import begin_upload
from tests.serving import LiveServer

Json = dict[str, Any]
DATA = random.Random(1).randbytes(3_500_000)
THIRDS = [DATA[:1_000_000], DATA[1_000_000:2_200_000], DATA[2_200_000:]]
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def reads(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a stored object took."""
    taken: list[int] = []

    class Counting(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            taken.append(len(data))
            return data

    opened = storage.open
    monkeypatch.setattr(storage, "open", lambda key: Counting(cast(io.BufferedReader, opened(key)).detach()))
    return taken


@pytest.fixture
def elsewhere(live_server: LiveServer, api_key: str) -> Iterator[Client]:
    """Another API process, as far as memory goes."""
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx2.Client(base_url=live_server.root, headers=headers, trust_env=False) as client:
        yield client


def add(client: Client, upload: str, data: bytes) -> str:
    return str(client.post(f"{upload}/parts", files={"data": ("part", data)}).json()["id"])


def complete(client: Client, upload: str, part_ids: list[str] | None, **fields: Any) -> Json:
    body = fields if part_ids is None else {"part_ids": part_ids} | fields
    return dict(client.post(f"{upload}/complete", json=body).json())


def put(client: Client, upload: str, start: int, end: int) -> Json:
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(DATA)}"}
    return dict(client.put(f"{upload}/content", content=DATA[start:end], headers=headers).json())


class TestParts:
    @pytest.mark.parametrize(
        ("sent", "chosen", "by_another", "read_bytes"),
        [
            ((0, 1, 2), (0, 1, 2), (), 0),
            ((2, 0, 1), (1, 2, 0), (), len(DATA)),
            ((0, 1, 1, 2), (0, 2, 3), (), len(DATA)),
            ((0, 1, 2), (0, 1, 2), (2,), len(THIRDS[2])),
            ((0, 1, 2), (0, 1, 2), (0, 1, 2), len(DATA)),
        ],
        ids=["in order", "in another order", "sent again", "the last by another process", "by another process"],
    )
    def test_only_parts_without_a_digest_are_read(
        self,
        client: TestClient,
        elsewhere: Client,
        reads: list[int],
        sent: tuple[int, ...],
        chosen: tuple[int, ...],
        by_another: tuple[int, ...],
        read_bytes: int,
    ) -> None:
        upload = begin_upload(client, len(DATA))
        ids = [add(elsewhere if each in by_another else client, upload, THIRDS[each]) for each in sent]
        assert complete(client, upload, [ids[each] for each in chosen])["file"]["sha256"] == SHA256
        assert sum(reads) == read_bytes

    def test_each_part_has_a_digest(self, client: TestClient) -> None:
        upload = begin_upload(client, len(DATA))
        for third in THIRDS:
            add(client, upload, third)
        listed = client.get(f"{upload}/parts").json()["data"]
        assert [part["sha256"] for part in listed] == [hashlib.sha256(third).hexdigest() for third in THIRDS]

    def test_an_md5_reads_all_parts_once(self, client: TestClient, elsewhere: Client, reads: list[int]) -> None:
        upload = begin_upload(client, len(DATA))
        ids = [add(client, upload, THIRDS[0]), add(client, upload, THIRDS[1]), add(elsewhere, upload, THIRDS[2])]
        assert complete(client, upload, ids, md5="0" * 32)["error"]["code"] == "md5_mismatch"
        reads.clear()
        done = complete(client, upload, ids, md5=hashlib.md5(DATA).hexdigest())
        assert done["file"]["sha256"] == SHA256
        assert sum(reads) == len(DATA)


class TestAStream:
    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resumable_upload, "CHUNK_BYTES", 400_000)

    def test_a_stream_is_not_read_again_after_a_break(self, client: TestClient, reads: list[int]) -> None:
        upload = begin_upload(client, len(DATA))
        assert put(client, upload, 0, 1_500_000)["status"] == "pending"
        assert put(client, upload, 1_500_000, len(DATA))["file"]["sha256"] == SHA256
        assert sum(reads) == 0

    def test_a_stream_begun_by_another_process_is_read(
        self, client: TestClient, elsewhere: Client, reads: list[int]
    ) -> None:
        upload = begin_upload(client, len(DATA))
        put(elsewhere, upload, 0, 1_500_000)
        assert put(client, upload, 1_500_000, len(DATA))["file"]["sha256"] == SHA256
        assert sum(reads) == len(DATA)

    def test_a_stream_with_a_replaced_beginning_is_read(
        self, client: TestClient, elsewhere: Client, reads: list[int]
    ) -> None:
        """What is remembered here has the same length, and is of pieces that are gone."""
        upload, others = begin_upload(client, len(DATA)), b"x" * 1_500_000
        put(client, upload, 0, len(others))
        assert elsewhere.put(f"{upload}/content", content=iter([others])).status_code == 400  # kept as far as it came
        done = put(client, upload, len(others), len(DATA))
        assert done["file"]["sha256"] == hashlib.sha256(others + DATA[len(others) :]).hexdigest()
        assert sum(reads) == len(DATA)
