"""The text of an API key: `tnry_<number>_<secret>`. Only its SHA-256 is stored, as the secret has 256 random bits."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "tnry"
MIN_SECRET_CHARACTERS = 20
SHOWN_CHARACTERS = 4
MIN_CHARACTERS_TO_SHOW = 40  # a shorter secret, supplied by the operator, is redacted completely


def new_secret(number: str) -> str:
    return f"{PREFIX}_{number}_{secrets.token_urlsafe(32)}"


def hash_key(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def redact(secret: str) -> str:
    if len(secret) < MIN_CHARACTERS_TO_SHOW:
        return "…"
    return f"{secret[: len(PREFIX) + 1 + SHOWN_CHARACTERS]}…{secret[-SHOWN_CHARACTERS:]}"


def is_valid_secret(secret: str) -> bool:
    """Whether a secret that the operator supplies is long enough and allowed in a header."""
    return len(secret) >= MIN_SECRET_CHARACTERS and secret.isascii() and secret.isprintable() and " " not in secret
