"""The client of one session: bodies by ETag, within a bound."""

from __future__ import annotations

import asyncio

import httpx2

from app.web.api_client import MAX_CACHED_BYTES, ApiClient


class Documents:
    """An API whose documents never change."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        status = 304 if "if-none-match" in request.headers else 200
        self.statuses.append(status)
        text = "x" * int(request.url.params["length"])
        return httpx2.Response(status, headers={"etag": '"1"'}, json={"text": text})


def statuses(*lengths: int) -> list[int]:
    """Of requests for documents of these lengths, one after the other."""
    documents = Documents()

    async def read() -> None:
        http = httpx2.AsyncClient(base_url="http://api/v1/", transport=httpx2.MockTransport(documents))
        client = ApiClient(http, "key", lambda: None)
        for length in lengths:
            assert await client.get("document", length=length) == {"text": "x" * length}

    asyncio.run(read())
    return documents.statuses


def test_an_unchanged_document_is_sent_once() -> None:
    assert statuses(10, 10, 20, 10) == [200, 304, 200, 304]


def test_a_repeated_request_has_the_key_of_the_first_one() -> None:
    keys: list[str | None] = []

    def create(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers.get("idempotency-key"))
        return httpx2.Response(200, json={})

    async def post() -> None:
        http = httpx2.AsyncClient(base_url="http://api/v1/", transport=httpx2.MockTransport(create))
        client = ApiClient(http, "key", lambda: None)
        await client.post("jobs", {}, idempotency_key="form-1")
        await client.post("jobs", {})

    asyncio.run(post())
    assert keys == ["form-1", None]


def test_the_oldest_documents_make_room() -> None:
    half = MAX_CACHED_BYTES // 2
    assert statuses(half, half - 100, half - 200, half - 200, half) == [200, 200, 200, 304, 200]
    assert statuses(2 * MAX_CACHED_BYTES, 10, 10, 2 * MAX_CACHED_BYTES) == [200, 200, 304, 200]
