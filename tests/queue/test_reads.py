from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.fast_reads import job_reads
from app.db.fast_reads.job_reads import JobFilter

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
FILL = """
WITH project AS (
  INSERT INTO projects (id, name) SELECT 'p' || n, 'p' || n FROM generate_series(0, 3) AS n RETURNING id
),
file AS (
  INSERT INTO files (id, project_id, purpose, filename, bytes, sha256, storage_key)
  SELECT 'file-1', 'p0', 'fine-tune', 'x', 1, '', 'x' FROM (SELECT count(*) FROM project) AS made RETURNING id
)
INSERT INTO jobs (id, project_id, base_model, training_file_id, spec, state, event_seq, created_at, finished_at,
                  error_code)
SELECT 'ftjob-' || n, 'p' || (n % 4), 'm', file.id, '{}', CASE WHEN n % 2500 = 0 THEN 'failed' ELSE 'cancelled' END, 1,
       CAST(:began AS timestamptz) + n * interval '1 minute', now(), CASE WHEN n % 2500 = 0 THEN 'x' END
FROM file, generate_series(1, 10000) AS n
"""


@pytest.fixture
def many(sessions: Sessions) -> Sessions:
    """Ten thousand jobs of four projects, one a minute; four of them have failed."""
    with transaction(sessions) as session:
        session.execute(text(FILL), {"began": BEGAN})
    with transaction(sessions) as session:
        session.execute(text("ANALYZE jobs"))
    return sessions


def plan_of(session: Session, engine: Engine, wanted: JobFilter) -> tuple[str, list[str]]:
    """How PostgreSQL finds a page, and the ids of its jobs."""
    sent: list[tuple[str, dict[str, object]]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: dict[str, object], *_: object) -> None:
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    found = [job.id for job in job_reads.page(session, wanted, 21)]
    event.remove(engine, "before_cursor_execute", note)
    statement, parameters = sent[-1]
    cursor = session.connection().connection.cursor()
    cursor.execute(f"EXPLAIN (ANALYZE) {statement}", parameters)  # type: ignore[arg-type]
    return "\n".join(row[0] for row in cursor.fetchall()), found


@pytest.mark.parametrize("project_id", ["p0", None])
def test_a_rare_state_is_found_by_an_index(many: Sessions, engine: Engine, project_id: str | None) -> None:
    with transaction(many) as session:
        plan, found = plan_of(session, engine, JobFilter(project_id, states=["failed"]))
    assert found == ["ftjob-10000", "ftjob-7500", "ftjob-5000", "ftjob-2500"]
    assert "ix_jobs_state" in plan or "ix_jobs_failed" in plan
    assert "Rows Removed" not in plan


def test_an_old_hour_is_found_by_an_index(many: Sessions, engine: Engine) -> None:
    day = BEGAN + timedelta(days=1)
    wanted = JobFilter("p0", created_from=day, created_until=day + timedelta(hours=1))
    with transaction(many) as session:
        plan, found = plan_of(session, engine, wanted)
    assert found == [f"ftjob-{number}" for number in range(1496, 1439, -4)]
    assert "ix_jobs_created" in plan
    assert "Rows Removed" not in plan


def test_a_common_state_is_found_from_the_newest_job_backwards(many: Sessions, engine: Engine) -> None:
    with transaction(many) as session:
        plan, found = plan_of(session, engine, JobFilter("p0", states=["cancelled"]))
    assert len(found) == 21
    removed = [int(count) for count in re.findall(r"Removed by Filter: (\d+)", plan)]
    assert max(removed, default=0) < 200
