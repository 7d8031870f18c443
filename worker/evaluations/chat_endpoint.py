"""Answers of an OpenAI-compatible endpoint that the operator has named, with retries for what may pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import httpx2
from anyio import fail_after
from anyio.from_thread import start_blocking_portal

from app.domain.webhooks import parse_retry_after
from app.settings import Endpoint

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 2.0  # doubled with each attempt: the pauses outlast a restart of the endpoint, a minute
RETRIED = (408, 409, 429)  # and every status from 500 on
MAX_PAUSE_SECONDS = 60.0
QUOTED_CHARACTERS = 200

Wait = Callable[[float], None]  # waits; raises if the work has to end


class EndpointError(Exception):
    """The endpoint gave no usable answer; the message says what it did instead."""


class NoTextError(EndpointError):
    """The endpoint works, and answered with something else than a text."""


class ChatEndpoint:
    """A client for `chat/completions` of one endpoint. Threads may share it."""

    def __init__(self, name: str, endpoint: Endpoint, wait: Wait) -> None:
        self.name = name
        self.concurrency = endpoint.concurrency
        self._wait = wait
        self._timeout_seconds = endpoint.timeout_seconds
        key = endpoint.api_key.get_secret_value()
        self._stack = ExitStack()
        # An event loop, in which a request can be ended: the timeouts of a client begin anew with every byte.
        self._portal = self._stack.enter_context(start_blocking_portal())
        client = httpx2.AsyncClient(
            base_url=endpoint.base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,
        )
        self._client = self._stack.enter_context(self._portal.wrap_async_context_manager(client))

    def close(self) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise what `wait` raises if the work has to end."""
        self._wait(0.0)

    def answer(self, model: str, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> tuple[str, int | None]:
        """The text of the answer and its tokens, if the endpoint reports them. Raises EndpointError."""
        body = {"model": model, "messages": list(messages), **parameters}
        problem = ""
        for attempt in range(ATTEMPTS):
            try:
                response = self._portal.call(self._post, body)
            except TimeoutError:
                problem, pause = "did not answer in time", _pause(attempt, None)
            except httpx2.HTTPError as error:
                problem, pause = f"could not be reached ({error or type(error).__name__})", _pause(attempt, None)
            else:
                if response.status_code < 400:
                    return self._parse(response)
                problem = f"answered {response.status_code}: {_error_text(response)}"
                if response.status_code not in RETRIED and response.status_code < 500:
                    raise EndpointError(f"The endpoint {self.name} {problem}")
                pause = _pause(attempt, response)
            if attempt + 1 < ATTEMPTS:
                self._wait(pause)
        raise EndpointError(f"The endpoint {self.name} {problem} ({ATTEMPTS} attempts)")

    async def _post(self, body: Mapping[str, Any]) -> httpx2.Response:
        """The whole response. Raises httpx2.HTTPError, and TimeoutError."""
        with fail_after(self._timeout_seconds):
            return await self._client.post("chat/completions", json=body)

    def _parse(self, response: httpx2.Response) -> tuple[str, int | None]:
        try:
            body = response.json()
            message = body["choices"][0]["message"]
            text, calls = message["content"], message.get("tool_calls")
            tokens = (body.get("usage") or {}).get("completion_tokens")
        except (ValueError, LookupError, TypeError, AttributeError):
            seen = response.text[:QUOTED_CHARACTERS]
            raise EndpointError(f"The endpoint {self.name} answered in another shape: {seen}") from None
        if text is not None and not isinstance(text, str):
            raise EndpointError(f"The endpoint {self.name} answered with a content that is no text")
        if calls and not text:
            raise NoTextError(f"The endpoint {self.name} answered with calls of tools and no text to compare")
        return text or "", tokens if isinstance(tokens, int) else None


def _pause(attempt: int, response: httpx2.Response | None) -> float:
    """Seconds until the next attempt: what the endpoint asks for, else 2, 4, 8, ... with jitter."""
    requested_seconds = _retry_after_seconds(response) if response is not None else None
    pause = (
        FIRST_PAUSE_SECONDS * 2.0**attempt * random.uniform(1.0, 1.25)
        if requested_seconds is None
        else requested_seconds
    )
    return min(MAX_PAUSE_SECONDS, max(0.0, pause))


def _retry_after_seconds(response: httpx2.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    try:
        return float(text)
    except ValueError:
        return parse_retry_after(text, response.headers.get("date"), datetime.now(UTC))


def _error_text(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:QUOTED_CHARACTERS]
    except (ValueError, LookupError, TypeError):
        return response.text[:QUOTED_CHARACTERS]
