"""Files: where an imported one comes from, and the limits and states of uploads, OpenAI's where it has some."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field


class FileOrigin(BaseModel):
    """The other service's own facts of the file. The importing client states them; they are not verified."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    service: Annotated[str, Field(min_length=1, max_length=64)]
    """The other service, such as `openai`."""
    id: Annotated[str, Field(min_length=1, max_length=256)]
    """The id of the file there."""
    filename: Annotated[str | None, Field(max_length=1024)] = None
    """Its name there."""
    created_at: Annotated[int | None, Field(ge=0, lt=1 << 53)] = None
    """When it was created there, in seconds since 1970."""
    imported_at: Annotated[int | None, Field(ge=0, lt=1 << 53)] = None
    """When it was read there, in seconds since 1970."""


# The parameters of a job that name files.
JobFileOrigins = dict[str, dict[str, Any]]  # {training_file: a FileOrigin, validation_file: ...}


Purpose = Literal["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]  # of uploads
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
EXPIRES_SECONDS = (3600, 2_592_000)  # allowed `expires_after[seconds]` of a file: minimum, maximum
MAX_PART_BYTES = 64 << 20
MAX_PARTS = 10_000
MAX_FILENAME = 255
MIME_TYPE = "application/jsonl"
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
