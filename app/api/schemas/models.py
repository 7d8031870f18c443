"""Response bodies of models."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict

from app.api.schemas.common import Body, UnixTime
from app.db.tables import ModelAlias, TunedModel
from app.domain.base_models.catalog import MAX_RANK
from app.services.base_models.models import ModelRow


class LoraLimits(Body):
    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    max_r: int
    """The largest rank."""
    target_modules: list[str]
    """The layers that an adapter can have."""
    target_parameters: list[str] | None = None
    """The stacked weights of experts that an adapter can have; absent without experts."""


class ModelBody(Body):
    """A base model has its limits, an alias its base model, an `ft:` model its base model and its job."""

    # A field that this kind of model does not have is absent.
    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    id: str
    """The name to send as `model` of a job."""
    object: Literal["model"]
    created: UnixTime
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

    @classmethod
    def of(cls, model: ModelRow, organization: str) -> Self:
        always: dict[str, Any] = {"object": "model", "created": model.created_at, "fine_tunable": True}
        if isinstance(model, ModelAlias):
            return cls(id=model.name, owned_by="tunery", alias_of=model.base_model, **always)
        if isinstance(model, TunedModel):
            base, job_id = model.id.split(":")[1], model.job_id
            return cls(id=model.id, owned_by=organization, base_model=base, fine_tuning_job_id=job_id, **always)
        entry = model.catalog_entry
        smallest = min((min(shape) for shape in entry.target_modules.values()), default=MAX_RANK)
        limits = LoraLimits(
            max_r=min(MAX_RANK, smallest),
            target_modules=sorted(entry.target_modules),
            target_parameters=entry.expert_names if entry.experts else None,
        )
        return cls(
            id=model.name,
            owned_by="tunery",
            max_context_length=entry.context_length,
            source=entry.source,
            revision=entry.revision,
            lora_limits=limits,
            **always,
        )


class ModelList(Body):
    object: Literal["list"] = "list"
    data: list[ModelBody]
