"""The body of a request that is still arriving, with limits on how slowly it may arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive, Scope

from app.api.middleware.request_log import CLIENT_CLOSED_REQUEST, RequestRecord
from app.errors import RequestTimeout
from app.settings import Settings

ADVICE = "Send the request again; a resumable upload continues at its Upload-Offset."


class BodyPace:
    """The two limits of a body that is still arriving: the longest pause and the lowest average rate.

    Only the time that the server waits for the client counts, not the time that a slow disk takes to store the body.
    The average is taken over consecutive windows of `body_rate_window_seconds`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paused_seconds = 0.0
        self._window_seconds = 0.0
        self._window_bytes = 0

    @property
    def next_check_seconds(self) -> float:
        """How much longer the server may wait before `add` has to be called, with or without new bytes."""
        pause_left_seconds = self._settings.body_idle_seconds - self._paused_seconds
        return max(0.0, min(pause_left_seconds, self._settings.body_rate_window_seconds - self._window_seconds))

    def add(self, waited_seconds: float, received_bytes: int) -> None:
        """Add one wait for the client and the bytes received. Raises RequestTimeout when a limit is reached."""
        self._paused_seconds = 0.0 if received_bytes else self._paused_seconds + waited_seconds
        self._window_seconds += waited_seconds
        self._window_bytes += received_bytes
        idle_seconds = self._settings.body_idle_seconds
        if self._paused_seconds >= idle_seconds:
            raise RequestTimeout(f"No byte of the request body arrived for {idle_seconds:g} s. {ADVICE}")
        if self._window_seconds >= self._settings.body_rate_window_seconds:
            self._check_rate()
            self._window_seconds, self._window_bytes = 0.0, 0

    def _check_rate(self) -> None:
        min_bytes_per_second = self._settings.body_min_bytes_per_second
        if self._window_bytes < min_bytes_per_second * self._window_seconds:
            raise RequestTimeout(
                f"The request body arrived at less than {min_bytes_per_second:g} bytes per second, averaged over "
                f"{self._settings.body_rate_window_seconds:g} s. {ADVICE}"
            )


class ReceivedBody:
    """`receive` of a request, with the limits of BodyPace until the body is complete.

    When the response has begun, a 408 is impossible: the handler receives a disconnect instead.
    """

    def __init__(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, record: RequestRecord) -> None:
        self._scope = scope
        self._receive = receive
        self._record = record
        self._pace: BodyPace | None = None
        self.is_complete = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        self.is_answered = False

    async def __call__(self) -> Message:
        """The next message. Raises RequestTimeout."""
        message = await (self._receive() if self.is_complete else self._receive_in_time())
        if message["type"] == "http.disconnect":
            self.is_complete = True
            if self._record.ended_at is None:
                self._record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
            return message
        self._record.bytes_in += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        return message

    async def discard_rest(self) -> None:
        """Receive what is still to come, so that a client that is still sending can read the response."""
        while not self.is_complete:
            await self()

    async def _receive_in_time(self) -> Message:
        now = asyncio.get_running_loop().time
        pace = self._pace = self._pace or BodyPace(self._scope["app"].state.app_state.settings)
        try:
            while True:
                started_at = now()
                try:
                    async with asyncio.timeout(pace.next_check_seconds):
                        message = await self._receive()
                except TimeoutError:
                    pace.add(now() - started_at, 0)
                else:
                    pace.add(now() - started_at, len(message.get("body", b"")))
                    return message
        except RequestTimeout:
            self.is_complete = True  # nothing more is read
            if not self.is_answered:
                raise
            self._record.end("request_timeout", RequestTimeout.status)
            return {"type": "http.disconnect"}
