"""The facts of `app.domain.operations.upgrade`, read before a migration."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from app.db import migrate
from app.db.operations import upgrade
from app.domain.operations.upgrade import UpgradeFacts
from app.settings import Settings, WebSettings

# Variables that other places read: the command line, `tunery up`, and images.
OTHER_VARIABLES = {"TUNERY_API_KEY", "TUNERY_BASE_URL", "TUNERY_DEBUG", "TUNERY_DATA_DIR"}


def facts(connection: Connection, version: str, environment: Iterable[str], free_bytes: int | None) -> UpgradeFacts:
    """`version` is that of this release, `environment` has names of variables; `free_bytes` of the database's disk."""
    revision = migrate.revision_of(connection)
    return UpgradeFacts(
        version=version,
        schema=revision,
        pending=upgrade.pending_revisions(revision),
        running_jobs=upgrade.running_jobs(connection),
        backup_age_seconds=upgrade.backup_age_seconds(connection),
        unknown_settings=unknown_settings(environment),
        worker_releases=upgrade.worker_releases(connection),
        largest_table_bytes=upgrade.largest_table_bytes(connection),
        free_bytes=free_bytes,
    )


def unknown_settings(environment: Iterable[str]) -> list[str]:
    """The names that begin as settings do, and that nothing in this release reads."""
    known = OTHER_VARIABLES | _names(Settings, "TUNERY_") | _names(WebSettings, "TUNERY_WEB_")
    return sorted(name for name in environment if name.startswith("TUNERY_") and name not in known)


def _names(model: type[Settings | WebSettings], prefix: str) -> set[str]:
    aliases = [field.validation_alias for field in model.model_fields.values()]
    return {f"{prefix}{name.upper()}" for name in model.model_fields} | {
        str(choice) for alias in aliases for choice in getattr(alias, "choices", ())
    }
