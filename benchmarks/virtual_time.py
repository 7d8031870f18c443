"""A PostgreSQL with a simulated clock_timestamp(), so that the queries of the service run unchanged.

A schema that is looked through before pg_catalog has a function of that name; the tables are made with it in place, so
their defaults use it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from app.db import migrate
from app.db.engine import make_engine
from tests.stack import start_postgres

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
CLOCK = """
CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
$$ SELECT coalesce(nullif(current_setting('virtual.now', true), '')::timestamptz, pg_catalog.clock_timestamp()) $$
"""


@contextmanager
def virtual_database() -> Iterator[Engine]:
    url, stop = start_postgres()
    try:
        plain = create_engine(url)
        with plain.begin() as connection:
            connection.execute(text("CREATE SCHEMA virtual"))
            connection.execute(text(CLOCK))
            connection.execute(text("ALTER ROLE CURRENT_USER SET search_path = virtual, pg_catalog, public"))
        plain.dispose()
        engine = make_engine(url)
        migrate.upgrade(engine)
        yield engine
        engine.dispose()
    finally:
        stop()


def set_clock(session: Session, seconds: float) -> None:
    """Set the time for the following statements of this connection."""
    now = (MONDAY + timedelta(seconds=seconds)).isoformat()
    session.execute(text("SELECT set_config('virtual.now', :now, false)"), {"now": now})
