"""The reconciler: expired leases, hints, cleanup."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text, update

from app.db import files
from app.db.engine import transaction
from app.db.jobs import leases
from app.db.operations import status
from app.db.scheduling import workers
from app.db.tables import File, Job, Worker
from app.job_queue import Queue
from tests.factories import expire_leases, make_file
from tests.worker.worker_harness import WorkerHarness
from worker.reconciler import cleanup
from worker.reconciler.reconciler import ADVISORY_LOCK, Reconciler

HOUR = 3600.0


@pytest.fixture
def reconciler(harness: WorkerHarness) -> Reconciler:
    return Reconciler(harness.resources)


class TestSeveralReconcilers:
    def test_only_one_reconciler_works_at_a_time(self, harness: WorkerHarness, reconciler: Reconciler) -> None:
        with harness.resources.engine.connect() as other:
            other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            assert reconciler.round() is False
            other.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        assert reconciler.round() is True
        assert Reconciler(harness.resources).round() is True

    def test_a_failed_round_does_not_end_the_loop(
        self, harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rounds: list[int] = []

        def fail() -> bool:
            rounds.append(len(rounds))
            if len(rounds) == 3:
                harness.resources.stop.set()
            raise ZeroDivisionError

        monkeypatch.setattr(reconciler, "round", fail)
        reconciler.run()
        assert len(rounds) == 3


class TestHints:
    @pytest.fixture
    def sent(self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> list[Queue]:
        sent: list[Queue] = []
        monkeypatch.setattr(harness.resources.hints, "send", sent.append)
        return sent

    def test_due_jobs_cause_hints_while_a_worker_is_free(
        self, harness: WorkerHarness, reconciler: Reconciler, sent: list[Queue]
    ) -> None:
        harness.create_queued_job()
        harness.create_job()
        reconciler.send_hints()
        assert sent == []
        self.register_worker(harness, "gpu0@test#1", "gpu")
        self.register_worker(harness, "cpu0@test#1", "cpu")
        reconciler.send_hints()
        assert sent == ["cpu", "gpu"]

    @pytest.mark.parametrize("is_busy", [True, False], ids=["the worker is busy", "the job is delayed"])
    def test_no_hint_is_sent(
        self, harness: WorkerHarness, reconciler: Reconciler, sent: list[Queue], is_busy: bool
    ) -> None:
        job = harness.create_queued_job()
        if is_busy:
            harness.claim("gpu0@test#1")
            job = harness.create_queued_job()
        self.register_worker(harness, "gpu0@test#1", "gpu")
        if not is_busy:
            with transaction(harness.sessions) as session:
                later = text("clock_timestamp() + interval '1 hour'")
                session.execute(update(Job).where(Job.id == job.id).values(run_after=later))
        reconciler.send_hints()
        assert sent == []

    def register_worker(self, harness: WorkerHarness, worker: str, queue: str) -> None:
        with transaction(harness.sessions) as session:
            workers.heartbeat(session, worker, queue, "test", 1, {})


class TestCleanup:
    def test_an_expired_file_and_its_object_are_deleted(self, harness: WorkerHarness) -> None:
        with transaction(harness.sessions) as session:
            file = make_file(session, harness.resources.storage, harness.project)
            past = text("clock_timestamp() - interval '1 second'")
            session.execute(update(File).where(File.id == file.id).values(expires_at=past))
        cleanup.expire_files(harness.resources)
        cleanup.purge_files(harness.resources)
        with transaction(harness.sessions) as session:
            row = session.get_one(File, file.id)
        assert row.deleted_at is not None
        assert row.purged_at is not None
        with pytest.raises(FileNotFoundError):
            harness.resources.storage.stat(file.storage_key)

    def test_an_object_that_cannot_be_deleted_keeps_no_other_one(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = harness.resources.storage
        with transaction(harness.sessions) as session:
            first, second = (make_file(session, storage, harness.project) for _ in range(2))
            files.delete_all(session, [first.id, second.id])
        delete = storage.delete

        def fail_once(key: str) -> None:
            if key == first.storage_key:
                raise OSError(errno.EIO, "Input/output error")
            delete(key)

        monkeypatch.setattr(storage, "delete", fail_once)
        cleanup.purge_files(harness.resources)
        with transaction(harness.sessions) as session:
            purged = [session.get_one(File, file.id).purged_at is not None for file in (first, second)]
        assert purged == [False, True]

    def test_the_object_of_a_deleted_file_is_kept_while_a_job_reads_it(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        with transaction(harness.sessions) as session:
            files.delete_all(session, [job.training_file_id])
            key = session.get_one(File, job.training_file_id).storage_key
        cleanup.purge_files(harness.resources)
        assert harness.resources.storage.stat(key).size_bytes > 0
        harness.cancel(job)
        cleanup.purge_files(harness.resources)
        with pytest.raises(FileNotFoundError):
            harness.resources.storage.stat(key)

    def test_a_log_is_deleted_after_a_week(self, harness: WorkerHarness) -> None:
        directory = harness.resources.settings.work_dir / "ftjob-gone" / "attempt-1"
        directory.mkdir(parents=True)
        (directory / "trainer.log").touch()
        os.utime(directory / "trainer.log", (time.time() - 8 * 86_400, time.time() - 8 * 86_400))
        cleanup.clean_work_directories(harness.resources)
        assert list(harness.resources.settings.work_dir.iterdir()) == []

    def test_rows_of_old_workers_are_deleted(self, harness: WorkerHarness) -> None:
        with transaction(harness.sessions) as session:
            workers.heartbeat(session, "gpu0@gone#1", "gpu", "gone", 1, {})
            session.execute(update(Worker).values(seen_at=text("clock_timestamp() - interval '2 days'")))
            workers.heartbeat(session, "gpu0@here#1", "gpu", "here", 1, {})
        cleanup.clean_up(harness.resources)
        with transaction(harness.sessions) as session:
            assert [worker.id for worker in workers.alive(session, within_seconds=10**9)] == ["gpu0@here#1"]


def test_a_round_runs_every_step(harness: WorkerHarness) -> None:
    job = harness.create_queued_job()
    harness.claim()
    with transaction(harness.sessions) as session:
        expire_leases(session)
    assert Reconciler(harness.resources).round() is True
    assert harness.job(job).state == "queued"
    with transaction(harness.sessions) as session:
        assert leases.held(session) == []
        assert status.reports(session)["reconciler"].age_seconds < 60


def test_a_data_directory_that_fails_keeps_no_round_from_its_work(
    harness: WorkerHarness, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def round_and_stop() -> bool:
        harness.resources.stop.set()
        return Reconciler.round(reconciler)

    monkeypatch.setattr(Path, "touch", fail)
    monkeypatch.setattr(shutil, "disk_usage", fail)
    monkeypatch.setattr(reconciler, "round", round_and_stop)
    rounds = REGISTRY.get_sample_value("tunery_reconciler_rounds_total", {"outcome": "done"}) or 0
    reconciler.run()
    assert REGISTRY.get_sample_value("tunery_reconciler_rounds_total", {"outcome": "done"}) == rounds + 1


class TestLostWorkers:
    def test_a_worker_without_heartbeats_is_lost_until_it_returns(
        self, harness: WorkerHarness, reconciler: Reconciler
    ) -> None:
        with transaction(harness.sessions) as session:
            workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, {})
            workers.heartbeat(session, "gpu1@host#1", "gpu", "host", 2, {})
            session.execute(
                update(Worker)
                .where(Worker.id == "gpu0@host#1")
                .values(seen_at=text("clock_timestamp() - interval '10 minutes'"))
            )
        reconciler.find_lost_workers()
        with transaction(harness.sessions) as session:
            assert [worker.id for worker in workers.lost(session)] == ["gpu0@host#1"]
            assert workers.mark_lost(session, 60) == []
            workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, {})
            assert workers.lost(session) == []
