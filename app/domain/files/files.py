"""Where a file comes from that was imported from another service."""

from __future__ import annotations

from typing import Annotated, Any

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
