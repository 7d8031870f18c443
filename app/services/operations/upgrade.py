"""What an operator should know before an upgrade, read before a migration.

In plain SQL: the tables of the database may be those of an earlier release.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from app.db import migrate
from app.domain.error_text.json_text import counted
from app.domain.operations.checks import Check, judge
from app.settings import Settings, WebSettings, removed_settings

MAX_BACKUP_AGE_SECONDS = 86_400
# Variables that other places read: the command line, `tunery up`, and images.
OTHER_VARIABLES = {"TUNERY_API_KEY", "TUNERY_BASE_URL", "TUNERY_DEBUG", "TUNERY_DATA_DIR"}
BACKUP = text("SELECT extract(epoch FROM clock_timestamp() - updated_at) FROM service_state WHERE name = 'backup'")
HAS_STATE = text("SELECT to_regclass('service_state') IS NOT NULL")
LARGEST = text("SELECT coalesce(max(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables")
RUNNING = text("SELECT count(*) FROM jobs WHERE state = 'running'")
WORKERS = text(
    "SELECT id, about -> 'versions' ->> 'tunery' FROM workers WHERE seen_at > clock_timestamp() - interval '1 minute'"
)


def checks(
    connection: Connection, version: str, environment: Collection[str], free_bytes: int | None
) -> Iterator[Check]:
    """`version` is that of this release, `environment` has names of variables; `free_bytes` of the database's disk."""
    revision = migrate.revision_of(connection)
    pending = _pending_revisions(revision)
    if pending is None:
        seen = f"revision {revision}, which this release does not know"
    elif pending:
        seen = f"{counted(len(pending), 'migration')} to apply: {', '.join(pending)}"
    else:
        seen = f"revision {revision}, nothing to migrate"
    newer = "a newer release has used the database: upgrade to that one"
    yield judge(
        "schema",
        seen,
        (migrate.is_too_old(revision), "problem", migrate.too_old_text(revision)),
        (pending is None, "problem", newer),
    )
    age = connection.scalar(BACKUP) if connection.scalar(HAS_STATE) else None
    yield judge(
        "backup",
        "none was made" if age is None else f"the last one is {float(age) / 3600:.1f} hours old",
        (
            age is None or age > MAX_BACKUP_AGE_SECONDS,
            "problem" if pending else "advice",
            "make one first: tunery backup DIRECTORY",
        ),
    )
    if pending and free_bytes is not None:
        largest_bytes = int(connection.scalar(LARGEST) or 0)
        yield judge(
            "disk",
            f"{free_bytes / 1e9:.1f} GB free; the largest table has {largest_bytes / 1e9:.1f} GB",
            (free_bytes < largest_bytes, "problem", "a migration may write a table anew: free space for the database"),
        )
    if running := connection.scalar(RUNNING):
        text = "they stop at a step when their worker stops, and go on from there"
        yield Check("jobs", "ok", f"{running} running", text)
    else:
        yield Check("jobs", "ok", "none is running")
    unknown = unknown_settings(environment)
    ignored = "this release ignores them: see docs/reference/settings.md and CHANGELOG.md for what replaces them"
    yield judge(
        "settings",
        f"unknown: {', '.join(unknown)}" if unknown else "every TUNERY_ variable is known",
        (unknown, "advice", "; ".join([*removed_settings(environment), ignored])),
    )
    releases = {row[0]: row[1] or "unknown" for row in connection.execute(WORKERS)}
    others = "; ".join(f"{name}: {release}" for name, release in sorted(releases.items()) if release != version)
    if releases:
        yield judge(
            "workers",
            others or f"{len(releases)} of release {version}",
            (others, "advice", "restart them with this release after the migration, one after the other"),
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
