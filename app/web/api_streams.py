"""Server-sent events of the API: the changed jobs of a project, once for all pages of a session; streamed answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from app.domain.answers.engine_answers import MAX_ANSWER_BYTES
from app.web.api_client import CHECK_PROXIES, ApiClient, ApiError

RETRY_SECONDS = 2.0
CHANGES_SILENCE_SECONDS = 40.0  # the API sends a comment every 15 s
ANSWER_SILENCE_SECONDS = 120.0  # until the first token, and between two tokens
MAX_INLINE_CHARACTERS = 16 << 10  # of an event that is parsed in the event loop
PREFIX = "data:"
END = "[DONE]"
ENDED_EARLY = "The answer ended before it was complete: the engine or the connection to it failed. Ask again."


class Changes:
    """The jobs that changed since the last wait, for one page."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._job_ids: set[str | None] = set()

    def add(self, job_id: str | None) -> None:
        self._job_ids.add(job_id)
        self._arrived.set()

    async def wait(self, timeout_seconds: float) -> set[str | None]:
        """The ids of changed jobs, None among them if any job may have changed; empty after a timeout."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), timeout_seconds)
        self._arrived.clear()
        job_ids, self._job_ids = self._job_ids, set()
        return job_ids


class ChangeFeed:
    """Reads the stream while a page subscribes; connects again after an error."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._subscribers: set[Changes] = set()
        self._reader: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[Changes]:
        changes = Changes()
        self._subscribers.add(changes)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        try:
            yield changes
        finally:
            self._subscribers.discard(changes)
            if not self._subscribers:
                self._reader.cancel()

    async def _read(self) -> None:
        while self._subscribers:
            try:
                async for data in _events(self._api, "GET", "events/stream", CHANGES_SILENCE_SECONDS):
                    job_id = json.loads(data).get("job_id")
                    for changes in self._subscribers:
                        changes.add(job_id)
            except (ApiError, ValueError) as error:
                if isinstance(error, ApiError) and error.status == 401:
                    return
            await asyncio.sleep(RETRY_SECONDS)


async def stream_answer(api: ApiClient, body: dict[str, Any], on_tokens: Callable[[int], None]) -> AsyncIterator[str]:
    """The text of the first choice, piece by piece; `on_tokens` gets the number of tokens of the answer, if the engine
    reports it. Raises ApiError, also for an answer that is not complete.
    """
    request = {"json": {**body, "stream": True, "stream_options": {"include_usage": True}}}
    async for data in _events(api, "POST", "chat/completions", ANSWER_SILENCE_SECONDS, **request):
        if data == END:
            return
        text, tokens = await asyncio.to_thread(_parse, data) if len(data) > MAX_INLINE_CHARACTERS else _parse(data)
        if tokens is not None:
            on_tokens(tokens)
        if text:
            yield text
    raise ApiError(ENDED_EARLY)


async def _events(api: ApiClient, method: str, path: str, silence_seconds: float, **request: Any) -> AsyncIterator[str]:
    """The data of server-sent events. `aiter_lines` would also end lines at characters that a JSON text may contain.

    Raises ApiError, also for a line of more than MAX_ANSWER_BYTES.
    """
    async with api.stream(method, path, silence_seconds, **request) as response:
        rest = bytearray()
        async for chunk in response.aiter_bytes():
            *ended, last = chunk.split(b"\n")
            for end in ended:
                line = (rest + end).decode(errors="replace")
                rest.clear()
                if line.startswith(PREFIX):  # no comment and no blank line
                    yield line.removeprefix(PREFIX).strip()
            rest += last
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
