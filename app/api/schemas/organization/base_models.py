"""Bodies of base models and their registrations, for admins."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, unix_seconds, unix_seconds_or_none
from app.api.schemas.jobs.requests import Strict
from app.db.tables import BaseModelRegistration, BaseModelRow
from app.domain.base_models.registrations import RegistrationState

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


class OrganizationBaseModel(Body):
    id: str
    """The name, which jobs give as `model`."""
    object: Literal["organization.base_model"]
    project_id: str | None
    """The only project that may use it; null: every project."""
    directory: str
    """The same path on every worker."""
    architecture: str
    """The class in its config.json."""
    parameters: int
    """The number of weights."""
    size_bytes: int
    """The size of the weight files."""
    max_context_length: int
    """The longest example in tokens."""
    learning_rate: float
    """The default of jobs."""
    target_modules: list[str]
    """The names of the layers that an adapter may have."""
    license: str | None
    """As it was registered."""
    source: str | None
    """The id on its hub."""
    revision: str | None
    """The commit or tag on its hub."""
    manifest_sha256: str
    """The SHA-256 of the digests of all files."""
    created_at: int
    """When it was registered first, in seconds since 1970."""


class OrganizationBaseModelList(Body):
    object: Literal["list"]
    data: list[OrganizationBaseModel]


class BaseModelRemoved(Body):
    id: str
    object: Literal["organization.base_model.deleted"]
    deleted: Literal[True]


class RegistrationError(Body):
    code: str
    """`refused_model`, `directory_not_allowed`, `hub_unavailable`, `worker_lost` or `server_error`."""
    message: str
    """Every reason."""


class RegistrationBody(Body):
    id: str
    object: Literal["organization.base_model_registration"]
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
    pull: bool
    """Whether the worker downloads `source` first."""
    status: RegistrationState
    """`queued` until a worker with torch has time."""
    created_at: int
    started_at: int | None
    """When a worker claimed it, in seconds since 1970; null: it waits for one."""
    finished_at: int | None
    """Seconds since 1970; null: it has not ended."""
    notes: list[str]
    """What the worker noted, such as that it could not check the model."""
    error: RegistrationError | None
    """Why it failed; null: it did not."""


class RegistrationList(ListBody):
    data: list[RegistrationBody]


def render_base_model(row: BaseModelRow) -> dict[str, Any]:
    entry = row.catalog_entry
    return {
        "id": row.name,
        "object": "organization.base_model",
        "project_id": row.project_id,
        "directory": row.directory,
        "architecture": entry.architecture,
        "parameters": entry.parameters,
        "size_bytes": entry.size_bytes,
        "max_context_length": entry.context_length,
        "learning_rate": entry.learning_rate,
        "target_modules": sorted(entry.target_modules),
        "license": entry.license,
        "source": entry.source,
        "revision": entry.revision,
        "manifest_sha256": row.manifest_sha256,
        "created_at": unix_seconds(row.created_at),
    }


def render_registration(row: BaseModelRegistration) -> dict[str, Any]:
    error = None if row.error_code is None else {"code": row.error_code, "message": row.error_message or ""}
    return {
        "id": row.id,
        "object": "organization.base_model_registration",
        "name": row.name,
        "directory": row.directory,
        "learning_rate": row.learning_rate,
        "license": row.license,
        "source": row.source,
        "revision": row.revision,
        "pull": row.is_pull,
        "status": row.state,
        "created_at": unix_seconds(row.created_at),
        "started_at": unix_seconds_or_none(row.started_at),
        "finished_at": unix_seconds_or_none(row.finished_at),
        "notes": row.notes,
        "error": error,
    }
