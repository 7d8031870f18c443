"""Versions of jobs, notifications of changes and events, and logs of trainers.

The renewal of a lease changes nothing that clients read, so it neither increments the version nor notifies.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_notify"
down_revision = "0005_uploads"
branch_labels = None
depends_on = None

COUNT_VERSION = """
CREATE FUNCTION count_job_version() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  seen jobs := new;
BEGIN
  seen.lease_owner := old.lease_owner;
  seen.lease_expires_at := old.lease_expires_at;
  seen.run_after := old.run_after;
  seen.crash_streak := old.crash_streak;
  seen.version := old.version;
  new.version := old.version + (seen IS DISTINCT FROM old)::int;
  RETURN new;
END $$
"""
NOTIFY = """
CREATE FUNCTION notify_job() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  moved boolean := new.state = 'queued';
BEGIN
  IF TG_OP = 'UPDATE' THEN
    moved := (old.state = 'queued' OR new.state = 'queued')
      AND (old.state, old.desired, old.priority) IS DISTINCT FROM (new.state, new.desired, new.priority);
  END IF;
  PERFORM pg_notify(
    'tunery_jobs', concat_ws(' ', new.project_id, new.id, new.event_seq, CASE WHEN moved THEN 'queue' END)
  );
  RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("version", sa.BigInteger(), server_default="1", nullable=False))
    op.execute(COUNT_VERSION)
    op.execute(NOTIFY)
    # Before triggers run in order of their names, so this one runs after guard_job.
    op.execute("CREATE TRIGGER version_job BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION count_job_version()")
    op.execute("CREATE TRIGGER notify_new_job AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION notify_job()")
    op.execute(
        "CREATE TRIGGER notify_job AFTER UPDATE ON jobs FOR EACH ROW "
        "WHEN (new.version <> old.version) EXECUTE FUNCTION notify_job()"
    )
    op.create_table(
        "job_logs",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("cut_bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("octet_length(text) <= 65536", name=op.f("ck_job_logs_bounded")),
        sa.CheckConstraint("cut_bytes >= 0", name=op.f("ck_job_logs_cut_bytes")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_logs_job_id_jobs")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_job_logs_project_id_projects")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_job_logs")),
    )


def downgrade() -> None:
    op.drop_table("job_logs")
    op.execute("DROP TRIGGER notify_job ON jobs")
    op.execute("DROP TRIGGER notify_new_job ON jobs")
    op.execute("DROP TRIGGER version_job ON jobs")
    op.execute("DROP FUNCTION notify_job()")
    op.execute("DROP FUNCTION count_job_version()")
    op.drop_column("jobs", "version")
