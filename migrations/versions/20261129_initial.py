"""The first schema. A database at an earlier revision is migrated by an earlier release first (`app.db.migrate`)."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0034_served_models"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = Path(__file__).parents[1] / "initial_schema.sql"
DROP_ALL = """
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
    EXECUTE format('DROP TABLE %I CASCADE', name);
  END LOOP;
  FOR name IN SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace LOOP
    EXECUTE 'DROP FUNCTION ' || name;
  END LOOP;
END $$
"""


def upgrade() -> None:
    # The driver accepts several statements at once, as long as no parameters are given.
    op.get_bind().connection.cursor().execute(SCHEMA.read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute(DROP_ALL)
