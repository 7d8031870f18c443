"""The migrations up to the last one of the earlier commit make exactly the schema that its database had."""

from __future__ import annotations

from pathlib import Path

from app.db import migrate
from app.db.engine import make_engine
from tests.upgrade.make_fixtures import COMMIT, dump

REVISION = "0034_served_models"
SCHEMA = Path(__file__).parent / COMMIT / "schema.sql"


def objects(dumped: str) -> list[str]:
    """The lines of a dump, in its order, without comments and settings of pg_dump's session."""
    return [line for line in dumped.splitlines() if line and not line.startswith(("--", "SET "))]


def test_the_migrations_make_the_schema_of_the_earlier_commit(blank_database_url: str) -> None:
    engine = make_engine(blank_database_url)
    migrate.upgrade(engine, REVISION)
    engine.dispose()
    dumped = dump(blank_database_url.replace("postgresql+psycopg://", "postgresql://"), "--schema-only")
    assert objects(dumped) == objects(SCHEMA.read_text())
