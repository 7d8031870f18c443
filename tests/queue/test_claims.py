"""Claims, leases and guarded writes: who gets a job, who keeps it, what each reason makes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from app.db.engine import Sessions, transaction
from app.db.jobs import claims, leases, lost_workers
from app.db.jobs.claims import NoLongerDesiredError
from app.db.jobs.leases import FencedError, lease_of
from app.db.scheduling.fair_queue import Kind
from app.db.tables import Attempt, Job, Project
from app.domain.artifacts.full_disk import WAITING_FOR_STORAGE
from app.domain.jobs.states import CRASHES, TERMINAL, JobState, Reason
from app.storage import LocalStorage
from tests.factories import make_base_model, make_file, make_job, start_job, validate_job
from tests.sentences import Reviewed

MakeJob = Callable[..., Job]


@pytest.fixture
def created(sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path) -> MakeJob:
    """Make a job in `validating_files`; keywords change columns."""
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "base")
        file = make_file(session, storage, project)

    def make(**columns: Any) -> Job:
        with transaction(sessions) as session:
            job = make_job(session, project, file)
            if columns:
                session.execute(update(Job).where(Job.id == job.id).values(**columns))
        return job

    return make


@pytest.fixture
def queued(sessions: Sessions, created: MakeJob) -> MakeJob:
    def make(**columns: Any) -> Job:
        job = created(**columns)
        with transaction(sessions) as session:
            session.execute(update(Job).where(Job.id == job.id).values(state="queued"))
        return job

    return make


def claim(sessions: Sessions, kind: Kind = "train", owner: str = "me", ttl_seconds: float = 60) -> Job | None:
    with transaction(sessions) as session:
        return claims.claim(session, kind, owner, ttl_seconds)


def read(sessions: Sessions, job: Job) -> Job:
    with transaction(sessions) as session:
        return session.get_one(Job, job.id)


def attempts(sessions: Sessions, job: Job) -> list[Attempt]:
    with transaction(sessions) as session:
        return list(session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)))


class TestClaim:
    @pytest.mark.parametrize(
        ("kind", "state", "phase", "trainings"),
        [("train", "running", "loading", 1), ("validate", "validating_files", "validating", 0)],
    )
    def test_it_takes_the_row_the_lease_and_the_attempt_at_once(
        self, sessions: Sessions, created: MakeJob, queued: MakeJob, kind: Kind, state: str, phase: str, trainings: int
    ) -> None:
        job = queued() if kind == "train" else created()
        claimed = claim(sessions, kind)
        assert claimed is not None
        assert (claimed.id, claimed.state, claimed.phase, claimed.attempt) == (job.id, state, phase, 1)
        assert (claimed.lease_owner, claimed.train_attempts) == ("me", trainings)
        assert claimed.lease_expires_at is not None
        assert (claimed.started_at is None) is (kind == "validate")
        assert [(a.attempt, a.kind, a.worker, a.ended_at) for a in attempts(sessions, job)] == [(1, kind, "me", None)]
        assert claim(sessions, kind, "another") is None

    def test_the_oldest_comes_first_unless_one_is_more_urgent(self, sessions: Sessions, queued: MakeJob) -> None:
        first, second, urgent = queued(), queued(), queued(priority=1)
        taken = [claim(sessions, owner=f"me{n}") for n in range(3)]
        assert [job.id for job in taken if job] == [urgent.id, first.id, second.id]

    @pytest.mark.parametrize(
        "columns", [{"desired": "pause"}, {"run_after": text("clock_timestamp() + interval '1 minute'")}]
    )
    def test_a_job_that_may_not_run_yet_is_not_claimed(
        self, sessions: Sessions, queued: MakeJob, columns: dict[str, Any]
    ) -> None:
        queued(**columns)
        assert claim(sessions) is None
        later = queued()
        taken = [claim(sessions, owner=f"me{n}") for n in range(2)]
        assert [job.id for job in taken if job] == [later.id]

    def test_a_further_attempt_keeps_the_start_of_the_first(self, sessions: Sessions, queued: MakeJob) -> None:
        queued()
        first = claim(sessions)
        assert first is not None
        with transaction(sessions) as session:
            claims.finish_held_attempt(session, lease_of(first), Reason.DRAINED, "enough")
        second = claim(sessions)
        assert second is not None
        assert (second.train_attempts, second.started_at) == (2, first.started_at)

    def test_a_locked_row_blocks_no_claim(self, sessions: Sessions, queued: MakeJob) -> None:
        locked, free = queued(), queued()
        with transaction(sessions) as session:
            session.get_one(Job, locked.id, with_for_update=True)
            claimed = claim(sessions)
            assert claimed is not None
            assert claimed.id == free.id


class TestEnds:
    @pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.DONE, Reason.WORKER_CRASH_LOOP}))
    def test_every_reason_leads_to_its_state(self, sessions: Sessions, queued: MakeJob, reason: Reason) -> None:
        desired = {Reason.PAUSED: "pause", Reason.CANCELLED: "cancel"}.get(reason, "run")
        job = queued()
        claimed = claim(sessions)
        assert claimed is not None
        with transaction(sessions) as session:
            session.execute(update(Job).where(Job.id == job.id).values(desired=desired))
            claims.finish_held_attempt(session, lease_of(claimed), reason, "because", param="model")
        ended = read(sessions, job)
        phase = WAITING_FOR_STORAGE if reason == Reason.STORAGE_FULL else None
        assert (ended.state, ended.reason, ended.phase) == (reason.final_state, reason, phase)
        assert (ended.lease_owner, ended.lease_expires_at) == (None, None)
        assert (ended.finished_at is not None) == (ended.state in TERMINAL)
        assert ended.crash_streak == (1 if reason in CRASHES else 0)
        expected = (reason, "because", "model") if ended.state == JobState.FAILED else (None, None, None)
        assert (ended.error_code, ended.error_message, ended.error_param) == expected
        (attempt,) = attempts(sessions, job)
        assert attempt.ended_at is not None
        assert attempt.reason == reason

    def test_a_success_requires_the_desired_state_and_the_lease(self, sessions: Sessions, queued: MakeJob) -> None:
        job = queued()
        claimed = claim(sessions)
        assert claimed is not None
        with transaction(sessions) as session:
            session.execute(update(Job).where(Job.id == job.id).values(desired="pause"))
        with pytest.raises(NoLongerDesiredError), transaction(sessions) as session:
            claims.finish_held_attempt(session, lease_of(claimed), Reason.DONE, "done", adapter_sha256="0" * 64)
        assert read(sessions, job).state == "running"

    def test_the_third_crash_in_a_row_is_the_last(
        self, sessions: Sessions, queued: MakeJob, reviewed: Reviewed
    ) -> None:
        job = queued()
        for _ in range(3):
            self.end(sessions, Reason.TRAINER_CRASHED)
        failed = read(sessions, job)
        assert (failed.state, failed.error_code) == ("failed", "worker_crash_loop")
        reviewed(str(failed.error_message))
        assert [attempt.reason for attempt in attempts(sessions, job)] == ["trainer_crashed"] * 3

    def test_a_drain_between_crashes_neither_counts_nor_forgives(self, sessions: Sessions, queued: MakeJob) -> None:
        job = queued()
        for reason in (Reason.TRAINER_CRASHED, Reason.DRAINED, Reason.STALLED):
            self.end(sessions, reason)
        assert (read(sessions, job).state, read(sessions, job).crash_streak) == ("queued", 2)

    @pytest.mark.parametrize(
        ("desired", "reason", "state"),
        [
            pytest.param("pause", Reason.TRAINER_CRASHED, "paused", id="a crash after a request to pause"),
            pytest.param("run", Reason.PAUSED, "queued", id="a pause whose job was resumed meanwhile"),
        ],
    )
    def test_the_state_after_an_attempt_is_the_one_that_is_desired_by_then(
        self, sessions: Sessions, queued: MakeJob, desired: str, reason: Reason, state: str
    ) -> None:
        job = queued()
        claimed = claim(sessions)
        assert claimed is not None
        with transaction(sessions) as session:
            session.execute(update(Job).where(Job.id == job.id).values(desired=desired))
            claims.finish_held_attempt(session, lease_of(claimed), reason, "because")
        assert read(sessions, job).state == state

    def test_a_validated_job_starts_with_a_clean_slate(self, sessions: Sessions, created: MakeJob) -> None:
        job = created(crash_streak=2)
        with transaction(sessions) as session:
            validate_job(session)
        assert (read(sessions, job).state, read(sessions, job).crash_streak) == ("queued", 0)

    def test_a_reaped_attempt_and_its_dead_holder_end_once(self, sessions: Sessions, queued: MakeJob) -> None:
        """The reaper and the holder at the same time: one of them ends the attempt, the other finds it gone."""
        job = queued()
        claimed = claim(sessions)
        assert claimed is not None
        results: list[str] = []

        def holder() -> None:
            try:
                with transaction(sessions) as session:
                    claims.finish_held_attempt(session, lease_of(claimed), Reason.DRAINED, "holder")
                results.append("holder")
            except FencedError:
                results.append("fenced")

        def reaper() -> None:
            with transaction(sessions) as session:
                for held in leases.held(session):
                    lost = leases.lock_unrenewed(session, held)
                    if lost is not None:
                        lost_workers.end_attempt(session, lost, leases.Retries(0, 3))
                        results.append("reaper")

        threads = [threading.Thread(target=holder), threading.Thread(target=reaper)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) in (["holder"], ["fenced", "reaper"])
        assert len([a for a in attempts(sessions, job) if a.ended_at is not None]) == 1

    def end(self, sessions: Sessions, reason: Reason) -> None:
        with transaction(sessions) as session:
            running = start_job(session)
            retries = leases.Retries(0, 3)
            claims.finish_held_attempt(session, lease_of(running), reason, "because", retries=retries)
