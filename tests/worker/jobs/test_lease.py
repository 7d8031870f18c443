"""Leases: renewal, retried writes, claims whose COMMIT was not confirmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.jobs import leases
from app.db.jobs.leases import FencedError
from app.db.tables import Job, JobEvent
from app.domain.jobs.states import Reason
from app.system.host import boottime_seconds
from tests.deadline import until
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.exit_classification import AttemptOutcome
from worker.jobs.lease import JobAttempt, LeaseKeeper, LeaseUncertain

CONNECTION_LOST = psycopg.OperationalError("server closed the connection unexpectedly")
UNAVAILABLE = OperationalError("COMMIT", {}, CONNECTION_LOST)


@pytest.fixture
def keeper(harness: WorkerHarness) -> Iterator[JobAttempt]:
    harness.create_queued_job()
    claimed = harness.claim(ttl_seconds=10)
    with JobAttempt(harness.resources, claimed, boottime_seconds()) as keeper:
        yield keeper


def row(harness: WorkerHarness, keeper: LeaseKeeper) -> Job:
    with transaction(harness.sessions) as session:
        return session.get_one(Job, keeper.lease.row_id)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"tunery_{name}_total", labels) or 0


def test_the_lease_is_renewed_before_it_expires(harness: WorkerHarness, keeper: LeaseKeeper) -> None:
    renewals, first = counted("lease_renewals", outcome="confirmed"), row(harness, keeper).lease_expires_at
    until(lambda: row(harness, keeper).lease_expires_at != first, "a renewal")
    until(lambda: counted("lease_renewals", outcome="confirmed") > renewals, "its count")
    assert keeper.unconfirmed_seconds < 2


def test_a_cancel_ends_the_lease(harness: WorkerHarness, keeper: LeaseKeeper) -> None:
    lost = counted("leases_lost", cause="fenced")
    harness.cancel(row(harness, keeper))
    until(lambda: keeper.fenced, "the poll")
    assert counted("leases_lost", cause="fenced") == lost + 1
    with pytest.raises(FencedError):
        keeper.append_event("too late")


def test_a_write_is_retried_while_the_database_is_unavailable(harness: WorkerHarness, keeper: LeaseKeeper) -> None:
    failures = [UNAVAILABLE, UNAVAILABLE]

    def write(session: Session) -> str:
        if failures:
            raise failures.pop()
        return leases.update_held(session, Job, keeper.lease, phase="training").phase or ""

    assert keeper.transact(write) == "training"


def test_an_event_whose_commit_was_not_confirmed_is_written_once(
    harness: WorkerHarness, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The COMMIT succeeded and its confirmation was lost: the retry finds the event."""
    lost = [CONNECTION_LOST]
    events_before = row(harness, keeper).event_seq
    writer = threading.current_thread()  # the renewal thread commits, too
    engine_commit = harness.resources.engine.dialect.do_commit

    def do_commit(connection: object) -> None:
        engine_commit(connection)  # type: ignore[arg-type]
        if threading.current_thread() is writer and lost and row_count(harness, keeper) > events_before:
            raise lost.pop()

    monkeypatch.setattr(harness.resources.engine.dialect, "do_commit", do_commit)
    keeper.append_event("once")
    monkeypatch.undo()
    with transaction(harness.sessions) as session:
        messages = list(session.scalars(select(JobEvent.message).where(JobEvent.job_id == keeper.lease.row_id)))
    assert messages.count("once") == 1


def row_count(harness: WorkerHarness, keeper: LeaseKeeper) -> int:
    with harness.resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return len(connection.execute(select(JobEvent.seq).where(JobEvent.job_id == keeper.lease.row_id)).all())


def test_a_write_whose_lease_expired_is_uncertain(
    harness: WorkerHarness, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeaseKeeper, "unconfirmed_seconds", property(lambda keeper: 11.0))

    def write(session: Session) -> None:
        raise UNAVAILABLE

    with pytest.raises(LeaseUncertain):
        keeper.transact(write)
    assert keeper.fenced


def test_a_claim_whose_commit_was_not_confirmed_is_recovered(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.create_queued_job()
    runner = harness.supervisor(TrainerPlan())
    engine_commit = harness.resources.engine.dialect.do_commit

    def do_commit(connection: object) -> None:
        engine_commit(connection)  # type: ignore[arg-type]
        raise CONNECTION_LOST

    monkeypatch.setattr(harness.resources.engine.dialect, "do_commit", do_commit)
    with pytest.raises(OperationalError, match="closed the connection"):
        runner.claim_next()
    monkeypatch.undo()
    assert harness.job(job).state == "running"
    taken, _ = runner.claim_next()
    assert taken is not None
    assert (taken.id, taken.attempt, harness.job(job).attempt) == (job.id, 2, 2)
    assert runner.claim_next() == (None, None)


def ended(harness: WorkerHarness, job: Job, reason: Reason) -> Job:
    """The job after another attempt, which its pause does not delay."""
    with transaction(harness.sessions) as session:
        session.execute(update(Job).values(run_after=func.clock_timestamp()))
    JobAttempt(harness.resources, harness.claim(), boottime_seconds()).end(AttemptOutcome(reason, "Ended."))
    return harness.job(job)


def test_the_delay_of_retries_grows(harness: WorkerHarness) -> None:
    job = harness.create_queued_job()
    harness.resources.settings.requeue_delay_seconds = 60.0
    harness.resources.settings.max_crash_streak = 4
    for delay_seconds in (60, 120, 240):
        waiting = ended(harness, job, Reason.TRAINER_CRASHED)
        pause = waiting.run_after - harness.events(job)[-1].created_at
        assert delay_seconds - 10 < pause.total_seconds() <= delay_seconds
    failed = ended(harness, job, Reason.TRAINER_CRASHED)
    assert (failed.state, failed.error_code) == ("failed", "worker_crash_loop")


def test_the_wait_for_storage_ends_after_the_time_of_the_settings(harness: WorkerHarness) -> None:
    job = harness.create_queued_job()
    assert ended(harness, job, Reason.STORAGE_FULL).phase == "waiting_for_storage"
    harness.resources.settings.storage_full_wait_seconds = 0
    assert ended(harness, job, Reason.STORAGE_FULL).state == "paused"
