"""Public ids: a prefix for the type of the object, and 96 random bits."""

from __future__ import annotations

import secrets


def new_id(prefix: str, separator: str = "-") -> str:
    """A new id such as `ftjob-…`, `file-…` or `ftevent-…`. OpenAI separates some prefixes by `_` (`ftckpt_…`)."""
    return f"{prefix}{separator}{secrets.token_hex(12)}"
