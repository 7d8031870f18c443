"""Leases of exports and evaluations."""

from __future__ import annotations

import pytest

from app.db.jobs.claims import Lease
from app.db.tables import Evaluation, Export
from app.system.boot_clock import boottime_seconds
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.leased_rows import RowLeaseKeeper


@pytest.mark.parametrize("table", [Export, Evaluation])
def test_a_message_of_a_row_without_events_is_logged_and_does_not_end_the_lease(
    harness: WorkerHarness, table: type[Export] | type[Evaluation]
) -> None:
    """The id of its lease is no job's, so an event of a job would find that the lease is lost."""
    keeper = RowLeaseKeeper(harness.resources, table, Lease("row-1", 1, "gpu0@test#1"), boottime_seconds())
    keeper.append_event("The bucket fails; the store is repeated")
    assert not keeper.fenced
