"""Retention rules of projects; none exists at first, so nothing is deleted for its age."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024_retention"
down_revision = "0023_deliveries"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    kinds = "'files', 'checkpoints', 'logs', 'events', 'exports'"
    op.create_table(
        "retention_rules",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("days", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(f"kind IN ({kinds})", name=op.f("ck_retention_rules_kind")),
        sa.CheckConstraint("days BETWEEN 1 AND 36500", name=op.f("ck_retention_rules_days")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_retention_rules_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", "kind", name=op.f("pk_retention_rules")),
    )


def downgrade() -> None:
    op.drop_table("retention_rules")
