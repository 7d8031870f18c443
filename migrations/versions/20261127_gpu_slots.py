"""Memory that an attempt or an evaluation reserves on GPUs which several slots share, and its share of a GPU."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028_gpu_slots"
down_revision = "0027_job_request"
branch_labels = None
depends_on = None

TABLES = {"attempts": "ended_at", "evaluations": "finished_at"}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table, end in TABLES.items():
        op.add_column(table, sa.Column("gpu_uuids", postgresql.JSONB(none_as_null=True), nullable=True))
        op.add_column(table, sa.Column("budget_bytes", sa.BigInteger(), nullable=True))
        name = f"ck_{table}_reservation_whole"
        op.create_check_constraint(op.f(name), table, "(gpu_uuids IS NULL) = (budget_bytes IS NULL)")
        op.create_index(f"ix_{table}_reserved", table, [end], postgresql_where=sa.text("budget_bytes IS NOT NULL"))
    op.add_column("attempts", sa.Column("gpu_share", sa.Float(), server_default="1", nullable=False))
    op.create_check_constraint(op.f("ck_attempts_gpu_share"), "attempts", "gpu_share > 0 AND gpu_share <= 1")
    op.add_column("evaluations", sa.Column("worker", sa.Text(), nullable=True))


def downgrade() -> None:
    """Attempts count for whole GPUs again, as in the earlier release."""
    op.drop_column("evaluations", "worker")
    op.drop_column("attempts", "gpu_share")
    for table in TABLES:
        op.drop_column(table, "budget_bytes")
        op.drop_column(table, "gpu_uuids")
