"""Multipart uploads: their states and limits; OpenAI's limits where OpenAI has some."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath, PureWindowsPath

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
EXPIRES_SECONDS = (3600, 2_592_000)  # allowed `expires_after[seconds]` of a file: minimum, maximum
MAX_PART_BYTES = 64 << 20
MAX_PARTS = 10_000
MAX_FILENAME = 255
COMPLETION_SECONDS = 30.0
CHECKED_BYTES_PER_SECOND = 5e6  # half of what a busy machine checked, of short lines


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def max_stored_bytes(declared_bytes: int) -> int:
    """The limit of the bytes of all parts of one upload, including parts that retries replaced."""
    return 2 * declared_bytes + MAX_PART_BYTES


def completion_seconds(size_bytes: int) -> float:
    """How long a client waits for the request that completes an upload: its response follows the check of all lines."""
    return COMPLETION_SECONDS + size_bytes / CHECKED_BYTES_PER_SECOND


def clean_filename(name: str | None) -> str:
    """The last component of the path that a client sent, without control characters: a label, never a path."""
    name_only = PureWindowsPath(PurePosixPath(name or "").name).name
    label = "".join(c for c in name_only if c.isprintable())[:MAX_FILENAME].strip()
    return label if label.strip(".") else "upload"
