"""The fair queue: requirements of jobs, usage of projects, queue positions, and preemption."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007_queue"
down_revision = "0006_notify"
branch_labels = None
depends_on = None

FALSE = sa.text("false")
WAITING = sa.text("state IN ('queued', 'validating_files')")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("projects", sa.Column("may_be_urgent", sa.Boolean(), server_default=FALSE, nullable=False))

    op.add_column("jobs", sa.Column("is_urgent", sa.Boolean(), server_default=FALSE, nullable=False))
    labels = postgresql.JSONB(astext_type=sa.Text())
    op.add_column("jobs", sa.Column("worker_labels", labels, server_default=sa.text("'[]'::jsonb"), nullable=False))
    op.add_column("jobs", sa.Column("needed_cpu_bytes", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("needed_cuda_bytes", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("planned_seconds", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("yield_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("times_yielded", sa.BigInteger(), server_default="0", nullable=False))
    op.create_check_constraint(op.f("ck_jobs_priority"), "jobs", "priority BETWEEN -100 AND 100")
    op.create_check_constraint(
        op.f("ck_jobs_yield_only_while_running"), "jobs", "(yield_requested_at IS NOT NULL) <= (state = 'running')"
    )
    op.drop_index("ix_jobs_claim", table_name="jobs")
    order = [sa.literal_column("is_urgent DESC"), sa.literal_column("priority DESC"), "seq"]
    op.create_index("ix_jobs_claim", "jobs", ["state", "project_id", *order], postgresql_where=WAITING)

    # Attempts that ended before the fair share existed do not count; running ones do.
    op.add_column("attempts", sa.Column("is_counted", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.alter_column("attempts", "is_counted", server_default=FALSE)
    op.execute("UPDATE attempts SET is_counted = false WHERE ended_at IS NULL")
    op.create_index(
        "ix_attempts_uncounted",
        "attempts",
        ["project_id"],
        postgresql_where=sa.text("NOT is_counted AND kind = 'train'"),
    )

    op.create_table(
        "project_usage",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("gpu_seconds", sa.Float(), server_default="0", nullable=False),
        sa.Column(
            "counted_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("validation_turn_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("gpu_seconds >= 0", name=op.f("ck_project_usage_gpu_seconds")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_project_usage_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_project_usage")),
    )
    op.create_table(
        "queue_places",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("expected_start_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("waiting_for", sa.Text(), nullable=True),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_told", sa.Boolean(), server_default=FALSE, nullable=False),
        sa.CheckConstraint("position >= 1", name=op.f("ck_queue_places_position")),
        sa.CheckConstraint(
            "(waiting_for IS NULL) = (waiting_since IS NULL)", name=op.f("ck_queue_places_waiting_whole")
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_queue_places")),
        prefixes=["UNLOGGED"],
    )
    op.create_index("ix_queue_places_position", "queue_places", ["position"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("queue_places")
    op.drop_table("project_usage")
    op.drop_index("ix_attempts_uncounted", table_name="attempts")
    op.drop_column("attempts", "is_counted")
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.create_index(
        "ix_jobs_claim", "jobs", ["state", sa.literal_column("priority DESC"), "seq"], postgresql_where=WAITING
    )
    op.drop_constraint(op.f("ck_jobs_priority"), "jobs")
    for column in (
        "times_yielded", "yield_requested_at", "planned_seconds", "needed_cuda_bytes", "needed_cpu_bytes",
        "worker_labels", "is_urgent",
    ):  # fmt: skip
        op.drop_column("jobs", column)
    op.drop_column("projects", "may_be_urgent")
