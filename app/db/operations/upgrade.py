"""Facts about a database before its migration, in plain SQL: its tables may be those of an earlier release."""

from __future__ import annotations

from collections.abc import Mapping

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from app.db import migrate

BACKUP = text("SELECT extract(epoch FROM clock_timestamp() - updated_at) FROM service_state WHERE name = 'backup'")
HAS_STATE = text("SELECT to_regclass('service_state') IS NOT NULL")
LARGEST = text("SELECT coalesce(max(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables")
RUNNING = text("SELECT count(*) FROM jobs WHERE state = 'running'")
WORKERS = text(
    "SELECT id, about -> 'versions' ->> 'tunery' FROM workers WHERE seen_at > clock_timestamp() - interval '1 minute'"
)


def pending_revisions(revision: str | None) -> list[str] | None:
    """The revisions after this one, oldest first; None if this release does not contain it."""
    if revision is not None and revision not in migrate.revisions():
        return None
    scripts = ScriptDirectory(str(migrate.MIGRATIONS))
    newest_first = [script.revision for script in scripts.iterate_revisions("head", revision or "base")]
    return [each for each in reversed(newest_first) if each != revision]


def running_jobs(connection: Connection) -> int:
    return int(connection.scalar(RUNNING) or 0)


def backup_age_seconds(connection: Connection) -> float | None:
    """The age of the last complete backup; None if none was made."""
    age = connection.scalar(BACKUP) if connection.scalar(HAS_STATE) else None
    return None if age is None else float(age)


def largest_table_bytes(connection: Connection) -> int:
    """With its indexes."""
    return int(connection.scalar(LARGEST) or 0)


def worker_releases(connection: Connection) -> Mapping[str, str]:
    """{living worker: release}; `unknown` for one that does not report it."""
    return {row[0]: row[1] or "unknown" for row in connection.execute(WORKERS)}
