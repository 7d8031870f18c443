"""Leases: renewal, retried writes, claims whose COMMIT was not confirmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import structlog
from prometheus_client import REGISTRY
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.jobs import claims, leased_rows
from app.db.jobs.claims import FencedError, Lease
from app.db.tables import Attempt, BaseModelRegistration, Evaluation, Export, Job, JobEvent
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.system.host import boottime_seconds
from tests.deadline import until
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.jobs.lease import Claimer, LeaseKeeper, LeaseUncertain
from worker.jobs.leased_rows import RowLeaseKeeper

REGISTRATIONS = select(BaseModelRegistration.id)

CONNECTION_LOST = psycopg.OperationalError("server closed the connection unexpectedly")
UNAVAILABLE = OperationalError("COMMIT", {}, CONNECTION_LOST)


@pytest.fixture
def keeper(harness: WorkerHarness) -> Iterator[LeaseKeeper]:
    job = harness.create_queued_job()
    claimed = harness.claim(ttl_seconds=10)
    with LeaseKeeper(harness.resources, Lease(job.id, claimed.attempt, OWNER), boottime_seconds()) as keeper:
        yield keeper


def row(harness: WorkerHarness, keeper: LeaseKeeper) -> Job:
    with transaction(harness.sessions) as session:
        return session.get_one(Job, keeper.lease.job_id)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"tunery_{name}_total", labels) or 0


def test_the_lease_is_renewed_before_it_expires(harness: WorkerHarness, keeper: LeaseKeeper) -> None:
    renewals, first = counted("lease_renewals", outcome="confirmed"), row(harness, keeper).lease_expires_at
    until(lambda: row(harness, keeper).lease_expires_at != first, "a renewal")
    until(lambda: counted("lease_renewals", outcome="confirmed") > renewals, "its count")
    assert keeper.unconfirmed_seconds < 2


def test_a_pause_request_is_read(harness: WorkerHarness, keeper: LeaseKeeper) -> None:
    with transaction(harness.sessions) as session:
        session.get_one(Job, keeper.lease.job_id).desired = "pause"
    until(lambda: keeper.desired == "pause", "the poll")


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
        return claims.update_held_job(session, keeper.lease, phase="training").phase or ""

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
        messages = list(session.scalars(select(JobEvent.message).where(JobEvent.job_id == keeper.lease.job_id)))
    assert messages.count("once") == 1


def row_count(harness: WorkerHarness, keeper: LeaseKeeper) -> int:
    with harness.resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return len(connection.execute(select(JobEvent.seq).where(JobEvent.job_id == keeper.lease.job_id)).all())


def test_a_write_whose_lease_expired_is_uncertain(
    harness: WorkerHarness, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeaseKeeper, "unconfirmed_seconds", property(lambda keeper: 11.0))

    def write(session: Session) -> None:
        raise UNAVAILABLE

    with pytest.raises(LeaseUncertain):
        keeper.transact(write)
    assert keeper.fenced


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_claim_records_the_gpus_of_its_attempt(harness: WorkerHarness, gpus: int) -> None:
    job = harness.create_queued_job()
    offer = WorkerCapacity("cuda", 1 << 40, gpus=gpus)
    assert Claimer(harness.resources, "train", OWNER, lambda: offer).claim_next() is not None
    with transaction(harness.resources.sessions) as session:
        attempts = session.scalars(select(Attempt).where(Attempt.job_id == job.id, Attempt.kind == "train"))
        assert [attempt.gpus for attempt in attempts] == [gpus]


def test_a_claim_whose_commit_was_not_confirmed_is_recovered(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.create_queued_job()
    claimer = Claimer(harness.resources, "train", OWNER)
    engine_commit = harness.resources.engine.dialect.do_commit

    def do_commit(connection: object) -> None:
        engine_commit(connection)  # type: ignore[arg-type]
        raise CONNECTION_LOST

    monkeypatch.setattr(harness.resources.engine.dialect, "do_commit", do_commit)
    with pytest.raises(OperationalError, match="closed the connection"):
        claimer.claim_next()
    monkeypatch.undo()
    assert harness.job(job).state == "running"
    taken = claimer.claim_next()
    assert taken is not None
    assert (taken[0].id, taken[0].attempt, harness.job(job).attempt) == (job.id, 2, 2)
    assert claimer.claim_next() is None


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
        assert leased_rows.claim(session, BaseModelRegistration, REGISTRATIONS, lease.owner, 60) is not None
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
        leased_rows.claim(session, BaseModelRegistration, REGISTRATIONS, "gpu0@test#1", -30)  # it ended 30 seconds ago
        session.flush()
        assert leased_rows.lock_expired(session, BaseModelRegistration, 60) == []
        assert [row.id for row in leased_rows.lock_expired(session, BaseModelRegistration, 20)] == ["row-1"]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def test_an_attempt_is_counted_when_it_begins_and_with_its_reason_when_it_ends(harness: WorkerHarness) -> None:
    claims, done = (
        value("tunery_claims_total", kind="train"),
        value("tunery_attempts_ended_total", kind="train", reason="done"),
    )
    tokens, steps = value("tunery_trained_tokens_total"), value("tunery_trained_steps_total")
    harness.create_queued_job()
    harness.run_next_job(TrainerPlan(steps=3))
    assert value("tunery_claims_total", kind="train") == claims + 1
    assert value("tunery_attempts_ended_total", kind="train", reason="done") == done + 1
    assert value("tunery_attempts_running", kind="train") == 0
    assert value("tunery_trained_steps_total") == steps + 3
    assert value("tunery_trained_tokens_total") > tokens
    assert value("tunery_training_tokens_per_second") == 0


def test_a_failed_attempt_is_counted_with_its_reason(harness: WorkerHarness) -> None:
    before = value("tunery_attempts_ended_total", kind="train", reason="trainer_crashed")
    harness.create_queued_job()
    harness.run_next_job(TrainerPlan(steps=3, faults={"*": {"2": "signal:SIGSEGV"}}))
    assert value("tunery_attempts_ended_total", kind="train", reason="trainer_crashed") == before + 1


def test_the_threads_of_an_attempt_log_with_the_ids_of_its_job(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.create_queued_job()
    seen: list[dict[str, object]] = []

    def poll(keeper: object) -> None:
        seen.append(structlog.contextvars.get_contextvars())

    monkeypatch.setattr("worker.jobs.lease.LeaseKeeper._poll", poll)
    harness.run_next_job(TrainerPlan(steps=3))
    assert seen
    assert all((each["job"], each["attempt"]) == (job.id, 2) for each in seen)
