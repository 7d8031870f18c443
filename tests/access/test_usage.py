"""The usage of several projects at once is that of each of them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, update

from app.db.access import usage
from app.db.engine import Sessions, transaction
from app.db.tables import Attempt, Project
from app.storage import LocalStorage
from tests.factories import make_file, make_job, make_project, start_job, validate_job


def test_the_usage_of_each_project_is_counted(
    sessions: Sessions, project: Project, storage: LocalStorage, base_model: str
) -> None:
    with transaction(sessions) as session:
        other, idle = make_project(session, "other"), make_project(session, "idle")
        make_job(session, project, make_file(session, storage, project))
        validate_job(session)
        start_job(session)
        make_job(session, project, make_file(session, storage, project))
        make_file(session, storage, other, b"12345")
        minute_ago = func.clock_timestamp() - timedelta(seconds=60)
        session.execute(update(Attempt).where(Attempt.kind == "train").values(started_at=minute_ago))
    with transaction(sessions) as session:
        found = usage.usage_by_project(session, [project.id, other.id, idle.id])
        assert usage.usage_by_project(session, []) == {}
    assert (found[project.id].queued_jobs, found[project.id].running_jobs) == (1, 1)
    assert 0 < found[project.id].gpu_seconds_this_month < 120
    assert found[other.id] == usage.QuotaUsage(5, 0, 0, 0.0, 0.0)
    assert found[idle.id] == usage.QuotaUsage(0, 0, 0, 0.0, 0.0)
