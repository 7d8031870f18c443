"""What an upload by parts may be: its states and its bounds, OpenAI's where they have any."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath, PureWindowsPath

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
EXPIRES_SECONDS = (3600, 2_592_000)  # what `expires_after[seconds]` of a file may be
MAX_PART_BYTES = 64 << 20
MAX_PARTS = 10_000
MAX_FILENAME = 255


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def max_stored_bytes(declared_bytes: int) -> int:
    """What the parts of one upload may have together: retries leave parts that no list names."""
    return 2 * declared_bytes + MAX_PART_BYTES


def clean_filename(name: str | None) -> str:
    """A label, never a path: the last part of whatever path a client sent, without control characters."""
    bare = PureWindowsPath(PurePosixPath(name or "").name).name
    label = "".join(c for c in bare if c.isprintable())[:MAX_FILENAME].strip()
    return label if label.strip(".") else "upload"
