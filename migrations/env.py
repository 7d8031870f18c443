"""Alembic's entry point. The connection is that of app.db.migrate, or from DATABASE_URL for Alembic's own command."""

from __future__ import annotations

from alembic import context

from app.db.engine import make_engine
from app.db.tables import Base
from app.settings import load_settings


def run(connection: object) -> None:
    context.configure(
        connection=connection,  # type: ignore[arg-type]
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with make_engine(load_settings().database_url).connect() as own:
        run(own)
        own.commit()
