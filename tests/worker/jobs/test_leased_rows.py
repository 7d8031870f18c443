"""Leases of exports and evaluations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text

from app.db.engine import Sessions, transaction
from app.db.jobs import leased_rows
from app.db.jobs.claims import FencedError, Lease
from app.db.tables import BaseModelRegistration, Evaluation, Export
from app.system.host import boottime_seconds
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.leased_rows import RowLeaseKeeper

IDS = select(BaseModelRegistration.id)


@pytest.mark.parametrize("table", [Export, Evaluation])
def test_a_message_of_a_row_without_events_is_logged_and_does_not_end_the_lease(
    harness: WorkerHarness, table: type[Export] | type[Evaluation]
) -> None:
    """The id of its lease is no job's, so an event of a job would find that the lease is lost."""
    keeper = RowLeaseKeeper(harness.resources, table, Lease("row-1", 1, "gpu0@test#1"), boottime_seconds())
    keeper.append_event("The bucket fails; the store is repeated")
    assert not keeper.fenced


@pytest.mark.parametrize("another", [{}, {"attempt": 1}, {"owner": "gpu0@test#2"}, {"job_id": "row-2"}])
def test_only_the_holder_of_a_lease_writes_its_row(sessions: Sessions, another: dict[str, Any]) -> None:
    lease = Lease("row-1", 2, "gpu0@test#1")
    with transaction(sessions) as session:
        session.add(BaseModelRegistration(id=lease.job_id, attempt=1, name="a", directory="/a"))
        session.flush()
        assert leased_rows.claim(session, BaseModelRegistration, IDS, lease.owner, 60) is not None
    tried = replace(lease, **another)
    with transaction(sessions) as session:
        for access in (leased_rows.lock_held, leased_rows.check_lease, leased_rows.requeue):
            if another:
                with pytest.raises(FencedError):
                    access(session, BaseModelRegistration, tried)
            else:
                access(session, BaseModelRegistration, tried)
    with transaction(sessions) as session:
        row = session.get_one(BaseModelRegistration, lease.job_id)
        assert row.state == ("running" if another else "queued")


def test_the_pauses_between_crashes_double_until_the_last_attempt(sessions: Sessions) -> None:
    seconds_until_next = text(
        "SELECT extract(epoch FROM run_after - clock_timestamp())::float FROM base_model_registrations"
    )
    delays = []
    with transaction(sessions) as session:
        row = BaseModelRegistration(id="row-1", name="a", directory="/a")
        session.add(row)
        session.flush()
        for _ in range(2):
            row = leased_rows.retry_or_fail(session, row, "worker_lost", "lost", 10, 3)
            delays.append(session.scalar(seconds_until_next))
        assert (row.state, delays) == ("queued", [pytest.approx(10, abs=2), pytest.approx(20, abs=2)])
        row = leased_rows.retry_or_fail(session, row, "worker_lost", "lost", 10, 3)
        assert (row.state, row.error_code, row.crash_streak) == ("failed", "worker_lost", 3)


def test_a_lease_is_lost_after_its_end_and_the_grace_period(sessions: Sessions) -> None:
    with transaction(sessions) as session:
        session.add(BaseModelRegistration(id="row-1", name="a", directory="/a"))
        session.flush()
        leased_rows.claim(session, BaseModelRegistration, IDS, "gpu0@test#1", -30)  # it ended 30 seconds ago
        assert leased_rows.lock_expired(session, BaseModelRegistration, 60) == []
        assert [row.id for row in leased_rows.lock_expired(session, BaseModelRegistration, 20)] == ["row-1"]
