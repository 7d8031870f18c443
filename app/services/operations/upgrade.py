"""The facts of `app.domain.operations.upgrade`, read before a migration.

In plain SQL: the tables of the database may be those of an earlier release.
"""

from __future__ import annotations

from collections.abc import Iterable

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from app.db import migrate
from app.domain.operations.upgrade import UpgradeFacts
from app.settings import Settings, WebSettings

# Variables that other places read: the command line, `tunery up`, and images.
OTHER_VARIABLES = {"TUNERY_API_KEY", "TUNERY_BASE_URL", "TUNERY_DEBUG", "TUNERY_DATA_DIR"}
BACKUP = text("SELECT extract(epoch FROM clock_timestamp() - updated_at) FROM service_state WHERE name = 'backup'")
HAS_STATE = text("SELECT to_regclass('service_state') IS NOT NULL")
LARGEST = text("SELECT coalesce(max(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables")
RUNNING = text("SELECT count(*) FROM jobs WHERE state = 'running'")
WORKERS = text(
    "SELECT id, about -> 'versions' ->> 'tunery' FROM workers WHERE seen_at > clock_timestamp() - interval '1 minute'"
)


def facts(connection: Connection, version: str, environment: Iterable[str], free_bytes: int | None) -> UpgradeFacts:
    """`version` is that of this release, `environment` has names of variables; `free_bytes` of the database's disk."""
    revision = migrate.revision_of(connection)
    backup_age = connection.scalar(BACKUP) if connection.scalar(HAS_STATE) else None
    return UpgradeFacts(
        version=version,
        schema=revision,
        pending=_pending_revisions(revision),
        running_jobs=int(connection.scalar(RUNNING) or 0),
        backup_age_seconds=None if backup_age is None else float(backup_age),
        unknown_settings=unknown_settings(environment),
        worker_releases={row[0]: row[1] or "unknown" for row in connection.execute(WORKERS)},
        largest_table_bytes=int(connection.scalar(LARGEST) or 0),
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


def _pending_revisions(revision: str | None) -> list[str] | None:
    """The revisions after this one, oldest first; None if this release does not contain it."""
    if revision is not None and revision not in migrate.revisions():
        return None
    scripts = ScriptDirectory(str(migrate.MIGRATIONS))
    newest_first = [script.revision for script in scripts.iterate_revisions("head", revision or "base")]
    return [each for each in reversed(newest_first) if each != revision]
