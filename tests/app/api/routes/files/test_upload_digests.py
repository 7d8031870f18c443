"""The SHA-256 of an upload's file is right however it came, and its bytes are read again only where they have to be."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx2
import pytest
from httpx2 import Client
from starlette.testclient import TestClient

from app.api.transport import resumable_upload
from app.storage import LocalStorage
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
def begin(client: TestClient) -> Callable[[], str]:
    body = {"filename": "a", "purpose": "batch", "mime_type": "text/plain", "bytes": len(DATA)}
    return lambda: f"/v1/uploads/{client.post('/v1/uploads', json=body).json()['id']}"


@pytest.fixture
def elsewhere(live_server: LiveServer, api_key: str) -> Iterator[Client]:
    """Another API process, as far as memory goes."""
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx2.Client(base_url=live_server.root, headers=headers, trust_env=False) as client:
        yield client


Begin = Callable[[], str]


def add(client: Client, upload: str, data: bytes) -> str:
    return str(client.post(f"{upload}/parts", files={"data": ("part", data)}).json()["id"])


def complete(client: Client, upload: str, part_ids: list[str] | None, **fields: Any) -> Json:
    body = fields if part_ids is None else {"part_ids": part_ids} | fields
    return dict(client.post(f"{upload}/complete", json=body).json())


def put(client: Client, upload: str, start: int, end: int) -> Json:
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(DATA)}"}
    return dict(client.put(f"{upload}/content", content=DATA[start:end], headers=headers).json())


class TestParts:
    def test_in_their_order_are_not_read_again(self, client: TestClient, begin: Begin, reads: list[int]) -> None:
        upload = begin()
        ids = [add(client, upload, third) for third in THIRDS]
        assert complete(client, upload, ids)["file"]["sha256"] == SHA256
        assert sum(reads) == 0

    def test_have_their_own_digest_each(self, client: TestClient, begin: Begin) -> None:
        upload = begin()
        for third in THIRDS:
            add(client, upload, third)
        listed = client.get(f"{upload}/parts").json()["data"]
        assert [part["sha256"] for part in listed] == [hashlib.sha256(third).hexdigest() for third in THIRDS]

    def test_in_another_order_are_read(self, client: TestClient, begin: Begin, reads: list[int]) -> None:
        upload = begin()
        last, first, middle = (add(client, upload, THIRDS[number]) for number in (2, 0, 1))
        assert complete(client, upload, [first, middle, last])["file"]["sha256"] == SHA256
        assert sum(reads) == len(DATA)

    def test_that_were_sent_again_are_read(self, client: TestClient, begin: Begin, reads: list[int]) -> None:
        upload = begin()
        first, _lost, middle, last = (add(client, upload, THIRDS[number]) for number in (0, 1, 1, 2))
        assert complete(client, upload, [first, middle, last])["file"]["sha256"] == SHA256
        assert sum(reads) == len(DATA)

    def test_are_read_from_the_first_that_another_process_took(
        self, client: TestClient, elsewhere: Client, begin: Begin, reads: list[int]
    ) -> None:
        upload = begin()
        ids = [add(client, upload, THIRDS[0]), add(client, upload, THIRDS[1]), add(elsewhere, upload, THIRDS[2])]
        assert complete(client, upload, ids)["file"]["sha256"] == SHA256
        assert sum(reads) == len(THIRDS[2])

    def test_are_read_by_a_process_that_took_none(
        self, client: TestClient, elsewhere: Client, begin: Begin, reads: list[int]
    ) -> None:
        upload = begin()
        ids = [add(elsewhere, upload, third) for third in THIRDS]
        assert complete(client, upload, ids)["file"]["sha256"] == SHA256
        assert sum(reads) == len(DATA)

    def test_are_read_for_an_md5_without_counting_twice(
        self, client: TestClient, elsewhere: Client, begin: Begin, reads: list[int]
    ) -> None:
        upload = begin()
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

    def test_is_not_read_again_even_after_a_break(self, client: TestClient, begin: Begin, reads: list[int]) -> None:
        upload = begin()
        assert put(client, upload, 0, 1_500_000)["status"] == "pending"
        assert put(client, upload, 1_500_000, len(DATA))["file"]["sha256"] == SHA256
        assert sum(reads) == 0

    def test_that_another_process_began_is_read(
        self, client: TestClient, elsewhere: Client, begin: Begin, reads: list[int]
    ) -> None:
        upload = begin()
        put(elsewhere, upload, 0, 1_500_000)
        assert put(client, upload, 1_500_000, len(DATA))["file"]["sha256"] == SHA256
        assert sum(reads) == len(DATA)

    def test_whose_beginning_was_replaced_elsewhere_is_read(
        self, client: TestClient, elsewhere: Client, begin: Begin, reads: list[int]
    ) -> None:
        """What is remembered here has the same length, and is of pieces that are gone."""
        upload, others = begin(), b"x" * 1_500_000
        put(client, upload, 0, len(others))
        assert elsewhere.put(f"{upload}/content", content=iter([others])).status_code == 400  # kept as far as it came
        done = put(client, upload, len(others), len(DATA))
        assert done["file"]["sha256"] == hashlib.sha256(others + DATA[len(others) :]).hexdigest()
        assert sum(reads) == len(DATA)
