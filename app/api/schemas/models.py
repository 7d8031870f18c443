"""Bodies of models, of permissions on them, and, for admins, of base models, their registrations and their aliases."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import AliasPath, BeforeValidator, ConfigDict, Field

from app.api.schemas.common import Body, Deleted, Strict, UnixTime
from app.db.tables import ModelAlias, TunedModel
from app.domain.base_models.catalog import MAX_RANK, CatalogEntry
from app.domain.base_models.registrations import RegistrationState
from app.domain.jobs.create_job import Id
from app.domain.planning.base_sizes import training_memory
from app.services.base_models import ModelRow


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


Text = Annotated[str, Field(min_length=1, max_length=4096)]


class RegisterBaseModel(Strict):
    name: Text
    """The name that jobs give as `model`."""
    directory: Text | None = None
    """An absolute path inside one of the directories of `TUNERY_BASE_MODEL_DIRECTORIES`, the same on every worker.
    Null: the worker downloads `source` first.
    """
    learning_rate: float | None = None
    """The default of jobs; null: derived from the hidden size."""
    license: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """The license, such as apache-2.0."""
    source: Text | None = None
    """The id on its hub, which adapters name."""
    revision: Text | None = None
    """The commit or tag on its hub, for a download also a branch; needs `source`."""


def _of_entry(name: str) -> Any:
    return Field(validation_alias=AliasPath("entry", name))


class TrainingMemory(Body):
    bits: Literal[4, 16]
    """Of the frozen weights: 4 is QLoRA, 16 is LoRA."""
    document_tokens: int
    """The length of the longest example."""
    bytes: int
    """The memory of the smallest GPU for it, by the plans of this version; more is faster."""
    card_gigabytes: int | None
    """The smallest usual card with this memory, by the size in its name; null: no single one."""


@lru_cache(maxsize=64)  # the plans of one model take 0.3 s
def _training_memory(entry_json: str) -> list[dict[str, int | None]]:
    return training_memory(CatalogEntry.model_validate_json(entry_json))


class OrganizationBaseModel(Body):
    id: str = Field(validation_alias="name")
    """The name, which jobs give as `model`."""
    object: Literal["organization.base_model"] = "organization.base_model"
    project_id: str | None
    """The only project that may use it; null: every project."""
    directory: str
    """The same path on every worker."""
    architecture: str = _of_entry("architecture")
    """The class in its config.json."""
    parameters: int = _of_entry("parameters")
    """The number of weights."""
    size_bytes: int = _of_entry("size_bytes")
    """The size of the weight files."""
    max_context_length: int = _of_entry("context_length")
    """The longest example in tokens."""
    learning_rate: float = _of_entry("learning_rate")
    """The default of jobs."""
    target_modules: Annotated[list[str], BeforeValidator(sorted)] = _of_entry("target_modules")
    """The names of the layers that an adapter may have."""
    memory: Annotated[
        list[TrainingMemory], BeforeValidator(lambda entry: _training_memory(entry.model_dump_json()))
    ] = Field(validation_alias="catalog_entry")
    """What trains an adapter of rank 16 on all linear layers."""
    license: str | None = Field(validation_alias=AliasPath("catalog_entry", "license"))
    """As it was registered."""
    source: str | None = Field(validation_alias=AliasPath("catalog_entry", "source"))
    """The id on its hub."""
    revision: str | None = Field(validation_alias=AliasPath("catalog_entry", "revision"))
    """The commit or tag on its hub."""
    manifest_sha256: str
    """The SHA-256 of the digests of all files."""
    created_at: UnixTime
    """When it was registered first, in seconds since 1970."""


class BaseModelRemoved(Deleted):
    object: Literal["organization.base_model.deleted"] = "organization.base_model.deleted"


class RegistrationError(Body):
    code: str
    """`refused_model`, `directory_not_allowed`, `hub_unavailable`, `worker_lost` or `server_error`."""
    message: str
    """Every reason."""


class RegistrationBody(Body):
    id: str
    object: Literal["organization.base_model_registration"] = "organization.base_model_registration"
    name: str
    """The name of the base model."""
    directory: str
    """The directory; after a conversion to 16 bits that of the converted model. Of a download the directory of all
    downloads, and after its success that of the model.
    """
    learning_rate: float | None
    """As requested."""
    license: str | None
    """As requested."""
    source: str | None
    """As requested."""
    revision: str | None
    """As requested; of a download, after its success, the commit."""
    pull: bool = Field(validation_alias="is_pull")
    """Whether the worker downloads `source` first."""
    status: RegistrationState = Field(validation_alias="state")
    """`queued` until a worker with torch has time."""
    created_at: UnixTime
    started_at: UnixTime | None
    """When a worker claimed it, in seconds since 1970; null: it waits for one."""
    finished_at: UnixTime | None
    """Seconds since 1970; null: it has not ended."""
    notes: list[str]
    """What the worker noted, such as that it could not check the model."""
    error: RegistrationError | None
    """Why it failed; null: it did not."""


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


MAX_PROJECTS = 100


class CreatePermissions(Strict):
    project_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_PROJECTS)]
    """The projects that may use the checkpoint: `proj_...`."""


class PermissionBody(Body):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: UnixTime
    project_id: str = Field(validation_alias="grantee_id")
    """The project that may use the checkpoint."""
