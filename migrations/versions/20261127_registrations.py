"""Registrations of base models over HTTP: a queue for workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0030_registrations"
down_revision = "0029_evaluation_attempts"
branch_labels = None
depends_on = None

TABLE = "base_model_registrations"
NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        TABLE,
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("learning_rate", sa.Double(), nullable=True),
        *(sa.Column(name, sa.Text(), nullable=True) for name in ("license", "source", "revision")),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("crash_streak", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("run_after", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        *(
            sa.Column(name, sa.DateTime(timezone=True), nullable=True)
            for name in ("lease_expires_at", "started_at", "finished_at")
        ),
        sa.Column("notes", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('failed', 'queued', 'running', 'succeeded')", name=op.f(f"ck_{TABLE}_state")),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name=op.f(f"ck_{TABLE}_lease_whole")),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL)", name=op.f(f"ck_{TABLE}_running_has_lease")
        ),
        sa.CheckConstraint(
            "(state IN ('failed', 'succeeded')) = (finished_at IS NOT NULL)", name=op.f(f"ck_{TABLE}_finished_at")
        ),
        sa.CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name=op.f(f"ck_{TABLE}_error")),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{TABLE}")),
        sa.UniqueConstraint("seq", name=op.f(f"uq_{TABLE}_seq")),
    )
    op.create_index(
        f"uq_{TABLE}_unfinished",
        TABLE,
        ["name"],
        unique=True,
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )


def downgrade() -> None:
    op.drop_table(TABLE)
