"""Measured memory and time of jobs beside the predictions, by which later plans of similar jobs are corrected."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_measurements"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "measurements",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("device_kind", sa.Text(), nullable=False),
        sa.Column("device_name", sa.Text(), nullable=False),
        sa.Column("base_manifest_sha256", sa.Text(), nullable=False),
        sa.Column("quantization", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("recompute", sa.Text(), nullable=False),
        sa.Column("cache_weights", sa.Boolean(), nullable=False),
        sa.Column("formula_loaded_bytes", sa.BigInteger(), nullable=False),
        sa.Column("formula_working_bytes", sa.BigInteger(), nullable=False),
        sa.Column("predicted_peak_bytes", sa.BigInteger(), nullable=False),
        sa.Column("predicted_seconds", sa.Float(), nullable=False),
        sa.Column("loaded_bytes", sa.BigInteger(), nullable=False),
        sa.Column("peak_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("step_seconds", sa.Float(), nullable=True),
        sa.Column("step_tokens", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_measurements_job_id_jobs")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_measurements_project_id_projects")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_measurements")),
    )
    op.create_index(
        "ix_measurements_alike", "measurements", ["base_manifest_sha256", "device_name", "quantization", "created_at"]
    )


def downgrade() -> None:
    op.drop_index("ix_measurements_alike", table_name="measurements")
    op.drop_table("measurements")
