"""The GPU time of evaluations: a row for each time that a worker held one.

A trigger writes the end of each, as an attempt ends in many ways: a result, an error, a cancel, a lost worker, a
shutdown.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0029_evaluation_attempts"
down_revision = "0028_gpu_slots"
branch_labels = None
depends_on = None

END_ATTEMPT = """
CREATE FUNCTION end_evaluation_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF old.lease_owner IS NOT NULL AND (new.lease_owner IS NULL OR new.attempt <> old.attempt) THEN
    UPDATE evaluation_attempts SET ended_at = clock_timestamp()
    WHERE evaluation_id = old.id AND attempt = old.attempt AND ended_at IS NULL;
  END IF;
  RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "evaluation_attempts",
        sa.Column("evaluation_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("gpus", sa.Float(), nullable=False),
        sa.Column("is_counted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("gpus > 0", name=op.f("ck_evaluation_attempts_gpus")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_evaluation_attempts_evaluation_id_evaluations")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_evaluation_attempts_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "attempt", name=op.f("pk_evaluation_attempts")),
    )
    op.create_index("ix_evaluation_attempts_usage", "evaluation_attempts", ["project_id", "ended_at"])
    op.create_index(
        "ix_evaluation_attempts_uncounted",
        "evaluation_attempts",
        ["project_id"],
        postgresql_where=sa.text("NOT is_counted"),
    )
    op.execute(END_ATTEMPT)
    op.execute(
        "CREATE TRIGGER end_evaluation_attempt AFTER UPDATE OF lease_owner ON evaluations "
        "FOR EACH ROW EXECUTE FUNCTION end_evaluation_attempt()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER end_evaluation_attempt ON evaluations")
    op.execute("DROP FUNCTION end_evaluation_attempt()")
    op.drop_table("evaluation_attempts")
