"""A streamed answer of POST /v1/chat/completions, as pieces of text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2

from app.domain.answers.engine_answers import MAX_ANSWER_BYTES
from app.web.api_client import ApiClient, ApiError

MAX_INLINE_CHARACTERS = 16 << 10  # of an event that is parsed in the event loop
SILENCE_SECONDS = 120.0  # until the first token, and between two tokens
PREFIX = "data:"
END = "[DONE]"
CHECK_PROXIES = "Check any proxy in between."
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
            text, tokens = await asyncio.to_thread(_parse, data) if len(data) > MAX_INLINE_CHARACTERS else _parse(data)
            if tokens is not None:
                on_tokens(tokens)
            if text:
                yield text
    raise ApiError(ENDED_EARLY)


async def _lines_of(response: httpx2.Response) -> AsyncIterator[str]:
    """The lines of an event stream. `aiter_lines` would also end them at characters that a JSON text may contain.

    Raises ApiError for a line of more than MAX_ANSWER_BYTES.
    """
    rest = bytearray()
    async for chunk in response.aiter_bytes():
        first, *others = chunk.split(b"\n")
        rest += first
        for other in others:
            yield rest.decode(errors="replace")
            rest = bytearray(other)
        if len(rest) > MAX_ANSWER_BYTES:
            raise ApiError(f"The API sent an event of more than {MAX_ANSWER_BYTES:,} bytes. {CHECK_PROXIES}")


def _parse(data: str) -> tuple[str, int | None]:
    """The text of an event, and the number of tokens of the answer in the last one."""
    try:
        event = json.loads(data)
        if error := event.get("error"):
            raise ApiError(str(error["message"]), code=error.get("code"))
        texts = [str(one["delta"].get("content") or "") for one in event["choices"] if one["index"] == 0]
        return "".join(texts), (event.get("usage") or {}).get("completion_tokens")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ApiError(f"The API sent an event that is no part of an answer. {CHECK_PROXIES}") from None
