"""A streamed answer of POST /v1/chat/completions, as pieces of text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from app.web.api_client import ApiClient, ApiError

SILENCE_SECONDS = 120.0  # until the first token, and between two tokens
PREFIX = "data:"
END = "[DONE]"
ENDED_EARLY = "The answer ended before it was complete: the engine or the connection to it failed. Ask again."


async def stream_answer(api: ApiClient, body: dict[str, Any]) -> AsyncIterator[str]:
    """The text of the first choice, piece by piece. Raises ApiError, also for an answer that is not complete."""
    request = {"json": {**body, "stream": True}}
    async with api.stream("POST", "chat/completions", SILENCE_SECONDS, **request) as response:
        async for line in response.aiter_lines():
            if not line.startswith(PREFIX):
                continue  # comments and blank lines between events
            data = line.removeprefix(PREFIX).strip()
            if data == END:
                return
            if text := _text_of(data):
                yield text
    raise ApiError(ENDED_EARLY)


def _text_of(data: str) -> str:
    try:
        event = json.loads(data)
        if error := event.get("error"):
            raise ApiError(str(error["message"]), code=error.get("code"))
        return "".join(str(choice["delta"].get("content") or "") for choice in event["choices"] if choice["index"] == 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ApiError("The API sent an event that is no part of an answer. Check any proxy in between.") from None
