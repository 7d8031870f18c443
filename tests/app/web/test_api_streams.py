"""The pieces of a streamed answer: whole, broken off, refused, and with an error in its middle."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from app.domain.answers.engine_answers import MAX_ANSWER_BYTES
from app.web.api_client import ApiClient, ApiError, make_http
from app.web.api_streams import ENDED_EARLY, stream_answer

BODY = {"model": "ft:tiny", "messages": [{"role": "user", "content": "hi"}]}


def chunk(text: str | None, index: int = 0) -> str:
    return "data: " + json.dumps({"choices": [{"index": index, "delta": {"content": text}}]}) + "\n\n"


def pieces(status: int, content: str, asked: list[Any] | None = None, tokens: list[int] | None = None) -> list[str]:
    """What a client gets of this response; `asked` gets the body of its request, `tokens` the number of tokens."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if asked is not None:
            asked.append(json.loads(request.content))
        return httpx2.Response(status, text=content)

    counts = [] if tokens is None else tokens

    async def read() -> list[str]:
        http = make_http("http://127.0.0.1:1")
        http._transport = httpx2.MockTransport(answer)
        return [piece async for piece in stream_answer(ApiClient(http, "key", lambda: None), BODY, counts.append)]

    return asyncio.run(read())


def test_a_whole_answer_is_its_pieces() -> None:
    asked: list[Any] = []
    role = 'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n'
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
    content = ": comment\n\n" + role + chunk("My ") + chunk(None) + chunk("other", 1) + chunk("card") + usage
    tokens: list[int] = []
    assert pieces(200, content + "data: [DONE]\n\n", asked, tokens) == ["My ", "card"]
    assert tokens == [2]
    assert asked == [{**BODY, "stream": True, "stream_options": {"include_usage": True}}]


def test_a_text_with_a_separator_of_lines_stays_in_its_event() -> None:
    event = 'data: {"choices": [{"index": 0, "delta": {"content": "a\u2028b\x85c"}}]}\r\n\r\n'
    assert pieces(200, event + "data: [DONE]\n\n") == ["a\u2028b\x85c"]


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (200, chunk("half"), ENDED_EARLY),
        (200, chunk("half") + 'data: {"error": {"message": "the engine ended", "code": "x"}}\n\n', "the engine ended"),
        (200, "data: <html>\n\n", "no part of an answer"),
        (200, "data: " + "[" * 100_000 + "\n\n", "no part of an answer"),
        (200, "x" * (MAX_ANSWER_BYTES + 1), "more than 8,388,608 bytes"),
        (200, 'data: {"choices": [{}]}\n\n', "no part of an answer"),
        (503, '{"error": {"message": "not delivered to an engine", "code": "model_not_served"}}', "not delivered"),
        (502, "<html>bad gateway</html>", "502"),
    ],
)
def test_half_an_answer_and_an_error_are_named(status: int, content: str, message: str) -> None:
    with pytest.raises(ApiError, match=message.replace(".", r"\.")):
        pieces(status, content)
