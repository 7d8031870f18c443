"""What the commands of operators show, and the interface by which they change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import AliasChoices, AliasPath, BaseModel, BeforeValidator, ConfigDict, Field

from app.domain.operations.retention import RetentionKind
from app.system.model_registration import RegistrationOptions

ProjectSettings = Mapping[str, int | float | None]  # limits and `share_weight`; None removes a limit


class AdministrationRecord(BaseModel):
    """A record of a row, or of an object of the API, which has other names for some fields."""

    model_config = ConfigDict(frozen=True, from_attributes=True, validate_by_name=True)

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls.model_validate(row)


def _as_dict(usage: Any) -> Any:
    return usage if usage is None or isinstance(usage, dict) else vars(usage)


class ProjectRecord(AdministrationRecord):
    id: str
    name: str
    archived_at: datetime | None
    limits: dict[str, int | None]
    share_weight: float
    usage: Annotated[dict[str, Any] | None, BeforeValidator(_as_dict)] = None


class KeyRecord(AdministrationRecord):
    id: str
    project: str = Field(validation_alias=AliasPath("project", "name"))
    name: str
    scopes: list[str]
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class CreatedKey:
    """`secret` is shown once. `is_new_project`: the project was created with the key."""

    id: str
    project: str
    secret: str
    is_new_project: bool


class RotatedKey(AdministrationRecord):
    id: str
    secret: str = Field(validation_alias=AliasChoices("secret", "value"))
    previous_expires_at: datetime | None = Field(
        validation_alias=AliasChoices("previous_expires_at", "previous_value_expires_at")
    )
    replaced_file: Path | None = None  # that had the old secret and has the new one


class AuditRecord(AdministrationRecord):
    id: str
    created_at: datetime = Field(validation_alias=AliasChoices("created_at", "effective_at"))
    actor_type: str = Field(validation_alias=AliasPath("actor", "type"))
    actor_id: str = Field(validation_alias=AliasPath("actor", "id"))
    action: str = Field(validation_alias=AliasChoices("action", "type"))
    project_id: str | None = Field(None, validation_alias=AliasPath("project", "id"))
    object_ids: list[str]
    address: str | None = Field(validation_alias=AliasChoices("address", "ip_address"))
    request_id: str | None


class RetentionRecord(AdministrationRecord):
    """`due_count` and `due_bytes` are what the rule deletes now; None unless the request includes them."""

    project: str = Field(validation_alias=AliasChoices(AliasPath("project", "name"), "project"))
    kind: str
    days: int
    due_count: int | None = Field(None, validation_alias=AliasPath("due", "count"))
    due_bytes: int | None = Field(None, validation_alias=AliasPath("due", "size_bytes"))


class BaseModelRecord(AdministrationRecord):
    name: str = Field(validation_alias=AliasChoices("name", "id"))
    directory: str
    architecture: str = Field(validation_alias=AliasChoices("architecture", AliasPath("entry", "architecture")))
    parameters: int = Field(validation_alias=AliasChoices("parameters", AliasPath("entry", "parameters")))
    context_length: int = Field(
        validation_alias=AliasChoices("max_context_length", AliasPath("entry", "context_length"))
    )
    learning_rate: float = Field(validation_alias=AliasChoices("learning_rate", AliasPath("entry", "learning_rate")))
    target_modules: Annotated[list[str], BeforeValidator(sorted)] = Field(
        validation_alias=AliasChoices("target_modules", AliasPath("entry", "target_modules"))
    )


class AliasRecord(AdministrationRecord):
    """`registered`: whether its base model still is."""

    name: str = Field(validation_alias=AliasChoices("name", "id"))
    model: str = Field(validation_alias=AliasChoices("base_model", "model"))
    registered: bool = Field(validation_alias=AliasChoices("is_registered", "registered"))


class SecretRecord(AdministrationRecord):
    kind: str
    id: str
    name: str
    project_id: str | None
    protection: str
    key: str | None


class RotationRecord(AdministrationRecord):
    rotated: int
    remaining: int
    lost: int


class Administration(Protocol):
    """A project is given by its name or id. Every method raises NotFoundError, UsageError or TuneryError."""

    def projects(self, with_archived: bool) -> list[ProjectRecord]: ...

    def project(self, project: str) -> ProjectRecord: ...

    def create_project(self, name: str, settings: ProjectSettings) -> ProjectRecord: ...

    def change_project(self, project: str, name: str | None, settings: ProjectSettings) -> ProjectRecord: ...

    def archive_project(self, project: str, cancel_jobs: bool) -> ProjectRecord: ...

    def unarchive_project(self, project: str) -> ProjectRecord: ...

    def allow_urgent(self, project: str, is_allowed: bool) -> None: ...

    def api_keys(self) -> list[KeyRecord]: ...

    def create_key(
        self, project: str, name: str, scopes: Sequence[str], expires_in_seconds: int | None, create_project: bool
    ) -> CreatedKey: ...

    def rotate_key(self, key_id: str, overlap_seconds: int) -> RotatedKey: ...

    def revoke_key(self, key_id: str) -> None: ...

    def base_models(self) -> list[BaseModelRecord]: ...

    def register_base_model(
        self, name: str, directory: str, options: RegistrationOptions, on_note: Callable[[str], None]
    ) -> BaseModelRecord:
        """Check, hash and register a directory; `on_note` gets sentences about what is done and what was found."""
        ...

    def pull_base_model(
        self, name: str, parent: Path | None, options: RegistrationOptions, on_note: Callable[[str], None]
    ) -> BaseModelRecord:
        """Download `options.source` at `options.revision` into a directory of its own in `parent`, and register it."""
        ...

    def remove_base_model(self, name: str) -> None: ...

    def aliases(self) -> list[AliasRecord]: ...

    def set_alias(self, name: str, base_model: str) -> None: ...

    def remove_alias(self, name: str) -> None: ...

    def secrets(self) -> list[SecretRecord]: ...

    def rotate_secrets(self) -> RotationRecord:
        """Re-encrypt a batch of secrets with the first key."""
        ...

    def audit_entries(
        self, limit: int, after: str | None, project: str | None, actor_id: str | None, object_id: str | None
    ) -> tuple[list[AuditRecord], bool]:
        """Newest first, and whether there are more."""
        ...

    def retention_rules(
        self, project: str | None, changes: Mapping[RetentionKind, int | None], dry_run: bool
    ) -> list[RetentionRecord]:
        """The rules after the changes; with `dry_run` nothing is stored, and each rule has what it deletes now."""
        ...
