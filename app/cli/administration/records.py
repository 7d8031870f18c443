"""What the commands of operators show, and the interface by which they change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from app.domain.operations.retention import RetentionKind
from app.system.model_registration import RegistrationOptions

ProjectSettings = Mapping[str, int | float | None]  # limits and `share_weight`; None removes a limit


@dataclass(frozen=True)
class ProjectRecord:
    id: str
    name: str
    archived_at: datetime | None
    limits: dict[str, int | None]
    share_weight: float
    usage: dict[str, Any] | None = None


@dataclass(frozen=True)
class KeyRecord:
    id: str
    project: str
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


@dataclass(frozen=True)
class RotatedKey:
    id: str
    secret: str
    previous_expires_at: datetime | None
    replaced_file: Path | None = None  # that had the old secret and has the new one


@dataclass(frozen=True)
class AuditRecord:
    id: str
    created_at: datetime
    actor_type: str
    actor_id: str
    action: str
    project_id: str | None
    object_ids: list[str]
    address: str | None
    request_id: str | None


@dataclass(frozen=True)
class RetentionRecord:
    """`due_count` and `due_bytes` are what the rule deletes now; None unless the request includes them."""

    project: str
    kind: str
    days: int
    due_count: int | None = None
    due_bytes: int | None = None


@dataclass(frozen=True)
class BaseModelRecord:
    name: str
    directory: str
    architecture: str
    parameters: int
    context_length: int
    learning_rate: float
    target_modules: list[str]


@dataclass(frozen=True)
class AliasRecord:
    """`registered`: whether its base model still is."""

    name: str
    model: str
    registered: bool


@dataclass(frozen=True)
class SecretRecord:
    kind: str
    id: str
    name: str
    project_id: str | None
    protection: str
    key: str | None


@dataclass(frozen=True)
class RotationRecord:
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
