"""A streamed answer of POST /v1/chat/completions, as pieces of text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2

from app.web.api_client import ApiClient, ApiError

SILENCE_SECONDS = 120.0  # until the first token, and between two tokens
PREFIX = "data:"
END = "[DONE]"
ENDED_EARLY = "The answer ended before it was complete: the engine or the connection to it failed. Ask again."


async def stream_answer(api: ApiClient, body: dict[str, Any], on_tokens: Callable[[int], None]) -> AsyncIterator[str]:
    """The text of the first choice, piece by piece; `on_tokens` gets the number of tokens of the answer, if the engine
    reports it. Raises ApiError, also for an answer that is not complete.
    """
    request = {"json": {**body, "stream": True, "stream_options": {"include_usage": True}}}
    async with api.stream("POST", "chat/completions", SILENCE_SECONDS, **request) as response:
        async for line in _lines_of(response):
            if not line.startswith(PREFIX):
                continue  # comments and blank lines between events
            data = line.removeprefix(PREFIX).strip()
            if data == END:
                return
            text, tokens = _parse(data)
            if tokens is not None:
                on_tokens(tokens)
            if text:
                yield text
    raise ApiError(ENDED_EARLY)


async def _lines_of(response: httpx2.Response) -> AsyncIterator[str]:
    """The lines of an event stream. `aiter_lines` would also end them at characters that a JSON text may contain."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")


def _parse(data: str) -> tuple[str, int | None]:
    """The text of an event, and the number of tokens of the answer in the last one."""
    try:
        event = json.loads(data)
        if error := event.get("error"):
            raise ApiError(str(error["message"]), code=error.get("code"))
        texts = [str(one["delta"].get("content") or "") for one in event["choices"] if one["index"] == 0]
        return "".join(texts), (event.get("usage") or {}).get("completion_tokens")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ApiError("The API sent an event that is no part of an answer. Check any proxy in between.") from None
