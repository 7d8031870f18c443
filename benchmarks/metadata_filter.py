"""The list of jobs filtered, 50,000 jobs: with the indexes and without, by metadata of every frequency, state and time.

python -m benchmarks.metadata_filter
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db import migrate
from app.db.engine import make_engine
from app.db.fast_reads import job_reads
from app.db.fast_reads.job_reads import JobFilter
from benchmarks.table import machine
from tests.stack import start_postgres

JOBS = 50_000
OLD = datetime(2026, 1, 3, tzinfo=UTC)  # the first job is of 1 January, one a minute
INDEXES = ("ix_jobs_metadata", "ix_jobs_state", "ix_jobs_created")
TIMES = 30  # psycopg prepares a statement at its fifth execution, PostgreSQL may take another plan at its sixth
# Pair -> the share of the jobs that have it. Every job has a `run` of its own; a tenth has no metadata at all.
PAIRS = {"all": 1, "half": 2, "tenth": 10, "hundredth": 100, "thousandth": 1_000, "one": 0}
FILL = """
INSERT INTO jobs (id, project_id, base_model, training_file_id, spec, metadata, state, event_seq, created_at,
                  finished_at, error_code)
SELECT 'ftjob-' || n, 'p' || (n % 4), 'm', 'file-1', '{}', CASE WHEN n % 10 <> 9 THEN jsonb_build_object(
  'all', 'yes', 'half', (n / 4 % 2)::text, 'tenth', (n / 4 % 10)::text, 'hundredth', (n / 4 % 100)::text,
  'thousandth', (n / 4 % 1000)::text, 'run', n::text) END, CASE WHEN n % 5000 = 0 THEN 'failed' ELSE 'cancelled' END, 1,
  timestamptz '2026-01-01Z' + n * interval '1 minute', now(), CASE WHEN n % 5000 = 0 THEN 'x' END
FROM generate_series(1, :jobs) AS n
"""


def main() -> None:
    print(f"{machine()}; {JOBS:,} jobs of 4 projects")
    url, stop = start_postgres()
    try:
        engine = make_engine(url)
        migrate.upgrade(engine)
        with Session(engine) as session:
            fill(session)
            measure(session, "with the indexes")
            for index in INDEXES:
                index_bytes = session.scalar(text(f"SELECT pg_relation_size('{index}')")) or 0
                print(f"{index}: {index_bytes / 1e6:.1f} MB")
                session.execute(text(f"DROP INDEX {index}"))
            session.commit()
            measure(session, "without them")
        engine.dispose()
    finally:
        stop()


def fill(session: Session) -> None:
    for number in range(4):
        session.execute(text("INSERT INTO projects (id, name) VALUES (:id, :id)"), {"id": f"p{number}"})
    session.execute(
        text(
            "INSERT INTO files (id, project_id, purpose, filename, bytes, sha256, storage_key) "
            "VALUES ('file-1', 'p0', 'fine-tune', 'x', 1, '', 'x')"
        )
    )
    began = time.perf_counter()
    session.execute(text(FILL), {"jobs": JOBS})
    session.commit()
    print(f"filled in {time.perf_counter() - began:.1f} s")
    session.execute(text("ANALYZE"))
    session.commit()


def measure(session: Session, title: str) -> None:
    print(f"\n{title}")
    for name in PAIRS:
        pair = {"run": "20000"} if name == "one" else {name: "yes" if name == "all" else "0"}
        middle = job_reads.find_last(session, "p0", f"ftjob-{JOBS // 2}")
        for when, after in (("first page", None), ("in the middle", middle)):
            wanted = JobFilter("p0", metadata=pair)
            tell(f"{name}, {when}", lambda wanted=wanted, after=after: job_reads.page(session, wanted, 21, after))
    tell("null", lambda: job_reads.page(session, JobFilter("p0", without_metadata=True), 21))
    for project_id, whose in (("p0", "one project"), (None, "all projects")):
        failed = JobFilter(project_id, states=["failed"])
        hour = JobFilter(project_id, created_from=OLD, created_until=OLD + timedelta(hours=1))
        tell(f"a rare state, {whose}", lambda wanted=failed: job_reads.page(session, wanted, 21))
        tell(f"an old hour, {whose}", lambda wanted=hour: job_reads.page(session, wanted, 21))


def tell(what: str, act: Callable[[], list[object]]) -> None:
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        row_count = len(act())
        taken.append(1000 * (time.perf_counter() - began))
    print(f"{what:28} {row_count:3} row_count, median {statistics.median(taken):7.2f} ms, largest {max(taken):7.2f} ms")


if __name__ == "__main__":
    main()
