"""Bodies of aliases of base models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, unix_seconds
from app.api.schemas.jobs.requests import Strict
from app.db.tables import ModelAlias


class SetModelAlias(Strict):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    """The name that clients send."""
    model: Annotated[str, Field(min_length=1, max_length=128)]
    """The registered base model to train."""


class ModelAliasBody(Body):
    id: str
    """The name that clients send."""
    object: Literal["organization.model_alias"]
    model: str
    """The base model that such a job trains."""
    registered: bool
    """Whether that base model is registered; without it, jobs get a 404."""
    created_at: int


class ModelAliasList(Body):
    object: Literal["list"]
    data: list[ModelAliasBody]


def render_alias(alias: ModelAlias, registered: bool) -> dict[str, Any]:
    return {
        "id": alias.name,
        "object": "organization.model_alias",
        "model": alias.base_model,
        "registered": registered,
        "created_at": unix_seconds(alias.created_at),
    }
