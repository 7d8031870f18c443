"""A line of a file, which arrives in pieces of any size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from app.web.api_client import ApiClient, make_http
from app.web.pages import chat_rows

LINES = [b"first", b"", b"third, which is longer", b"last"]


class Pieces(httpx2.AsyncByteStream):
    def __init__(self, content: bytes, piece_bytes: int) -> None:
        self._pieces: Iterator[bytes] = (
            content[start : start + piece_bytes] for start in range(0, len(content), piece_bytes)
        )

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def line_of(content: bytes, piece_bytes: int, number: int) -> bytes | None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=Pieces(content, piece_bytes))

    async def read() -> bytes | None:
        http = make_http("http://127.0.0.1:1")
        http._transport = httpx2.MockTransport(answer)
        return await chat_rows.line_at(ApiClient(http, "key", lambda: None), "file-1", number)

    return asyncio.run(read())


@pytest.mark.parametrize("ending", [b"", b"\n"])
@pytest.mark.parametrize("piece_bytes", [1, 2, 6, 7, 100])
def test_a_line_is_found_by_its_number(piece_bytes: int, ending: bytes) -> None:
    content = b"\n".join(LINES) + ending
    assert [line_of(content, piece_bytes, number) for number in (1, 2, 3, 4)] == LINES
    assert line_of(content, piece_bytes, 6) is None


def test_a_huge_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rows, "FIRST_BYTES", 10)
    assert line_of(b"a\n" + b"x" * 100, 7, 2) == b"x" * 10
