"""The client of one session: bodies by ETag within a bound, repeated requests, and the pieces of streamed answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from app.domain.answers.engine_answers import MAX_ANSWER_BYTES
from app.web.api_client import MAX_CACHED_BYTES, ApiError
from app.web.api_streams import stream_answer
from tests.dashboard.stub_api import stub_client

BODY = {"model": "ft:tiny", "messages": [{"role": "user", "content": "hi"}]}
END = "data: [DONE]\n\n"


def statuses(*lengths: int) -> list[int]:
    """Of requests for documents of these lengths, which never change, one after the other."""
    found: list[int] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        found.append(304 if "if-none-match" in request.headers else 200)
        text = "x" * int(request.url.params["length"])
        return httpx2.Response(found[-1], headers={"etag": '"1"'}, json={"text": text})

    async def read() -> None:
        client = stub_client(answer)
        for length in lengths:
            assert await client.get("document", length=length) == {"text": "x" * length}

    asyncio.run(read())
    return found


def test_an_unchanged_document_is_sent_once() -> None:
    assert statuses(10, 10, 20, 10) == [200, 304, 200, 304]


def test_a_full_cache_starts_over() -> None:
    half = MAX_CACHED_BYTES // 2
    assert statuses(half, half - 100, half - 200, half - 200, half) == [200, 200, 200, 304, 200]
    assert statuses(10, *[2 * MAX_CACHED_BYTES] * 2, 10, 10) == [200, 200, 200, 200, 304]


def test_a_repeated_request_has_the_key_of_the_first_one() -> None:
    keys: list[str | None] = []

    def create(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers.get("idempotency-key"))
        return httpx2.Response(200, json={})

    async def post() -> None:
        client = stub_client(create)
        await client.post("jobs", {}, idempotency_key="form-1")
        await client.post("jobs", {})

    asyncio.run(post())
    assert keys == ["form-1", None]


def chunk(text: str | None, index: int = 0) -> str:
    return "data: " + json.dumps({"choices": [{"index": index, "delta": {"content": text}}]}) + "\n\n"


def read_answer(status: int, content: str) -> tuple[list[str], list[int], Any]:
    """The pieces of the text, the number of tokens, and the body of the request."""
    requests: list[Any] = []
    tokens: list[int] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(json.loads(request.content))
        return httpx2.Response(status, text=content)

    async def read() -> list[str]:
        return [piece async for piece in stream_answer(stub_client(answer), BODY, tokens.append)]

    return asyncio.run(read()), tokens, requests[0]


def test_a_whole_answer_is_its_pieces() -> None:
    role = 'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n'
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
    separators = 'data: {"choices": [{"index": 0, "delta": {"content": "a\u2028b\x85c"}}]}\r\n\r\n'
    content = ": comment\n\n" + role + chunk("My ") + chunk(None) + chunk("other", 1) + separators + usage + END
    pieces, tokens, request = read_answer(200, content)
    assert (pieces, tokens) == (["My ", "a\u2028b\x85c"], [2])
    assert request == {**BODY, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("status", "content", "code"),
    [
        (200, chunk("half"), None),
        (200, chunk("half") + 'data: {"error": {"message": "the engine ended", "code": "x"}}\n\n', "x"),
        (200, "data: <html>\n\n" + END, None),
        (200, "data: " + "[" * 100_000 + "\n\n" + END, None),
        (200, "x" * (MAX_ANSWER_BYTES + 1), None),
        (200, 'data: {"choices": [{}]}\n\n' + END, None),
        (503, '{"error": {"message": "not delivered to an engine", "code": "model_not_served"}}', "model_not_served"),
        (502, "<html>bad gateway</html>", None),
    ],
)
def test_half_an_answer_is_an_error(status: int, content: str, code: str | None) -> None:
    with pytest.raises(ApiError) as raised:
        read_answer(status, content)
    assert (raised.value.code, raised.value.status) == (code, None if status == 200 else status)
