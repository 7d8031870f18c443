"""What an operator should know before an upgrade: rules on facts that the database and the disk give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

MAX_BACKUP_AGE_SECONDS = 86_400.0

OLDEST_REVISION = "0034_served_models"
OLDEST_RELEASE = "942affe"  # the commit whose schema that is

Level = Literal["ok", "advice", "problem"]


@dataclass(frozen=True)
class UpgradeFacts:
    """Ages are seconds, sizes bytes; None: unknown. `version` is that of the release which is about to be started."""

    version: str
    schema: str | None  # the revision of the database
    pending: Sequence[str] | None  # the revisions to apply, oldest first; None: the database is not of this line
    running_jobs: int
    backup_age_seconds: float | None
    unknown_settings: Sequence[str]
    worker_releases: Mapping[str, str]
    largest_table_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class UpgradeCheck:
    subject: str
    level: Level
    observed: str
    advice: str = ""


def is_too_old(revision: str | None) -> bool:
    """Whether no migration of this release begins at the revision. The names of revisions begin with their number."""
    return revision is not None and revision < OLDEST_REVISION


def too_old_text(revision: str | None) -> str:
    return (
        f"The schema {revision} is older than {OLDEST_REVISION}, the oldest that this release migrates. Start the "
        f"commit {OLDEST_RELEASE} once with this database, stop it, and start this release."
    )


def check_upgrade(facts: UpgradeFacts) -> list[UpgradeCheck]:
    """One line for each subject, as `tunery doctor` prints them."""
    return [
        _schema(facts),
        _backup(facts),
        *_disk(facts),
        _jobs(facts),
        *_settings(facts),
        *_workers(facts),
    ]


def _schema(facts: UpgradeFacts) -> UpgradeCheck:
    if is_too_old(facts.schema):
        return UpgradeCheck("schema", "problem", f"revision {facts.schema}", too_old_text(facts.schema))
    if facts.pending is None:
        seen = f"revision {facts.schema}, which this release does not know"
        return UpgradeCheck("schema", "problem", seen, "a newer release has used the database: upgrade to that one")
    if not facts.pending:
        return UpgradeCheck("schema", "ok", f"revision {facts.schema}, nothing to migrate")
    seen = f"{len(facts.pending)} migrations to apply: {', '.join(facts.pending)}"
    return UpgradeCheck("schema", "ok", seen)


def _backup(facts: UpgradeFacts) -> UpgradeCheck:
    age, advice = facts.backup_age_seconds, "make one first: tunery backup DIRECTORY"
    level: Level = "problem" if facts.pending else "advice"
    if age is None:
        return UpgradeCheck("backup", level, "none was made", advice)
    seen = f"the last one is {age / 3600:.1f} hours old"
    if age > MAX_BACKUP_AGE_SECONDS:
        return UpgradeCheck("backup", level, seen, advice)
    return UpgradeCheck("backup", "ok", seen)


def _disk(facts: UpgradeFacts) -> Iterator[UpgradeCheck]:
    if not facts.pending or facts.free_bytes is None:
        return
    seen = f"{facts.free_bytes / 1e9:.1f} GB free; the largest table has {facts.largest_table_bytes / 1e9:.1f} GB"
    if facts.free_bytes >= facts.largest_table_bytes:
        yield UpgradeCheck("disk", "ok", seen)
    else:
        yield UpgradeCheck("disk", "problem", seen, "a migration may write a table anew: free space for the database")


def _jobs(facts: UpgradeFacts) -> UpgradeCheck:
    if not facts.running_jobs:
        return UpgradeCheck("jobs", "ok", "none is running")
    seen = f"{facts.running_jobs} running"
    return UpgradeCheck("jobs", "ok", seen, "they stop at a step when their worker stops, and go on from there")


def _settings(facts: UpgradeFacts) -> Iterator[UpgradeCheck]:
    if facts.unknown_settings:
        names = ", ".join(facts.unknown_settings)
        advice = "this release ignores them: see docs/settings.md and CHANGELOG.md for what replaces them"
        yield UpgradeCheck("settings", "advice", f"unknown: {names}", advice)
    else:
        yield UpgradeCheck("settings", "ok", "every TUNERY_ variable is known")


def _workers(facts: UpgradeFacts) -> Iterator[UpgradeCheck]:
    others = {name: release for name, release in facts.worker_releases.items() if release != facts.version}
    if others:
        seen = "; ".join(f"{name}: {release}" for name, release in sorted(others.items()))
        advice = "restart them with this release after the migration, one after the other"
        yield UpgradeCheck("workers", "advice", seen, advice)
    elif facts.worker_releases:
        yield UpgradeCheck("workers", "ok", f"{len(facts.worker_releases)} of release {facts.version}")
