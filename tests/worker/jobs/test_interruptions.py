"""Interruptions: cancel, pause, shutdown, a lost lease, an unavailable database or storage."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from app.db.engine import transaction
from app.db.jobs import leases, lost_workers
from app.db.tables import Job
from app.storage import StoredObject
from tests.damages import DAMAGES
from tests.deadline import until
from tests.processes import is_alive
from tests.sentences import Reviewed
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import StepLog, WorkerHarness
from worker.reconciler import cleanup

DISCONNECT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"


@pytest.fixture
def reconnecting(postgres_cleaner: Engine) -> Iterator[None]:
    """The connection that empties the database between tests was cut, too."""
    yield
    postgres_cleaner.dispose()


def slow(step_log: StepLog, **plan: object) -> TrainerPlan:
    """A plan that runs long enough to be interrupted."""
    return TrainerPlan(**({"steps": 1000, "step_seconds": 0.02, "step_log": str(step_log.path)} | plan))  # type: ignore[arg-type]


class TestCancel:
    def test_a_cancel_kills_the_trainer_and_drops_the_snapshots_and_no_event_follows(
        self, harness: WorkerHarness, step_log: StepLog
    ) -> None:
        job = harness.create_queued_job()
        plan = slow(step_log, snapshot_every=1)
        thread = harness.start_next_job(plan)
        pid = step_log.pid()
        until(lambda: harness.snapshots(job), "a snapshot")
        harness.cancel(job)
        event_count = len(harness.events(job))
        thread.join(10)
        assert not thread.is_alive()
        assert not is_alive(pid)
        assert harness.job(job).state == "cancelled"
        assert len(harness.events(job)) == event_count
        assert (harness.snapshots(job), harness.stored_files("snapshots")) == ([], [])


class TestPause:
    def test_a_paused_job_has_a_checkpoint_and_resumes_there(self, harness: WorkerHarness, step_log: StepLog) -> None:
        job = harness.create_queued_job()
        plan = slow(step_log, steps=60)
        thread = harness.start_next_job(plan)
        until(lambda: harness.has_reached(job, 3), "a third step")
        harness.pause(job)
        thread.join(10)
        paused = harness.job(job)
        assert (paused.state, paused.reason, paused.lease_owner, paused.crash_streak) == ("paused", "paused", None, 0)
        (_checkpoint,) = harness.checkpoints(job)
        assert harness.run_next_job(plan) is False
        harness.resume(job)
        assert harness.run_next_job(plan) is True
        assert harness.job(job).state == "succeeded"
        assert step_log.all_steps() == list(range(1, 61))

    def test_a_pause_during_the_start_of_the_trainer_is_obeyed(self, harness: WorkerHarness, tmp_path: Path) -> None:
        job = harness.create_queued_job()
        thread = harness.start_next_job(TrainerPlan(steps=3, wait_for=str(tmp_path / "never")))
        until(lambda: harness.job(job).state == "running", "the claim")
        harness.pause(job)
        thread.join(10)
        assert harness.job(job).state == "paused"

    def test_a_pause_during_the_publication_pauses(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
    ) -> None:
        job = harness.create_queued_job()
        harness.resources.settings.watch_seconds = 60.0
        before(harness, monkeypatch, ".csv", lambda: harness.pause(job))
        harness.run_next_job(TrainerPlan(steps=2, snapshot_every=1))
        assert harness.job(job).state == "paused"
        reviewed(harness.messages(job)[-1])
        assert harness.stored_files("checkpoints") == []
        monkeypatch.undo()
        harness.resume(job)
        harness.run_next_job(TrainerPlan(steps=2))
        assert harness.job(job).state == "succeeded"

    def test_the_checkpoint_of_a_pause_at_the_last_step_becomes_the_result(
        self, harness: WorkerHarness, tmp_path: Path
    ) -> None:
        job = harness.create_queued_job()
        thread = harness.start_next_job(
            TrainerPlan(steps=0, wait_for=str(tmp_path / "never"))
        )  # it stops at the last step
        until(lambda: harness.job(job).phase == "training", "the start")
        harness.pause(job)
        thread.join(10)
        assert harness.job(job).state == "paused"
        (paused,) = harness.checkpoints(job)
        assert paused.name.endswith(":ckpt-step-0")
        harness.resume(job)
        harness.run_next_job(TrainerPlan(steps=0))
        (final,) = harness.checkpoints(job)
        assert final.id == paused.id
        assert final.name == harness.job(job).fine_tuned_model
        assert final.archive_file_id == harness.job(job).adapter_archive_file_id


class TestShutdown:
    def test_a_drained_job_is_queued_and_resumes(self, harness: WorkerHarness, step_log: StepLog) -> None:
        job = harness.create_queued_job()
        plan = slow(step_log, steps=60)
        thread = harness.start_next_job(plan)
        until(lambda: harness.has_reached(job, 3), "a third step")
        harness.resources.stop.set()
        thread.join(10)
        drained = harness.job(job)
        assert (drained.state, drained.reason, drained.crash_streak) == ("queued", "drained", 0)
        harness.resources.stop.clear()
        assert harness.run_next_job(plan) is True
        assert step_log.all_steps() == list(range(1, 61))


class TestFencing:
    def test_a_fenced_worker_kills_its_trainer_and_changes_no_row(
        self, harness: WorkerHarness, step_log: StepLog
    ) -> None:
        job = harness.create_queued_job()
        plan = slow(step_log)
        thread = harness.start_next_job(plan)
        pid = step_log.pid()
        with transaction(harness.sessions) as session:
            (held,) = leases.lock_all(session, slot="gpu0@test", owner="gpu0@test#2")
            lost_workers.end_attempt(session, held, harness.resources.retries)
        harness.claim("gpu1@test#1")
        event_count = len(harness.events(job))
        thread.join(10)
        assert not is_alive(pid)
        assert len(harness.events(job)) == event_count
        assert (harness.job(job).state, harness.job(job).lease_owner) == ("running", "gpu1@test#1")

    def test_no_step_is_trained_after_the_next_attempt_began(self, harness: WorkerHarness, step_log: StepLog) -> None:
        """On one slot, where the trainer's lock delays the new attempt until the old trainer has exited."""
        job = harness.create_queued_job()
        plan = slow(step_log, steps=150)
        thread = harness.start_next_job(plan)
        step_log.pid()
        with transaction(harness.sessions) as session:
            (held,) = leases.lock_all(session, slot="gpu0@test", owner="gpu0@test#2")
            lost_workers.end_attempt(session, held, harness.resources.retries)
        until(lambda: harness.run_next_job(plan, "gpu0@test#2"), "the second attempt")
        thread.join(10)
        assert harness.job(job).state == "succeeded"
        times = step_log.times()
        assert max(times["2"]) < min(times["3"])

    def test_a_lease_lost_during_the_publication_deletes_the_stored_objects(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = harness.create_queued_job()
        before(harness, monkeypatch, ".csv", lambda: harness.cancel(job))
        harness.run_next_job(TrainerPlan(steps=2))
        assert harness.job(job).state == "cancelled"
        assert harness.stored_files() == []


@pytest.mark.usefixtures("reconnecting")
class TestDatabaseUnavailable:
    def test_a_short_outage_loses_nothing(self, harness: WorkerHarness, step_log: StepLog) -> None:
        job = harness.create_queued_job()
        plan = slow(step_log, steps=80)
        thread = harness.start_next_job(plan)
        step_log.pid()
        with database_unavailable(harness):
            step_count = len(step_log.all_steps())
            until(lambda: len(step_log.all_steps()) > step_count + 20, "twenty steps without a database")
        thread.join(20)
        assert harness.job(job).state == "succeeded"
        steps = [event.data["step"] for event in harness.events(job) if event.type == "metrics"]
        assert steps == list(range(1, 81))

    def test_a_long_outage_makes_the_worker_fence_itself(self, harness: WorkerHarness, step_log: StepLog) -> None:
        settings = harness.resources.settings
        settings.lease_ttl_seconds, settings.self_fence_seconds, settings.self_fence_kill_seconds = 2.5, 1.2, 1.8
        job = harness.create_queued_job()
        plan = slow(step_log, faults={"*": {"SIGTERM": "ignored"}})
        thread = harness.start_next_job(plan)
        pid = step_log.pid()
        with database_unavailable(harness):
            until(lambda: not is_alive(pid), "the trainer's end")
            thread.join(10)
        assert harness.job(job).state == "running"
        until(lambda: harness.reap_expired(), "the lease's end")
        assert (harness.job(job).state, harness.job(job).reason) == ("queued", "worker_lost")


class TestRetiredSnapshots:
    def test_a_snapshot_retired_before_it_was_stored_is_no_warning(
        self, harness: WorkerHarness, reviewed: Reviewed
    ) -> None:
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=3, snapshot_every=1, retired_snapshot=2))
        assert harness.job(job).state == "succeeded"
        messages = [(event.level, event.message) for event in harness.events(job) if "snapshot" in event.message]
        assert [level for level, _ in messages] == ["info"]
        reviewed(messages[0][1])


