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
    directory: Text | None = None
    learning_rate: float | None = None
    license: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    source: Text | None = None
    revision: Text | None = None


class OrganizationBaseModel(Body):
    id: str
    object: Literal["organization.base_model"]
    project_id: str | None
    directory: str
    architecture: str
    parameters: int
    size_bytes: int
    max_context_length: int
    learning_rate: float
    target_modules: list[str]
    license: str | None
    source: str | None
    revision: str | None
    manifest_sha256: str
    created_at: int


class OrganizationBaseModelList(Body):
    object: Literal["list"]
    data: list[OrganizationBaseModel]


class BaseModelRemoved(Body):
    id: str
    object: Literal["organization.base_model.deleted"]
    deleted: Literal[True]


class RegistrationError(Body):
    code: str
    message: str


class RegistrationBody(Body):
    id: str
    object: Literal["organization.base_model_registration"]
    name: str
    directory: str
    learning_rate: float | None
    license: str | None
    source: str | None
    revision: str | None
    pull: bool
    status: RegistrationState
    created_at: int
    started_at: int | None
    finished_at: int | None
    notes: list[str]
    error: RegistrationError | None


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
