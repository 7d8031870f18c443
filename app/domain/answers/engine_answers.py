"""What an inference engine sends: errors, as errors of the service in OpenAI's shape, and the events of a streamed
answer, complete and under the requested name.
"""

from __future__ import annotations

import json
import re
from typing import Any

from app.domain.error_text.json_text import as_json
from app.errors import BadRequest, EngineFailed, RateLimited, TooLarge, TuneryError

MAX_MESSAGE_CHARACTERS = 2_000
# vLLM: "This model's maximum context length is 1024 tokens"; SGLang: "is longer than the model's context length".
CONTEXT_LENGTH = re.compile(r"context length|context_length|maximum (input|model) length", re.IGNORECASE)
RETRY_AFTER_SECONDS = 1.0  # of a 429 without a Retry-After
MAX_RETRY_AFTER_SECONDS = 3600.0


def engine_json(content: bytes) -> Any:
    """Parse JSON of an engine. Raises ValueError."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def engine_message(content: bytes) -> str:
    """The message of an error in the shape of OpenAI, vLLM or SGLang; else the body, shortened."""
    try:
        parsed = engine_json(content)
    except ValueError:
        parsed = None
    return " ".join((_message_in(parsed) or content.decode(errors="replace")).split())[:MAX_MESSAGE_CHARACTERS]


def engine_error(status: int, content: bytes, retry_after: str | None, served: str, requested: str) -> TuneryError:
    """The error for a response with `status`; the message has the requested name in place of the served one."""
    message = with_name(engine_message(content), served, requested) or f"the engine responded with status {status}"
    if status == 429:
        return RateLimited(f"The engine has too many requests: {message}", _seconds(retry_after))
    if status == 413:
        return TooLarge(message, code="request_too_large")
    if 400 <= status < 500:
        code = "context_length_exceeded" if CONTEXT_LENGTH.search(message) else None
        return BadRequest(message, _param_in(content), code)
    return EngineFailed(f"The engine failed with status {status}: {message}")


def with_name(text: str, served: str, requested: str) -> str:
    """`text` with the requested name in place of the name that the engine serves."""
    return (
        text if served == requested else re.sub(rf"(?<![\w-]){re.escape(served)}(?![\w-])", lambda _: requested, text)
    )


def _message_in(parsed: Any) -> str:
    if not isinstance(parsed, dict):
        return ""
    error = parsed.get("error", parsed)
    if isinstance(error, str):
        return error
    found = error.get("message") or error.get("error_message") if isinstance(error, dict) else None
    return str(found or parsed.get("error_message") or parsed.get("detail") or "")


def _param_in(content: bytes) -> str | None:
    try:
        param = engine_json(content)["error"]["param"]
    except (ValueError, KeyError, TypeError):
        return None
    return param if isinstance(param, str) else None


def _seconds(retry_after: str | None) -> float:
    """The delay, which is infinite with 400 digits, up to a limit."""
    if not retry_after or not retry_after.isdecimal():
        return RETRY_AFTER_SECONDS
    return min(float(retry_after), MAX_RETRY_AFTER_SECONDS)


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
