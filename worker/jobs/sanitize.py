"""Sanitize values of a trainer's records and manifests, which are untrusted input, before they reach a row."""

from __future__ import annotations

import math
from typing import Any

MAX_MESSAGE_CHARACTERS = 8_000


def clean(value: Any) -> Any:
    """Replace what PostgreSQL cannot store: NUL, lone surrogates, numbers that are not finite (None)."""
    if isinstance(value, str):
        return value.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def clean_text(text: str) -> str:
    """`clean` for a message, cut to `MAX_MESSAGE_CHARACTERS`."""
    return str(clean(text))[:MAX_MESSAGE_CHARACTERS]
