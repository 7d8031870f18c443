"""Bodies of aliases of base models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import Body, UnixTime
from app.api.schemas.jobs.requests import Strict


class SetModelAlias(Strict):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    """The name that clients send."""
    model: Annotated[str, Field(min_length=1, max_length=128)]
    """The registered base model to train."""


class ModelAliasBody(Body):
    id: str = Field(validation_alias="name")
    """The name that clients send."""
    object: Literal["organization.model_alias"] = "organization.model_alias"
    model: str = Field(validation_alias="base_model")
    """The base model that such a job trains."""
    registered: bool = Field(validation_alias="is_registered")
    """Whether that base model is registered; without it, jobs get a 404."""
    created_at: UnixTime


class ModelAliasList(Body):
    object: Literal["list"] = "list"
    data: list[ModelAliasBody]
