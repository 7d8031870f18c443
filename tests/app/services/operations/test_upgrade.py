"""Facts before an upgrade, read from databases of this release and of the earliest one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from app.db import migrate
from app.db.engine import Sessions, make_engine, transaction
from app.db.scheduling import workers
from app.db.tables import ServiceState
from app.domain.operations.upgrade import OLDEST_REVISION
from app.services.operations import upgrade
from tests.stack import temporary_database


@pytest.fixture
def earliest(postgres_server: str) -> Iterator[Engine]:
    """A database at the first revision of this release."""
    with temporary_database(postgres_server, "before_upgrade") as url:
        engine = make_engine(url)
        migrate.upgrade(engine, OLDEST_REVISION)
        yield engine
        engine.dispose()


def test_the_distance_of_an_earlier_schema_is_known(earliest: Engine) -> None:
    with earliest.connect() as connection:
        facts = upgrade.facts(connection, "9.9", (), free_bytes=None)
    assert facts.schema == OLDEST_REVISION
    assert facts.pending is not None
    assert {OLDEST_REVISION, *facts.pending} == migrate.revisions()
    assert (facts.pending or [OLDEST_REVISION])[-1] == migrate.head()
    assert (facts.running_jobs, facts.backup_age_seconds, facts.worker_releases) == (0, None, {})


def test_a_revision_of_a_newer_release_is_not_a_distance(earliest: Engine) -> None:
    with earliest.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_later'"))
        assert upgrade.facts(connection, "9.9", (), free_bytes=None).pending is None


def test_backups_and_workers_of_the_present_are_read(sessions: Sessions) -> None:
    with transaction(sessions) as session:
        session.add(ServiceState(name="backup", data={}))
        for name, about in (("gpu0@a", {"versions": {"tunery": "0.1.0"}}), ("gpu0@b", {})):
            workers.heartbeat(session, name, "gpu", "host", 1, about)
        session.flush()
        facts = upgrade.facts(session.connection(), "9.9", (), free_bytes=None)
    assert facts.pending == []
    assert facts.backup_age_seconds is not None
    assert 0 <= facts.backup_age_seconds < 60
    assert facts.worker_releases == {"gpu0@a": "0.1.0", "gpu0@b": "unknown"}
    assert facts.largest_table_bytes > 0


def test_settings_that_nothing_reads_any_more_are_found() -> None:
    names = ["TUNERY_GONE", "TUNERY_LEASE_TTL_SECONDS", "TUNERY_WEB_PORT", "TUNERY_UPLOAD_IDLE_SECONDS", "PATH"]
    assert upgrade.unknown_settings([*names, "TUNERY_BASE_URL", "TUNERY_DATA_DIR"]) == ["TUNERY_GONE"]
