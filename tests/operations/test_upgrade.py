"""Checks before an upgrade from databases of this release and of the earliest one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, text, update

from app.db import migrate
from app.db.engine import Sessions, make_engine, transaction
from app.db.scheduling import workers
from app.db.tables import Project, ServiceState
from app.domain.operations.checks import Check
from app.services.operations import upgrade
from app.services.operations.backup import BackupError, back_up
from app.services.operations.backup_repository import BackupRepository
from app.storage import LocalStorage
from tests.factories import make_file, make_job, start_job, validate_job
from tests.stack import temporary_database


@pytest.fixture
def earliest(postgres_server: str) -> Iterator[Engine]:
    """A database at the first revision of this release."""
    with temporary_database(postgres_server, "before_upgrade") as url:
        engine = make_engine(url)
        migrate.upgrade(engine, migrate.OLDEST_REVISION)
        yield engine
        engine.dispose()


def checks(connection: Connection, **options: Any) -> dict[str, Check]:
    arguments: dict[str, Any] = {"version": "9.9", "environment": (), "free_bytes": 10**15} | options
    return {check.name: check for check in upgrade.checks(connection, **arguments)}


def test_an_earlier_schema_needs_migrations_a_backup_and_space(earliest: Engine) -> None:
    with earliest.connect() as connection:
        found = checks(connection)
        assert {name: check.level for name, check in found.items()} == {
            "schema": "ok",
            "backup": "problem",
            "disk": "ok",
            "jobs": "ok",
            "settings": "ok",
        }
        assert "to apply: 003" in found["schema"].observed
        assert found["schema"].observed.endswith(str(migrate.head()))
        full = checks(connection, free_bytes=1)["disk"]
        assert (full.level, bool(full.remedy)) == ("problem", True)
        assert "disk" not in checks(connection, free_bytes=None)


@pytest.mark.parametrize("revision", ["0033_counted_activations", "9999_later"])
def test_a_revision_that_this_release_does_not_know_is_a_problem(earliest: Engine, revision: str) -> None:
    with earliest.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        schema = checks(connection)["schema"]
    assert (schema.level, revision in schema.observed) == ("problem", True)
    assert (migrate.OLDEST_RELEASE in schema.remedy) == (revision < migrate.OLDEST_REVISION)


def test_backups_jobs_and_workers_of_the_present_are_read(
    sessions: Sessions, project: Project, storage: LocalStorage, base_model: str
) -> None:
    with transaction(sessions) as session:
        session.add(ServiceState(name="backup", data={}))
        for name, about in (("gpu0@a", {"versions": {"tunery": "0.1.0"}}), ("gpu0@b", {})):
            workers.heartbeat(session, name, "gpu", "host", 1, about)
        make_job(session, project, make_file(session, storage, project))
        validate_job(session)
        start_job(session)
        found = checks(session.connection(), environment=["TUNERY_GONE"])
        assert {name: check.level for name, check in found.items()} == {
            "schema": "ok",
            "backup": "ok",
            "jobs": "ok",
            "settings": "advice",
            "workers": "advice",
        }
        assert found["jobs"].observed == "1 running"
        assert "gpu0@b: unknown" in found["workers"].observed
        session.execute(update(ServiceState).values(updated_at=func.now() - timedelta(days=2)))
        assert checks(session.connection())["backup"].level == "advice"  # without a migration


def test_settings_that_nothing_reads_any_more_are_found() -> None:
    names = ["TUNERY_GONE", "TUNERY_LEASE_TTL_SECONDS", "TUNERY_WEB_PORT", "TUNERY_UPLOAD_IDLE_SECONDS", "PATH"]
    assert upgrade.unknown_settings([*names, "TUNERY_BASE_URL", "TUNERY_DATA_DIR"]) == ["TUNERY_GONE"]


def test_an_earlier_schema_is_backed_up_by_its_own_release(earliest: Engine, tmp_path: Path) -> None:
    url = earliest.url.render_as_string(hide_password=False)
    repository = BackupRepository(tmp_path / "backups")
    with pytest.raises(BackupError, match=migrate.OLDEST_REVISION):
        back_up(url, LocalStorage(tmp_path / "storage"), repository, [], lambda _: None)
    assert not repository.names()
