"""Server-sent events of a streamed answer: complete events, under the requested name."""

from __future__ import annotations

import json
import re
from typing import Any

from app.domain.answers.engine_errors import CONTEXT_LENGTH, engine_json, engine_message, with_name
from app.domain.error_text.json_text import as_json
from app.errors import TuneryError

MAX_ANSWER_BYTES = 8 << 20  # of an event, or of an answer that is not streamed
DONE = b"[DONE]"
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LONGEST_END_BYTES = 4


class EventTranslator:
    """Cuts the bytes of an engine into events, and gives each one the requested name.

    An event is passed on as soon as it is complete, so a connection that breaks never leaves half of one.
    """

    def __init__(self, served: str, requested: str) -> None:
        self._served, self._requested = served, requested
        self._rest = bytearray()
        self.is_complete = False  # the engine has sent its last event, or an error

    def add(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, for `translate`. Raises ValueError for one of more than MAX_ANSWER_BYTES.

        Only the new bytes are searched, so the time is linear however small the chunks of an event are.
        """
        searched = max(0, len(self._rest) - _LONGEST_END_BYTES + 1)
        self._rest += chunk
        events, start = [], 0
        for end in _END.finditer(bytes(self._rest[searched:])):
            events.append(bytes(self._rest[start : searched + end.start()]))
            start = searched + end.end()
        del self._rest[:start]
        if len(self._rest) > MAX_ANSWER_BYTES:
            raise ValueError(f"it sent an event of more than {MAX_ANSWER_BYTES:,} bytes")
        return events

    def translate(self, event: bytes) -> bytes:
        """The event under the requested name. Raises ValueError if it is no JSON object."""
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if data == DONE:
            self.is_complete = True
            return b"data: [DONE]\n\n"
        if not data:  # a comment that keeps the connection open
            return event + b"\n\n"
        value = _object(data)
        if value.get("error"):
            self.is_complete = True
            message = with_name(engine_message(data), self._served, self._requested)
            code = "context_length_exceeded" if CONTEXT_LENGTH.search(message) else "engine_failed"
            return error_event(message, "server_error", code)
        if self._served == self._requested or "model" not in value:
            return event + b"\n\n"
        return b"data: " + to_json(value | {"model": self._requested}) + b"\n\n"


def _object(data: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        value = engine_json(data)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    raise ValueError(f"it sent an event that is no JSON object: {as_json(data.decode(errors='replace'))}")


def error_event(message: str, kind: str, code: str | None) -> bytes:
    """The last event of a stream that failed: the official client raises an APIError for it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return b"data: " + to_json({"error": error}) + b"\n\n"


def event_of(error: TuneryError) -> bytes:
    return error_event(error.message, error.type, error.code)


def to_json(value: Any) -> bytes:
    """In ASCII: some clients end a line of a stream at U+2028 too, and half of a surrogate pair has no bytes."""
    return json.dumps(value, separators=(",", ":")).encode()
