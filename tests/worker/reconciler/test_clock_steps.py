"""A clock that is set forward or back costs no attempt, no upload, no session and no row that a rule keeps."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from app.db.deliveries import deliveries
from app.db.engine import transaction
from app.db.jobs import checkpoints, lost_workers
from app.db.tables import Delivery, File, Job, RetentionRule, WebhookDelivery
from app.db.webhooks import deliveries as webhook_deliveries
from app.domain.operations.retention import RetentionKind
from app.settings import Settings
from tests.deadline import until
from tests.factories import expire_leases, make_file, make_succeeded_job, make_target, make_webhook_endpoint
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker import health
from worker.reconciler.reconciler import Reconciler, StepDetector
from worker.trainer.runtime import process

HOUR = 3600.0
STEPS = pytest.mark.parametrize("step_seconds", [HOUR, -HOUR])


class Clock:
    """The host's wall clock, as every module reads it, and how far it was set."""

    def __init__(self) -> None:
        self._real = time.time
        self.step_seconds = 0.0

    def __call__(self) -> float:
        return self._real() + self.step_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def reconciler(harness: WorkerHarness) -> Reconciler:
    reconciler = Reconciler(harness.resources)
    reconciler.expiry_guard.ttl_seconds = 0.0
    return reconciler


class TestStepDetector:
    def test_a_clock_that_runs_is_steady_and_one_that_was_set_is_not_for_a_while(self) -> None:
        now = [100.0]
        detector = StepDetector("test", 300, boottime=lambda: now[0])
        assert detector.is_steady(1000)
        now[0] += 60
        assert detector.is_steady(1060)
        assert not detector.is_steady(1060 - HOUR)
        now[0] += 299
        assert not detector.is_steady(1359 - HOUR)
        now[0] += 1
        assert detector.is_steady(1360 - HOUR)
        assert detector.has_run_for(300)
        assert not detector.has_run_for(301)

    def test_a_step_is_recognized_by_the_reading_of_an_earlier_process_of_this_boot(self) -> None:
        now = [100.0]
        earlier = StepDetector("test", 300, boottime=lambda: now[0])
        earlier.has_stepped(1000)
        reading = json.loads(json.dumps(earlier.reading()))
        for boot_id, is_step in ((reading["boot"], True), ("another", False), (None, False)):
            later = StepDetector("test", 300, boottime=lambda: now[0])
            later.continue_from(reading | {"boot": boot_id})
            assert later.has_stepped(1000 + HOUR) == is_step

    def test_a_later_process_is_quiet_for_the_rest_of_the_time(self) -> None:
        now = [100.0]
        earlier = StepDetector("test", 300, boottime=lambda: now[0])
        earlier.has_stepped(1000)
        assert earlier.has_stepped(1000 + HOUR)
        later = StepDetector("test", 300, boottime=lambda: now[0])
        later.continue_from(earlier.reading())
        now[0] += 299
        assert not later.is_steady(1299 + HOUR)
        now[0] += 1
        assert later.is_steady(1300 + HOUR)


def set_server_clock(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, step_seconds: float) -> None:
    """What an hour's step of PostgreSQL's clock is to the reconciler: other times, and leases as much nearer."""
    read = lost_workers.server_clock_seconds
    monkeypatch.setattr(lost_workers, "server_clock_seconds", lambda session: read(session) + step_seconds)
    with transaction(harness.sessions) as session:
        moved = Job.lease_expires_at - timedelta(seconds=step_seconds)
        session.execute(update(Job).where(Job.lease_owner.is_not(None)).values(lease_expires_at=moved))


