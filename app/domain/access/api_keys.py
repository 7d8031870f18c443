"""The text of an API key: `tnry_<number>_<secret>`, and the names of what its requests do in the audit log.

Only the SHA-256 of a key is stored, as the secret has 256 random bits.
"""

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


def audit_action(method: str, path: str) -> str:
    """The name of the action of a request. It derives from the template of the path, so a new route needs no entry."""
    segments = path.removeprefix("/v1/").split("/")
    words = [segment for segment in segments if not segment.startswith("{")]
    if method == "DELETE":
        words.append("delete")
    elif segments[-1].startswith("{"):
        words.append("update")
    elif len(words) == len(segments) or words[-1].endswith(
        "s"
    ):  # a collection; any other last word is a verb, such as cancel
        words.append("create")
    return ".".join(words)
