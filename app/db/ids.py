"""Public ids: a prefix that says what it is, and 96 random bits."""

from __future__ import annotations

import secrets


def new_id(prefix: str, separator: str = "-") -> str:
    """`ftjob-…`, `file-…`, `ftevent-…`; checkpoints are written `ftckpt_…` by OpenAI."""
    return f"{prefix}{separator}{secrets.token_hex(12)}"