def test_a_step_of_the_server_s_clock_ends_no_attempt_of_a_living_worker(
    harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.create_queued_job()
    claimed = harness.claim()
    assert reconciler.round()
    set_server_clock(harness, monkeypatch, HOUR)
    assert reconciler.round()
    held = harness.job(job)
    assert (held.state, held.attempt, held.lease_owner) == ("running", claimed.attempt, claimed.lease_owner)
    with transaction(harness.sessions) as session:  # a lease later, without a renewal, the worker is dead
        expire_leases(session)
    reconciler.server_clock._stepped_at = -float("inf")
    assert reconciler.round()
    assert harness.job(job).state == "queued"


def test_a_standby_that_takes_over_after_a_step_recognizes_it(
    harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.create_queued_job()
    harness.claim()
    with Reconciler(harness.resources)._leader_lock():
        assert not reconciler.round()
    set_server_clock(harness, monkeypatch, HOUR)
    assert reconciler.round()
    assert harness.job(job).state == "running"


@STEPS
def test_after_a_step_while_no_reconciler_ran_living_workers_are_kept_and_dead_ones_found(
    harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    job = harness.create_queued_job()
    harness.claim()
    assert reconciler.round()
    set_server_clock(harness, monkeypatch, step_seconds)
    restarted = Reconciler(harness.resources)
    restarted.expiry_guard.ttl_seconds = 0.0
    assert restarted.round()
    assert harness.job(job).state == "running"
    restarted.server_clock._stepped_at = -float("inf")  # a lease later
    grace_seconds = -restarted.settings.lease_ttl_seconds
    restarted.settings = restarted.settings.model_copy(update={"reap_grace_seconds": grace_seconds})
    assert restarted.round()
    assert harness.job(job).state == "queued"


@STEPS
def test_a_job_goes_on_while_the_server_s_clock_is_set(
    harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    job = harness.create_queued_job()
    thread = harness.start_next_job(TrainerPlan(steps=40, step_seconds=0.05))
    until(lambda: harness.has_reached(job, 3), "the job trains")
    assert reconciler.round()
    set_server_clock(harness, monkeypatch, step_seconds)
    assert reconciler.round()
    thread.join()
    done = harness.job(job)
    assert (done.state, done.attempt) == ("succeeded", 2)


@STEPS
def test_a_job_goes_on_while_the_host_s_clock_is_set(
    harness: WorkerHarness, reconciler: Reconciler, clock: Clock, step_seconds: float
) -> None:
    job = harness.create_queued_job()
    thread = harness.start_next_job(TrainerPlan(steps=40, step_seconds=0.05))
    until(lambda: harness.has_reached(job, 3), "the job trains")
    clock.step_seconds = step_seconds
    assert reconciler.round()
    thread.join()
    done = harness.job(job)
    assert (done.state, done.attempt) == ("succeeded", 2)
    assert done.progress is not None
    with transaction(harness.sessions) as session:  # by PostgreSQL's clock
        assert abs(done.progress["estimated_finish"] - lost_workers.server_clock_seconds(session)) < HOUR / 2


@STEPS
def test_a_step_of_the_host_s_clock_deletes_no_file_that_is_being_written(
    harness: WorkerHarness, reconciler: Reconciler, clock: Clock, step_seconds: float
) -> None:
    assert reconciler.round()
    upload = harness.resources.storage.staging / "upload-in-progress"
    upload.write_bytes(b"x")
    clock.step_seconds = step_seconds
    round_with_cleanup(reconciler)
    assert upload.exists()


class TestRetention:
    """A file of ten days under a rule of thirty days."""

    @pytest.fixture
    def file_id(self, harness: WorkerHarness) -> str:
        with transaction(harness.sessions) as session:
            file = make_file(session, harness.resources.storage, harness.project)
            session.add(RetentionRule(project_id=harness.project.id, kind=RetentionKind.FILES, days=30))
        move_back(harness, timedelta(days=10))
        return file.id

    @STEPS
    def test_the_host_s_clock_deletes_and_keeps_nothing(
        self, harness: WorkerHarness, reconciler: Reconciler, clock: Clock, file_id: str, step_seconds: float
    ) -> None:
        clock.step_seconds = step_seconds * 24 * 365
        round_with_cleanup(reconciler)
        assert harness.file(file_id).deleted_at is None
        move_back(harness, timedelta(days=21))
        round_with_cleanup(reconciler)
        assert harness.file(file_id).deleted_at is not None

    def test_after_a_step_of_the_server_s_clock_nothing_is_due_for_a_day(
        self, harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch, file_id: str
    ) -> None:
        expiring = self.expire(harness)
        round_with_cleanup(reconciler)
        set_server_clock(harness, monkeypatch, 365 * 24 * HOUR)
        move_back(harness, timedelta(days=365))
        round_with_cleanup(reconciler)
        assert harness.file(file_id).deleted_at is None
        assert harness.file(expiring).deleted_at is None
        reconciler.server_clock._stepped_at = -float("inf")  # a day later
        round_with_cleanup(reconciler)
        assert harness.file(file_id).deleted_at is not None
        assert harness.file(expiring).deleted_at is not None

    def expire(self, harness: WorkerHarness) -> str:
        """A file that its owner lets expire in a month."""
        with transaction(harness.sessions) as session:
            month = func.clock_timestamp() + timedelta(days=30)
            return make_file(session, harness.resources.storage, harness.project, expires_at=month).id


def move_back(harness: WorkerHarness, age: timedelta) -> None:
    """What a step of PostgreSQL's clock is to the rows of files: times that are as much longer ago."""
    with transaction(harness.sessions) as session:
        session.execute(update(File).values(created_at=File.created_at - age, expires_at=File.expires_at - age))


def round_with_cleanup(reconciler: Reconciler) -> None:
    reconciler._cleaned_up_at = reconciler._orphans_deleted_at = -float("inf")
    assert reconciler.round()


@STEPS
def test_a_heartbeat_has_its_true_age(settings: Settings, clock: Clock, step_seconds: float) -> None:
    health.write_heartbeat(settings, "gpu")
    clock.step_seconds = step_seconds
    age_seconds = health.heartbeat_age_seconds(settings, "gpu")
    assert age_seconds is not None
    assert 0 <= age_seconds < 60


def test_a_heartbeat_of_an_earlier_boot_is_none(settings: Settings, tmp_path: Path) -> None:
    health.write_heartbeat(settings, "gpu")
    [path] = (settings.data_dir / "run").iterdir()
    later_than_now = time.monotonic() + HOUR
    os.utime(path, (later_than_now, later_than_now))
    assert health.heartbeat_age_seconds(settings, "gpu") is None


@STEPS
def test_the_working_time_of_a_trainer_is_that_of_its_work(clock: Clock, step_seconds: float) -> None:
    before = process.working_seconds()
    clock.step_seconds = step_seconds
    assert before <= process.working_seconds() < before + 60


def test_after_a_step_back_nothing_waits_for_its_length(
    harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_minute = func.clock_timestamp() + timedelta(minutes=1)
    with transaction(harness.sessions) as session:
        target = make_target(session, harness.project.id)
        endpoint = make_webhook_endpoint(session, harness.project.id)
        webhook = webhook_deliveries.add_test(session, endpoint, "fine_tuning.job.succeeded", {})
        finished = make_succeeded_job(session, harness.resources.storage, harness.project)
        held, waiting = (
            deliveries.create(session, finished, checkpoint, target).id
            for checkpoint in checkpoints.kept(session, finished.id)[:2]
        )
    job = harness.create_queued_job()
    assert reconciler.round()
    set_server_clock(harness, monkeypatch, -HOUR)
    later = timedelta(seconds=HOUR)  # what the rows of before are by the new time
    with transaction(harness.sessions) as session:
        session.execute(update(Job).where(Job.id == job.id).values(run_after=func.clock_timestamp() + later))
        session.execute(update(Delivery).values(next_attempt_at=in_a_minute + later))
        session.execute(update(Delivery).where(Delivery.id == held).values(leased_until=in_a_minute + later))
        session.execute(update(WebhookDelivery).values(next_attempt_at=in_a_minute + later))
    assert reconciler.round()
    assert harness.claim().id == job.id
    with transaction(harness.sessions) as session:
        lease_end = session.get_one(Delivery, held).leased_until
        ends = [
            session.get_one(Delivery, waiting).next_attempt_at,
            session.get_one(WebhookDelivery, webhook.id).next_attempt_at,
        ]
        now = session.scalars(select(func.clock_timestamp())).one()
    assert all(end is not None and now < end <= now + timedelta(minutes=1) for end in ends)
    assert lease_end is not None
    assert lease_end <= now + timedelta(seconds=reconciler.settings.lease_ttl_seconds)
