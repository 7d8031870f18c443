"""Errors of inference engines, as errors of the service in OpenAI's shape."""

from __future__ import annotations

import json
import re
from typing import Any

from app.errors import BadRequest, EngineFailed, RateLimited, TooLarge, TuneryError

MAX_MESSAGE_CHARACTERS = 2_000
# vLLM: "This model's maximum context length is 1024 tokens"; SGLang: "is longer than the model's context length".
CONTEXT_LENGTH = re.compile(r"context length|context_length|maximum (input|model) length", re.IGNORECASE)
RETRY_AFTER_SECONDS = 1.0  # of a 429 without a Retry-After
MAX_RETRY_AFTER_SECONDS = 3600.0
# Another server of the engine may answer: an adapter is missing, the server starts, or a proxy has lost it.
OTHER_SERVER_STATUSES = frozenset({401, 403, 404, 500, 502, 503, 504})


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