class TestStorageErrors:
    def test_a_checkpoint_that_does_not_fit_is_a_warning_and_the_training_continues(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
    ) -> None:
        job = harness.create_queued_job()
        before(harness, monkeypatch, "step-000001", no_space)
        harness.run_next_job(TrainerPlan(steps=2, checkpoint_every=1))
        assert harness.job(job).state == "succeeded"
        warning = next(event for event in harness.events(job) if event.level == "warn")
        reviewed(warning.message)

    def test_an_unavailable_storage_counts_no_crash(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = harness.create_queued_job()
        before(harness, monkeypatch, "adapter_model", lambda: os.stat("/proc/self/fd/999"))
        harness.run_next_job(TrainerPlan(steps=2))
        assert (harness.job(job).state, harness.job(job).reason) == ("queued", "storage_unavailable")
        assert harness.job(job).crash_streak == 0


class TestSnapshots:
    @pytest.mark.parametrize(
        ("name", "damage"),
        [("state.safetensors", "missing"), ("state.safetensors", "flipped"), ("MANIFEST.json", "truncated")],
    )
    def test_a_damaged_snapshot_is_skipped_with_a_warning(
        self, harness: WorkerHarness, step_log: StepLog, name: str, damage: str
    ) -> None:
        job, plan = self.crashed_after(harness, step_log, steps=4)
        newest, _ = harness.snapshots(job)
        DAMAGES[damage](harness.resources.settings.storage_dir / "objects" / newest.storage_keys[name])
        harness.run_next_job(plan)
        assert step_log.all_steps() == [1, 2, 3, 4, 4, 5, 6]
        (warning,) = (event for event in harness.events(job) if event.level == "warn" and "snapshot" in event.message)
        assert "attempt 2" in warning.message
        assert name.partition(".")[0].lower() in warning.message.lower()

    def test_without_a_valid_snapshot_the_job_starts_from_zero_with_a_warning(
        self, harness: WorkerHarness, step_log: StepLog
    ) -> None:
        job, plan = self.crashed_after(harness, step_log, steps=4)
        for row in harness.snapshots(job):
            harness.resources.storage.delete(row.storage_keys["MANIFEST.json"])
        harness.run_next_job(plan)
        assert step_log.all_steps() == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]

    def test_only_the_last_two_snapshots_are_kept(self, harness: WorkerHarness, step_log: StepLog) -> None:
        job, _ = self.crashed_after(harness, step_log, steps=5)
        assert [row.step for row in harness.snapshots(job)] == [5, 4]
        objects = harness.resources.settings.storage_dir / "objects"
        kept = {path.parents[1].name for path in objects.glob("jobs/*/*/*/snapshots/*/*/*")}
        assert kept == {"step-000004", "step-000005"}

    def test_a_snapshot_that_cannot_be_deleted_keeps_its_row(
        self, harness: WorkerHarness, step_log: StepLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stuck(key: str) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr(harness.resources.storage, "delete", stuck)
        job, _ = self.crashed_after(harness, step_log, steps=4)
        assert [row.step for row in harness.snapshots(job)] == [4, 3, 2, 1]
        monkeypatch.undo()
        cleanup.drop_leftovers(harness.resources)
        assert len(harness.snapshots(job)) == 4
        harness.cancel(job)
        cleanup.drop_leftovers(harness.resources)
        assert harness.snapshots(job) == []
        assert harness.stored_files("snapshots") == []

    def crashed_after(self, harness: WorkerHarness, step_log: StepLog, steps: int) -> tuple[Job, TrainerPlan]:
        job = harness.create_queued_job()
        fault = {"2": {str(steps + 1): "signal:SIGKILL"}}
        plan = slow(step_log, steps=6, step_seconds=0.0, snapshot_every=1, faults=fault)
        harness.run_next_job(plan)
        assert harness.job(job).state == "queued"
        return job, plan


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def before(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, key_part: str, do: object) -> None:
    """Call `do` just before an object whose key contains `key_part` is stored."""
    put = harness.resources.storage.put

    def put_after_action(key: str, source: Path) -> StoredObject:
        if key_part in key:
            do()  # type: ignore[operator]
        return put(key, source)

    monkeypatch.setattr(harness.resources.storage, "put", put_after_action)


@contextmanager
def database_unavailable(harness: WorkerHarness) -> Iterator[None]:
    """Cut all connections to this test's database and refuse new ones."""
    url = harness.resources.engine.url
    name = url.database
    admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(text(DISCONNECT), {"name": name})
        try:
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))


def test_threads_of_a_supervisor_end_with_it(harness: WorkerHarness) -> None:
    names = ("lease", "watchdog", "records", "stderr")
    harness.create_queued_job()
    harness.run_next_job(TrainerPlan(steps=2))
    deadline = time.monotonic() + 5
    while (left := [t.name for t in threading.enumerate() if t.name.startswith(names)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []
