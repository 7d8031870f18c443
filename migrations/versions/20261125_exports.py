"""Exports of checkpoints; the job that a job was cloned from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009_exports"
down_revision = "0008_hooks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("cloned_from", sa.Text(), nullable=True))
    op.create_foreign_key(op.f("fk_jobs_cloned_from_jobs"), "jobs", "jobs", ["cloned_from"], ["id"])
    op.create_table(
        "exports",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_now(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("step_number", sa.BigInteger(), nullable=False),
        sa.Column("adapter_file_ids", JSONB(), nullable=False),
        sa.Column("expected_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("crash_streak", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("run_after", sa.DateTime(timezone=True), server_default=_now(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("file_ids", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("manifest", JSONB(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.CheckConstraint("type IN ('merged')", name=op.f("ck_exports_type")),
        sa.CheckConstraint(
            "state IN ('cancelled', 'failed', 'queued', 'running', 'succeeded')", name=op.f("ck_exports_state")
        ),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name=op.f("ck_exports_lease_whole")),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL)", name=op.f("ck_exports_running_has_lease")
        ),
        sa.CheckConstraint(
            "(state IN ('cancelled', 'failed', 'succeeded')) = (finished_at IS NOT NULL)",
            name=op.f("ck_exports_finished_at"),
        ),
        sa.CheckConstraint("(state = 'succeeded') = (manifest IS NOT NULL)", name=op.f("ck_exports_manifest")),
        sa.CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name=op.f("ck_exports_error")),
        sa.CheckConstraint(
            "(state = 'cancelled') <= (deleted_at IS NOT NULL)", name=op.f("ck_exports_cancelled_is_deleted")
        ),
        sa.CheckConstraint(
            "(deleted_at IS NOT NULL) <= (finished_at IS NOT NULL)", name=op.f("ck_exports_deleted_is_finished")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_exports_project_id_projects")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_exports_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_exports_checkpoint_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
        sa.UniqueConstraint("seq", name=op.f("uq_exports_seq")),
    )
    op.create_index(
        "uq_exports_one_of_a_kind",
        "exports",
        ["model", "type"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL AND state <> 'failed'"),
    )
    op.create_index("ix_exports_claim", "exports", ["seq"], postgresql_where=sa.text("state = 'queued'"))
    op.create_index(
        "ix_exports_lease", "exports", ["lease_expires_at"], postgresql_where=sa.text("lease_owner IS NOT NULL")
    )
    op.create_index("ix_exports_page", "exports", ["job_id", "seq"])
    op.create_index(op.f("ix_exports_checkpoint_id"), "exports", ["checkpoint_id"])


def downgrade() -> None:
    op.drop_table("exports")
    op.drop_constraint(op.f("fk_jobs_cloned_from_jobs"), "jobs", type_="foreignkey")
    op.drop_column("jobs", "cloned_from")


def _now() -> sa.TextClause:
    return sa.text("clock_timestamp()")
