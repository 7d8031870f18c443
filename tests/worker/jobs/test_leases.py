"""The lease of every kind of work: claims, fencing, renewal, the reaper, cancellation, and steps of the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.db.deliveries import deliveries
from app.db.engine import transaction
from app.db.jobs import checkpoints, claims, evaluations, exports, jobs, leases
from app.db.jobs.leases import FencedError, HeldLease, Lease, lease_of
from app.db.tables import (
    BaseModelRegistration,
    Delivery,
    Evaluation,
    Export,
    Job,
    WebhookDelivery,
    WebhookEndpoint,
)
from app.db.tables.base import Leased
from app.db.webhooks import deliveries as webhooks
from app.db.webhooks.deliveries import DeliveryOutcome
from app.domain.artifacts.exports import ExportKind, ExportType
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.jobs.states import Reason
from app.services.deliveries import targets
from tests.factories import (
    expire_leases,
    make_file,
    make_job,
    make_succeeded_job,
    make_target,
    make_webhook_endpoint,
    validate_job,
)
from tests.worker.worker_harness import WorkerHarness
from worker.node.slot import Slot
from worker.reconciler.reconciler import ExpiryObserver, Reconciler

OWNER = "gpu0@test#1"
HOUR = 3600.0


@dataclass(frozen=True)
class Kind:
    """A kind of work: how two rows of it come to be, are claimed, end well, and are taken away by their user."""

    table: type[Leased]
    make: Callable[[Session, WorkerHarness], list[str]]
    claim: Callable[[Session, str], Leased | None]
    succeed: Callable[[Session, Leased, Lease], object]
    cancel: Callable[[Session, WorkerHarness, str], object]
    reaped_state: str
    counts_crashes: bool = True


def make_validations(session: Session, harness: WorkerHarness) -> list[str]:
    file = make_file(session, harness.resources.storage, harness.project)
    return [make_job(session, harness.project, file).id for _ in range(2)]


def make_trainings(session: Session, harness: WorkerHarness) -> list[str]:
    made = make_validations(session, harness)
    return [validate_job(session).id for _ in made]


def make_finished(session: Session, harness: WorkerHarness) -> Job:
    return make_succeeded_job(session, harness.resources.storage, harness.project)


def make_evaluations(session: Session, harness: WorkerHarness) -> list[str]:
    job, settings = make_finished(session, harness), EvaluationSettings()
    checkpoint = checkpoints.kept(session, job.id)[0]
    file = make_file(session, harness.resources.storage, harness.project)
    return [evaluations.insert(session, job, checkpoint, file, settings).id for _ in range(2)]


def make_exports(session: Session, harness: WorkerHarness) -> list[str]:
    job = make_finished(session, harness)
    made = [
        exports.insert(session, job, checkpoint, ExportKind(ExportType.MERGED), 1)
        for checkpoint in checkpoints.kept(session, job.id)[:2]
    ]
    return [export.id for export in made if export is not None]


def make_registrations(session: Session, harness: WorkerHarness) -> list[str]:
    rows = [BaseModelRegistration(id=f"row-{n}", name=f"model-{n}", directory="/models") for n in range(2)]
    session.add_all(rows)
    session.flush()
    return [row.id for row in rows]


def make_deliveries(session: Session, harness: WorkerHarness) -> list[str]:
    job = make_finished(session, harness)
    checkpoint = checkpoints.kept(session, job.id)[0]
    made = [make_target(session, harness.project.id, name) for name in ("staging", "production")]
    return [deliveries.create(session, job, checkpoint, target).id for target in made]


def make_webhooks(session: Session, harness: WorkerHarness) -> list[str]:
    endpoints = [make_webhook_endpoint(session, harness.project.id) for _ in range(2)]
    return [webhooks.add_test(session, each, "fine_tuning.job.succeeded", {}).id for each in endpoints]


def claim_delivery(session: Session, owner: str) -> Leased | None:
    claimed = deliveries.claim(session, 1, owner, 60)
    return claimed[0] if claimed else None


def claim_webhook(session: Session, owner: str) -> Leased | None:
    claimed = webhooks.claim(session, 1, owner, 60)
    return claimed[0].delivery if claimed else None


def deliver(session: Session, row: Leased, lease: Lease) -> None:
    assert isinstance(row, Delivery)
    deliveries.record(session, row, lease, state="delivered", next_attempt_at=None)


def delete_target(session: Session, harness: WorkerHarness, row_id: str) -> None:
    targets.delete(session, harness.project.id, session.get_one(Delivery, row_id).target_id)


def delete_endpoint(session: Session, harness: WorkerHarness, row_id: str) -> None:
    session.delete(session.get_one(WebhookEndpoint, session.get_one(WebhookDelivery, row_id).endpoint_id))


def cancel_registration(session: Session, _: WorkerHarness, row_id: str) -> None:
    session.delete(session.get_one(BaseModelRegistration, row_id))


SENT = DeliveryOutcome(True, 1, 200, None, None, None)
KINDS = {
    "validation": Kind(
        Job,
        make_validations,
        lambda session, owner: claims.claim(session, "validate", owner, 60),
        lambda session, _, lease: claims.finish_validation(session, lease, "valid"),
        lambda session, harness, row_id: jobs.cancel(session, harness.project.id, row_id),
        "validating_files",
    ),
    "training": Kind(
        Job,
        make_trainings,
        lambda session, owner: claims.claim(session, "train", owner, 60),
        lambda session, _, lease: claims.finish_held_attempt(
            session, lease, Reason.DONE, "done", adapter_sha256="0" * 64
        ),
        lambda session, harness, row_id: jobs.cancel(session, harness.project.id, row_id),
        "queued",
    ),
    "evaluation": Kind(
        Evaluation,
        make_evaluations,
        lambda session, owner: evaluations.claim(session, owner, 60),
        lambda session, _, lease: evaluations.succeed(session, lease, "done", summary={}),
        lambda session, _, row_id: evaluations.cancel(session, session.get_one(Evaluation, row_id)),
        "queued",
    ),
    "export": Kind(
        Export,
        make_exports,
        lambda session, owner: exports.claim(session, owner, 60),
        lambda session, _, lease: exports.succeed(session, lease, {}, [], 0),
        lambda session, _, row_id: exports.delete(session, session.get_one(Export, row_id)),
        "queued",
    ),
    "registration": Kind(
        BaseModelRegistration,
        make_registrations,
        lambda session, owner: leases.claim_oldest(session, BaseModelRegistration, owner, 60),
        lambda session, _, lease: leases.update_held(
            session, BaseModelRegistration, lease, **leases.finished_columns("succeeded")
        ),
        cancel_registration,
        "queued",
    ),
    "delivery": Kind(Delivery, make_deliveries, claim_delivery, deliver, delete_target, "pending", False),
    "webhook": Kind(
        WebhookDelivery,
        make_webhooks,
        claim_webhook,
        lambda session, _, lease: webhooks.record_outcome(session, lease, SENT),
        delete_endpoint,
        "pending",
        False,
    ),
}


@dataclass(frozen=True)
class Work:
    """Two due rows of one kind."""

    kind: Kind
    harness: WorkerHarness
    ids: list[str]

    def claim(self, owner: str = OWNER) -> Leased | None:
        with transaction(self.harness.sessions) as session:
            return self.kind.claim(session, owner)

    def claimed(self, owner: str = OWNER) -> tuple[Leased, Lease]:
        row = self.claim(owner)
        assert row is not None
        return row, lease_of(row)

    def row(self, row_id: str) -> Any:
        with transaction(self.harness.sessions) as session:
            return session.get(self.kind.table, row_id)

    def columns(self, row_id: str) -> dict[str, Any]:
        row = self.row(row_id)
        return {name: value for name, value in vars(row).items() if name in row.__table__.columns} if row else {}

    def expire(self) -> None:
        with transaction(self.harness.sessions) as session:
            expire_leases(session)

    def check_fenced(self, row: Leased, lease: Lease) -> None:
        """No write of the holder changes anything."""
        table, before = self.kind.table, self.columns(row.id)
        writes: list[Callable[[Session], object]] = [
            lambda session: self.kind.succeed(session, row, lease),
            lambda session: leases.renew(session, table, lease, 60),
            lambda session: leases.read_held(session, table, lease),
            lambda session: leases.lock_held(session, table, lease),
            lambda session: leases.update_held(session, table, lease, attempt=99),
            lambda session: claims.append_event(session, lease, "late"),
        ]
        for write in writes:
            with pytest.raises(FencedError), transaction(self.harness.sessions) as session:
                write(session)
        assert self.columns(row.id) == before


@pytest.fixture(params=KINDS)
def work(request: pytest.FixtureRequest, harness: WorkerHarness) -> Work:
    kind = KINDS[request.param]
    with transaction(harness.sessions) as session:
        return Work(kind, harness, kind.make(session, harness))


def test_a_claim_takes_attempt_and_lease_at_once_and_the_holder_ends_it(work: Work) -> None:
    row, lease = work.claimed()
    assert (lease.row_id in work.ids, lease.owner, row.lease_expires_at is not None) == (True, OWNER, True)
    before = lease.attempt
    with transaction(work.harness.sessions) as session:
        leases.renew(session, work.kind.table, lease, 600)
        work.kind.succeed(session, row, lease)
    ended = work.row(lease.row_id)
    assert (ended.attempt, ended.lease_owner, ended.lease_expires_at) == (before, None, None)
    work.check_fenced(row, lease)


def test_many_claimers_at_once_get_different_rows(work: Work) -> None:
    taken: list[str] = []
    barrier = threading.Barrier(4)

    def claim(owner: str) -> None:
        barrier.wait()
        while (row := work.claim(owner)) is not None:
            taken.append(row.id)

    threads = [threading.Thread(target=claim, args=(f"gpu{n}@test#1",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(work.ids)


@pytest.mark.parametrize("another", [{"attempt": 99}, {"owner": "gpu0@test#2"}, {"row_id": "row-x"}])
def test_only_the_holder_writes(work: Work, another: dict[str, Any]) -> None:
    row, lease = work.claimed()
    work.check_fenced(row, replace(lease, **another))


def test_a_cancel_fences_the_holder(work: Work) -> None:
    row, lease = work.claimed()
    with transaction(work.harness.sessions) as session:
        work.kind.cancel(session, work.harness, lease.row_id)
    work.check_fenced(row, lease)
    (other,) = set(work.ids) - {lease.row_id}
    assert [work.claimed()[1].row_id, work.claim()] == [other, None]


def test_the_reaper_ends_the_attempt_of_a_lost_holder_and_the_next_claim_goes_on(work: Work) -> None:
    reconciler = Reconciler(work.harness.resources)
    row, lease = work.claimed()
    assert reconciler.reap() == 0
    work.expire()
    assert reconciler.reap() == 1
    ended = work.row(lease.row_id)
    assert (ended.state, ended.attempt, ended.lease_owner) == (work.kind.reaped_state, lease.attempt, None)
    work.check_fenced(row, lease)
    again = {work.claimed()[0].id: work.row(each).attempt for each in work.ids}
    assert sorted(again) == sorted(work.ids)
    assert work.row(lease.row_id).attempt == lease.attempt + 1


def test_the_third_lost_holder_in_a_row_fails_what_it_held_but_no_delivery(work: Work) -> None:
    reconciler = Reconciler(work.harness.resources)
    for _ in range(3):
        for _ in work.ids:
            work.claimed()
        work.expire()
        assert reconciler.reap() == len(work.ids)
    for row_id in work.ids:
        row = work.row(row_id)
        assert row.state == ("failed" if work.kind.counts_crashes else work.kind.reaped_state)
        if work.kind.counts_crashes:
            assert row.error_code in ("worker_lost", "worker_crash_loop")


def test_an_expired_lease_is_held_until_the_reaper_ends_its_attempt(work: Work) -> None:
    row, lease = work.claimed()
    work.claimed()
    work.expire()
    assert work.claim() is None
    with transaction(work.harness.sessions) as session:
        found = [each for each in leases.held(session) if each.lease == lease]
        leases.renew(session, work.kind.table, lease, 60)
        assert [each.is_expired for each in found] == [True]
        assert leases.lock_unrenewed(session, found[0]) is None
    assert work.row(row.id).lease_owner == OWNER


@pytest.mark.parametrize("living", ["gpu0@test-too#1", None])
def test_a_restarted_slot_ends_the_attempts_of_its_earlier_process_only(work: Work, living: str | None) -> None:
    slot = Slot(work.harness.resources, "gpu", "gpu0@test", lambda _: lambda: False)
    _, dead = work.claimed("gpu0@test#old")
    _, other = work.claimed(living or slot.owner)
    slot._reap_previous_incarnations()
    assert (work.row(dead.row_id).lease_owner, work.row(other.row_id).lease_owner) == (None, other.owner)


@pytest.mark.parametrize("step_seconds", [HOUR, -HOUR])
def test_a_step_of_the_server_s_clock_ends_no_attempt_of_a_living_holder_and_hides_no_dead_one(
    work: Work, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    now, settings = [0.0], work.harness.resources.settings
    monkeypatch.setattr(settings, "reap_grace_seconds", 30.0)
    reconciler = Reconciler(work.harness.resources)
    reconciler.expiries = ExpiryObserver(settings, lambda: now[0])
    _, living = work.claimed("gpu0@living#1")
    _, dead = work.claimed("gpu0@dead#1")
    assert reconciler.reap() == 0
    with transaction(work.harness.sessions) as session:  # what the step is to leases that were written before
        table = work.kind.table
        end = leases.expiry(60 - step_seconds)
        session.execute(update(table).where(table.lease_owner.is_not(None)).values(lease_expires_at=end))
    reaped = 0
    for _ in range(6):
        now[0] += 8.0
        with transaction(work.harness.sessions) as session:
            leases.renew(session, work.kind.table, living, 60)
        reaped += reconciler.reap()
    assert (reaped, work.row(dead.row_id).lease_owner) == (1, None)
    row = work.row(living.row_id)
    assert (row.lease_owner, row.attempt, getattr(row, "crash_streak", 0)) == (living.owner, living.attempt, 0)


def test_a_lease_is_lost_when_it_is_not_renewed_for_the_grace_period(harness: WorkerHarness) -> None:
    now, settings = [0.0], harness.resources.settings.model_copy(update={"reap_grace_seconds": 30.0})
    observer = ExpiryObserver(settings, lambda: now[0])
    with transaction(harness.sessions) as session:
        moment = leases.func.clock_timestamp()
        expires_at = session.scalar(leases.select(moment))
    held = HeldLease(Job, Lease("a", 1, OWNER), expires_at, True)
    assert observer.lost([held]) == []
    now[0] = 29.0
    assert observer.lost([held]) == []
    now[0] = 30.0
    assert observer.lost([held]) == [held]
    assert observer.lost([replace(held, is_expired=False)]) == []
    now[0] += settings.lease_ttl_seconds + 30
    assert observer.lost([replace(held, is_expired=False)]) == [replace(held, is_expired=False)]
