"""The pieces of a file on their way to the API: how long each is awaited, and how a check is repeated."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from app.web.api_client import RESPONSE_SECONDS, ApiClient, make_http
from app.web.uploads import send_piece

TWO_GIGABYTES = 2_000_000_000
CHECK_SECONDS = TWO_GIGABYTES / 50e6  # on a free core


def sent(offset: int, piece: bytes, total: int) -> httpx2.Request:
    """The request that carries the piece of an upload of `total` bytes."""
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, json={})

    async def send() -> Any:
        http = make_http("http://127.0.0.1:1")
        http._transport = httpx2.MockTransport(answer)
        await send_piece(ApiClient(http, "key", lambda: None), {"id": "upload_1", "bytes": total}, offset, piece)

    asyncio.run(send())
    (request,) = requests
    return request


def test_the_last_piece_waits_for_the_check_of_all_lines() -> None:
    request = sent(TWO_GIGABYTES - 4, b"last", TWO_GIGABYTES)
    assert request.headers["content-range"] == f"bytes {TWO_GIGABYTES - 4}-{TWO_GIGABYTES - 1}/{TWO_GIGABYTES}"
    assert request.extensions["timeout"]["read"] > RESPONSE_SECONDS + 3 * CHECK_SECONDS


def test_another_piece_does_not() -> None:
    assert sent(0, b"first", TWO_GIGABYTES).extensions["timeout"]["read"] == RESPONSE_SECONDS


@pytest.mark.parametrize("total", [0, TWO_GIGABYTES])
def test_without_a_further_byte_the_check_is_repeated(total: int) -> None:
    request = sent(total, b"", total)
    assert (request.method, request.url.path) == ("POST", "/v1/uploads/upload_1/complete")
    assert request.extensions["timeout"]["read"] >= RESPONSE_SECONDS + total / 10e6
