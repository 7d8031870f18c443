"""The schema: made by migrations alone, up and down, and equal to what the code believes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from app.db import migrate
from app.db.engine import make_engine
from tests.stack import temporary_database

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty(postgres_server: str) -> Iterator[Engine]:
    """An empty database beside the tests' own."""
    with temporary_database(postgres_server, "migrated") as url:
        engine = make_engine(url)
        yield engine
        engine.dispose()


def test_the_code_and_the_database_agree(empty: Engine) -> None:
    migrate.upgrade(empty)
    migrate.check(empty)  # raises when autogenerate would find something to do


def test_every_single_step_goes_down_and_up_again(empty: Engine) -> None:
    script = ScriptDirectory(str(migrate.MIGRATIONS))
    revisions = [revision.revision for revision in reversed(list(script.walk_revisions()))]
    for before, revision in zip(["base", *revisions], revisions, strict=False):
        migrate.upgrade(empty, revision)
        migrate.downgrade(empty, before)
        migrate.upgrade(empty, revision)
    migrate.check(empty)
    migrate.downgrade(empty, "base")
    assert inspect(empty).get_table_names() == ["alembic_version"]
    assert leftovers(empty) == []


def test_a_database_from_before_the_first_migration_is_refused(empty: Engine) -> None:
    migrate.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0033_counted_activations'"))
    with pytest.raises(migrate.SchemaTooOld, match=migrate.OLDEST_RELEASE):
        migrate.upgrade(empty)
    with empty.connect() as connection:
        assert (migrate.is_current(connection), migrate.is_newer(connection)) == (False, False)


def test_processes_that_start_at_once_migrate_once(empty: Engine) -> None:
    errors: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate.upgrade(empty)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with empty.connect() as connection:
        assert migrate.is_current(connection)


def test_the_container_s_command_migrates(empty: Engine) -> None:
    url = empty.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-m", "app.db.migrate"],
        cwd=ROOT,
        env={"DATABASE_URL": url, "REDIS_URL": "redis://nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with empty.connect() as connection:
        assert migrate.is_current(connection)


def leftovers(engine: Engine) -> list[str]:
    """Functions, types and sequences of ours that a downgrade forgot."""
    query = """
        SELECT proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = 'public'
        UNION ALL SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname = 'public' AND relkind IN ('S', 'v') AND relname NOT LIKE 'alembic%'
    """
    with engine.connect() as connection:
        return list(connection.scalars(text(query)))
