"""Administration over HTTP, /v1/organization, with an admin key: from any machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

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
from app.cli.client.http import Client, Json
from app.cli.errors import CliError, NotFoundError, UsageError
from app.domain.access.scopes import validated_scopes
from app.domain.base_models.registrations import FINISHED
from app.domain.operations.retention import RetentionKind
from app.system.model_registration import RegistrationOptions

ORGANIZATION = "organization"
PROJECTS, KEYS = f"{ORGANIZATION}/projects", f"{ORGANIZATION}/api_keys"
POLL_SECONDS = 1.0
MAX_PAGE = 100


class HttpAdministration:
    def __init__(self, client: Client) -> None:
        self._client = client

    def projects(self, with_archived: bool) -> list[ProjectRecord]:
        query = {"include_archived": with_archived, "include_usage": True}
        return [ProjectRecord.of(each) for each in self._client.pages(PROJECTS, MAX_PAGE, **query)]

    def project(self, project: str) -> ProjectRecord:
        return ProjectRecord.of(self._client.get(f"{PROJECTS}/{self._find_project(project)['id']}"))

    def create_project(self, name: str, settings: ProjectSettings) -> ProjectRecord:
        return ProjectRecord.of(self._client.post(PROJECTS, {"name": name} | _settings_body(settings)))

    def change_project(self, project: str, name: str | None, settings: ProjectSettings) -> ProjectRecord:
        body = ({"name": name} if name is not None else {}) | _settings_body(settings)
        return ProjectRecord.of(self._client.post(f"{PROJECTS}/{self._find_project(project)['id']}", body))

    def archive_project(self, project: str, cancel_jobs: bool) -> ProjectRecord:
        path = f"{PROJECTS}/{self._find_project(project)['id']}/archive"
        return ProjectRecord.of(self._client.post(path, {"cancel_jobs": cancel_jobs}))

    def unarchive_project(self, project: str) -> ProjectRecord:
        return ProjectRecord.of(self._client.post(f"{PROJECTS}/{self._find_project(project)['id']}/unarchive"))

    def allow_urgent(self, project: str, is_allowed: bool) -> None:
        self._client.post(f"{PROJECTS}/{self._find_project(project)['id']}", {"may_be_urgent": is_allowed})

    def api_keys(self) -> list[KeyRecord]:
        """Oldest first, as on the database."""
        rows = list(self._client.pages(KEYS, MAX_PAGE, include_revoked=True))
        # after the keys: a project that is created in between has none of these
        names = {each["id"]: each["name"] for each in self._client.pages(PROJECTS, MAX_PAGE, include_archived=True)}
        return [KeyRecord.of(each | {"project": {"name": names[each["project_id"]]}}) for each in reversed(rows)]

    def create_key(
        self, project: str, name: str, scopes: Sequence[str], expires_in_seconds: int | None, create_project: bool
    ) -> CreatedKey:
        scopes = validated_scopes(scopes)  # before a project is created
        existing = self._lookup_project(project)
        if existing is None and not create_project:
            raise NotFoundError(
                f"No such project: {project!r}; see `tunery projects list`, or create it with `tunery projects create` "
                "or --create-project."
            )
        owner = existing or self._client.post(PROJECTS, {"name": project})
        body = {"name": name, "scopes": scopes, "expires_in_seconds": expires_in_seconds}
        key = self._client.post(f"{PROJECTS}/{owner['id']}/api_keys", body)
        return CreatedKey(key["id"], owner["name"], key["value"], existing is None)

    def rotate_key(self, key_id: str, overlap_seconds: int) -> RotatedKey:
        key = self._client.post(f"{self._key_path(key_id)}/rotate", {"overlap_seconds": overlap_seconds})
        return RotatedKey.of(key)

    def revoke_key(self, key_id: str) -> None:
        self._client.delete(self._key_path(key_id))

    def base_models(self) -> list[BaseModelRecord]:
        return [BaseModelRecord.of(each) for each in self._client.get(f"{ORGANIZATION}/base_models")["data"]]

    def register_base_model(
        self, name: str, directory: str, options: RegistrationOptions, on_note: Callable[[str], None]
    ) -> BaseModelRecord:
        """On a worker with torch: the path is one on its host."""
        return self._register(name, {"name": name, "directory": directory} | vars(options), on_note)

    def pull_base_model(
        self, name: str, parent: Path | None, options: RegistrationOptions, on_note: Callable[[str], None]
    ) -> BaseModelRecord:
        """On a worker with torch, into its own directory of all models."""
        if parent is not None:
            raise UsageError(
                "Over HTTP the directory is the server's TUNERY_BASE_MODEL_PULL_DIRECTORY: leave DIRECTORY out."
            )
        return self._register(name, {"name": name} | vars(options), on_note)

    def _register(self, name: str, body: Json, on_note: Callable[[str], None]) -> BaseModelRecord:
        row = self._client.post(f"{ORGANIZATION}/base_model_registrations", body)
        on_note(f"{row['id']} waits for a worker with torch. It goes on if this command is interrupted.")
        while row["status"] not in FINISHED:
            time.sleep(POLL_SECONDS)
            earlier, row = row, self._client.get(f"{ORGANIZATION}/base_model_registrations/{row['id']}")
            if row["status"] != earlier["status"] and row["status"] not in FINISHED:
                on_note(f"{row['id']} is {row['status']}.")
        for note in row["notes"]:
            on_note(note)
        if row["error"] is not None:
            raise UsageError(row["error"]["message"])
        for model in self.base_models():
            if model.name == name:
                return model
        raise CliError(f"The base model {name} was registered, and has been removed since by another command.")

    def remove_base_model(self, name: str) -> None:
        self._client.delete(f"{ORGANIZATION}/base_models/{quote(name, safe='')}")

    def aliases(self) -> list[AliasRecord]:
        data = self._client.get(f"{ORGANIZATION}/model_aliases")["data"]
        return [AliasRecord.of(each) for each in data]

    def set_alias(self, name: str, base_model: str) -> None:
        self._client.post(f"{ORGANIZATION}/model_aliases", {"name": name, "model": base_model})

    def remove_alias(self, name: str) -> None:
        self._client.delete(f"{ORGANIZATION}/model_aliases/{quote(name, safe='')}")

    def secrets(self) -> list[SecretRecord]:
        data = self._client.get(f"{ORGANIZATION}/secrets")["data"]
        return [SecretRecord.of(each) for each in data]

    def rotate_secrets(self) -> RotationRecord:
        return RotationRecord.of(self._client.post(f"{ORGANIZATION}/secrets/rotate"))

    def audit_entries(
        self, limit: int, after: str | None, project: str | None, actor_id: str | None, object_id: str | None
    ) -> tuple[list[AuditRecord], bool]:
        project_id = self._find_project(project)["id"] if project else None
        filters = {"project_ids[]": project_id, "actor_ids[]": actor_id, "resource_ids[]": object_id, "after": after}
        query = {name: value for name, value in filters.items() if value is not None}
        entries, has_more = self._client.first_items(f"{ORGANIZATION}/audit_logs", limit, MAX_PAGE, **query)
        return [AuditRecord.of(each) for each in entries], has_more

    def retention_rules(
        self, project: str | None, changes: Mapping[RetentionKind, int | None], dry_run: bool
    ) -> list[RetentionRecord]:
        if changes and project is not None:
            path = f"{PROJECTS}/{self._find_project(project)['id']}/retention_rules"
            found = self._client.post(path, {"rules": dict(changes), "dry_run": dry_run})
        else:
            query = {"project_id": self._find_project(project)["id"]} if project is not None else {}
            found = self._client.get(f"{ORGANIZATION}/retention_rules", include_due=dry_run, **query)
        return [RetentionRecord.of(each) for each in found["data"]]

    def _find_project(self, project: str) -> Json:
        found = self._lookup_project(project)
        if found is None:
            raise NotFoundError(f"No such project: {project!r}; see `tunery projects list`.")
        return found

    def _lookup_project(self, project: str) -> Json | None:
        """The project with this name, or else with this id; None if there is none."""
        every = list(self._client.pages(PROJECTS, MAX_PAGE, include_archived=True))
        by_name = (each for each in every if each["name"] == project)
        return next(by_name, None) or next((each for each in every if each["id"] == project), None)

    def _key_path(self, key_id: str) -> str:
        """The path of a key that is not revoked. Raises NotFoundError."""
        for each in self._client.pages(KEYS, MAX_PAGE):
            if each["id"] == key_id:
                return f"{PROJECTS}/{each['project_id']}/api_keys/{key_id}"
        raise NotFoundError(f"No active key has the id {key_id!r}; see `tunery keys list`.")


def _settings_body(settings: ProjectSettings) -> Json:
    """The settings as the API takes them: limits in an object of their own."""
    limits = {name: value for name, value in settings.items() if name != "share_weight"}
    body: Json = {"limits": limits} if limits else {}
    return body | {name: value for name, value in settings.items() if name == "share_weight"}
