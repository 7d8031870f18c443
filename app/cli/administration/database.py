"""Administration on the database of the server. One method is one transaction, with an entry in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.cli.administration.records import (
    AliasRecord,
    AuditRecord,
    BaseModelRecord,
    CreatedKey,
    KeyRecord,
    ProjectRecord,
    ProjectSettings,
    RetentionRecord,
    RotatedKey,
    RotationRecord,
    SecretRecord,
)
from app.cli.client.database import Database
from app.cli.errors import NotFoundError, UsageError
from app.cli.local_stack.data_directory import write_secret
from app.db.access import audit
from app.db.base_models import models
from app.db.tables import ApiKey, AuditEntry, Project
from app.domain.base_models.registrations import option_problems
from app.domain.operations.retention import RetentionKind
from app.errors import combine_errors
from app.services import base_models
from app.services.access import audit as audit_log
from app.services.access import keys, projects
from app.services.operations import retention, secrets
from app.services.resources import Page
from app.system.model_registration import RegistrationOptions, check_and_hash

MAX_PROJECTS = 10_000
MAX_ROTATED = 500  # secrets in one transaction


class DatabaseAdministration:
    def __init__(self, database: Database, encryption_keys: Sequence[str], admin_key_file: Path) -> None:
        """`admin_key_file` is that of the data directory, which need not exist."""
        self._database = database
        self._encryption_keys = encryption_keys
        self._admin_key_file = admin_key_file

    def projects(self, with_archived: bool) -> list[ProjectRecord]:
        with self._database.transaction() as session:
            rows = projects.page(session, Page(MAX_PROJECTS), with_archived)
            return [ProjectRecord.of(row) for row in projects.with_usage(session, *rows)]

    def project(self, project: str) -> ProjectRecord:
        with self._database.transaction() as session:
            return ProjectRecord.of(projects.with_usage(session, _find_project(session, project))[0])

    def create_project(self, name: str, settings: ProjectSettings) -> ProjectRecord:
        with self._database.transaction() as session:
            return ProjectRecord.of(projects.create(session, name, settings))

    def change_project(self, project: str, name: str | None, settings: ProjectSettings) -> ProjectRecord:
        with self._database.transaction() as session:
            return ProjectRecord.of(projects.change(session, _find_project(session, project).id, name, settings))

    def archive_project(self, project: str, cancel_jobs: bool) -> ProjectRecord:
        with self._database.transaction() as session:
            return ProjectRecord.of(projects.archive(session, _find_project(session, project).id, None, cancel_jobs))

    def unarchive_project(self, project: str) -> ProjectRecord:
        with self._database.transaction() as session:
            return ProjectRecord.of(projects.unarchive(session, _find_project(session, project).id))

    def allow_urgent(self, project: str, is_allowed: bool) -> None:
        with self._database.transaction() as session:
            _find_project(session, project).may_be_urgent = is_allowed

    def api_keys(self) -> list[KeyRecord]:
        with self._database.transaction() as session:
            return [KeyRecord.of(key) for key in session.scalars(select(ApiKey).order_by(ApiKey.seq))]

    def create_key(
        self, project: str, name: str, scopes: Sequence[str], expires_in_seconds: int | None, create_project: bool
    ) -> CreatedKey:
        with self._database.transaction() as session:
            existing = projects.find(session, project)
            owner = existing or _create_project(session, project, create_project)
            key = keys.create(session, owner, name, scopes, expires_in_seconds)
            return CreatedKey(key.id, owner.name, key.secret or "", existing is None)

    def rotate_key(self, key_id: str, overlap_seconds: int) -> RotatedKey:
        """Also in the file of the data directory, if that has the key: `tunery up` and its commands read it."""
        file_secret = _read(self._admin_key_file)
        with self._database.transaction() as session:
            in_file = keys.find_by_secret(session, file_secret) if file_secret else None
            is_in_file = in_file is not None and in_file.id == key_id
            key = keys.rotate(session, None, key_id, overlap_seconds)
            rotated = RotatedKey.of(key)
        if not is_in_file:
            return rotated
        write_secret(self._admin_key_file, f"{rotated.secret}\n")
        return rotated.model_copy(update={"replaced_file": self._admin_key_file})

    def revoke_key(self, key_id: str) -> None:
        with self._database.transaction() as session:
            key = session.get(ApiKey, key_id)
            if key is None or key.revoked_at is not None:
                raise NotFoundError(f"No active key has the id {key_id!r}; see `tunery keys list`.")
            keys.revoke(session, None, key_id)

    def base_models(self) -> list[BaseModelRecord]:
        with self._database.transaction() as session:
            return [BaseModelRecord.of(row) for row in models.list_base(session)]

    def register_base_model(
        self, name: str, directory: str, options: RegistrationOptions, on_note: Callable[[str], None]
    ) -> BaseModelRecord:
        """On this host; a relative path is allowed."""
        if problems := option_problems(name, options.learning_rate, options.source, options.revision):
            raise combine_errors(problems)
        with self._database.transaction() as session:  # before the long check, and again with the registration
            base_models.refuse_alias_name(session, name)
        checked = check_and_hash(Path(directory).absolute(), options, on_note)
        with self._database.transaction() as session:
            audit.add_object(name, None)
            base_models.refuse_alias_name(session, name)
            models.register(session, name, checked.directory, checked.files, checked.manifest_sha256, checked.entry)
        described = {"name": name, "directory": str(checked.directory), "entry": checked.entry.model_dump()}
        return BaseModelRecord.of(described)

    def pull_base_model(
        self, name: str, parent: Path | None, options: RegistrationOptions, on_note: Callable[[str], None]
    ) -> BaseModelRecord:
        """On this host; a relative path is allowed."""
        if parent is None or options.source is None:
            raise UsageError("Name the directory of all models: `tunery models pull ORGANIZATION/NAME DIRECTORY`.")
        if problems := option_problems(name, options.learning_rate, options.source, options.revision):
            raise combine_errors(problems)
        with self._database.transaction() as session:
            base_models.refuse_alias_name(session, name)
        from app import model_hub  # slow import

        pulled = model_hub.pull(options.source, options.revision, parent.absolute(), on_note)
        options = replace(options, revision=pulled.commit)
        return self.register_base_model(name, str(pulled.directory), options, on_note)

    def remove_base_model(self, name: str) -> None:
        with self._database.transaction() as session:
            base_models.remove(session, name)

    def aliases(self) -> list[AliasRecord]:
        with self._database.transaction() as session:
            return [AliasRecord.of(alias) for alias in base_models.list_aliases(session)]

    def set_alias(self, name: str, base_model: str) -> None:
        with self._database.transaction() as session:
            audit.add_object(name, None)
            base_models.set_alias(session, name, base_model)

    def remove_alias(self, name: str) -> None:
        with self._database.transaction() as session:
            base_models.remove_alias(session, name)

    def secrets(self) -> list[SecretRecord]:
        with self._database.transaction() as session:
            return [SecretRecord.of(each) for each in secrets.view(session, self._encryption_keys)]

    def rotate_secrets(self) -> RotationRecord:
        with self._database.transaction() as session:
            return RotationRecord.of(secrets.rotate(session, self._encryption_keys, MAX_ROTATED))

    def audit_entries(
        self, limit: int, after: str | None, project: str | None, actor_id: str | None, object_id: str | None
    ) -> tuple[list[AuditRecord], bool]:
        with self._database.transaction() as session:
            if after is not None and session.get(AuditEntry, after) is None:
                raise NotFoundError(f"The audit log has no entry {after!r}.")
            rows = audit_log.page(
                session,
                limit + 1,
                after,
                project_ids=[_find_project(session, project).id] if project else [],
                actor_ids=[actor_id] if actor_id else [],
                object_ids=[object_id] if object_id else [],
            )
            return [AuditRecord.of(row) for row in rows[:limit]], len(rows) > limit

    def retention_rules(
        self, project: str | None, changes: Mapping[RetentionKind, int | None], dry_run: bool
    ) -> list[RetentionRecord]:
        with self._database.transaction() as session:
            project_id = _find_project(session, project).id if project is not None else None
            if changes and project_id is not None:
                rules = (retention.preview if dry_run else retention.change)(session, project_id, changes)
            else:
                rules = retention.view(session, project_id, dry_run)
            return [RetentionRecord.of(rule) for rule in rules]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _find_project(session: Session, project: str) -> Project:
    """The project with this name or id. Raises NotFoundError."""
    row = projects.find(session, project)
    if row is None:
        raise NotFoundError(f"No such project: {project!r}; see `tunery projects list`.")
    return row


def _create_project(session: Session, name: str, is_requested: bool) -> Project:
    """Create the project of a key if that is requested (a typo must not create one) or this is the first key."""
    if not is_requested and keys.has_usable_key(session):
        raise NotFoundError(
            f"No such project: {name!r}; see `tunery projects list`, or create it with `tunery projects create` or "
            "--create-project."
        )
    return projects.ensure(session, projects.validate_name(name, "--project"))
