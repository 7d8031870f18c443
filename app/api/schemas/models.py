"""Response bodies of models."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, unix_seconds
from app.db.tables import BaseModelRow, ModelAlias, TunedModel
from app.domain.base_models.catalog import MAX_RANK
from app.services.base_models.models import ModelRow


class LoraLimits(Body):
    max_r: int
    """The largest rank."""
    target_modules: list[str]
    """The layers that an adapter can have."""
    target_parameters: list[str] | None = None
    """The stacked weights of experts that an adapter can have; absent without experts."""


class ModelBody(Body):
    """A base model has its limits, an alias its base model, an `ft:` model its base model and its job."""

    id: str
    """The name to send as `model` of a job."""
    object: Literal["model"]
    created: int
    """Seconds since 1970."""
    owned_by: str
    """`tunery`, or the server's organization for a model that was trained here."""
    fine_tunable: bool
    """Whether a job can use it as its `model`."""
    base_model: str | None = None
    alias_of: str | None = None
    """The base model, if this name is an alias of it."""
    fine_tuning_job_id: str | None = None
    max_context_length: int | None = None
    """The context length of a base model, in tokens."""
    source: str | None = None
    """The id of a base model on its hub, if the operator gave it."""
    revision: str | None = None
    """The commit or tag of `source`, if the operator gave one."""
    lora_limits: LoraLimits | None = None
    """The limits for an adapter on this base model."""


class ModelList(Body):
    object: Literal["list"]
    data: list[ModelBody]


def render_model(model: ModelRow, organization: str) -> dict[str, Any]:
    if isinstance(model, ModelAlias):
        return _render_alias(model)
    return _render_tuned(model, organization) if isinstance(model, TunedModel) else _render_base(model)


def _render_alias(alias: ModelAlias) -> dict[str, Any]:
    return {
        "id": alias.name,
        "object": "model",
        "created": unix_seconds(alias.created_at),
        "owned_by": "tunery",
        "fine_tunable": True,
        "alias_of": alias.base_model,
    }


def _render_base(model: BaseModelRow) -> dict[str, Any]:
    entry = model.catalog_entry
    smallest = min((min(shape) for shape in entry.target_modules.values()), default=MAX_RANK)
    return {
        "id": model.name,
        "object": "model",
        "created": unix_seconds(model.created_at),
        "owned_by": "tunery",
        "fine_tunable": True,
        "max_context_length": entry.context_length,
        **{key: value for key in ("source", "revision") if (value := getattr(entry, key)) is not None},
        "lora_limits": {
            "max_r": min(MAX_RANK, smallest),
            "target_modules": sorted(entry.target_modules),
            **({"target_parameters": entry.expert_names} if entry.experts else {}),
        },
    }


def _render_tuned(model: TunedModel, organization: str) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": unix_seconds(model.created_at),
        "owned_by": organization,
        "fine_tunable": True,
        "base_model": model.id.split(":")[1],
        "fine_tuning_job_id": model.job_id,
    }
