"""A trigger refuses transitions of a job's state that the state machine does not have.

tests/app/db/test_state_guard.py has the same pairs, and tries every other one.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

GUARD = """
CREATE FUNCTION guard_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF new.state <> old.state AND (old.state, new.state) NOT IN (
    ('validating_files', 'queued'), ('validating_files', 'failed'), ('validating_files', 'cancelled'),
    ('queued', 'running'), ('queued', 'paused'), ('queued', 'failed'), ('queued', 'cancelled'),
    ('running', 'queued'), ('running', 'paused'), ('running', 'succeeded'), ('running', 'failed'),
    ('running', 'cancelled'),
    ('paused', 'queued'), ('paused', 'cancelled')
  ) THEN
    RAISE EXCEPTION 'job %: % cannot become %', old.id, old.state, new.state USING ERRCODE = 'check_violation';
  END IF;
  IF new.attempt < old.attempt OR new.event_seq < old.event_seq OR new.train_attempts < old.train_attempts THEN
    RAISE EXCEPTION 'job %: attempt and event numbers never go down', old.id USING ERRCODE = 'check_violation';
  END IF;
  IF new.spec <> old.spec OR new.project_id <> old.project_id OR new.training_file_id <> old.training_file_id THEN
    RAISE EXCEPTION 'job %: what was asked for never changes', old.id USING ERRCODE = 'check_violation';
  END IF;
  IF new.state = 'succeeded' AND old.state <> 'succeeded' AND new.desired <> 'run' THEN
    RAISE EXCEPTION 'job %: succeeded, although % was asked for', old.id, new.desired USING ERRCODE = 'check_violation';
  END IF;
  RETURN new;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(GUARD)
    op.execute("CREATE TRIGGER guard_job BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION guard_job()")


def downgrade() -> None:
    op.execute("DROP TRIGGER guard_job ON jobs")
    op.execute("DROP FUNCTION guard_job()")
