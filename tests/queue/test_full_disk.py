"""Rows after a full disk: when they may be taken again, and where the wait ends."""

from __future__ import annotations

import pytest
from sqlalchemy import func, update

from app.db.engine import Sessions, transaction
from app.db.jobs import claims, jobs
from app.db.jobs.leases import lease_of
from app.db.scheduling import fair_queue
from app.db.tables import Job
from app.domain.jobs.states import Reason
from tests.factories import start_job, validate_job

DAY = 86_400.0


def meet_full_disk(sessions: Sessions, limit_seconds: float = DAY) -> Job:
    """An attempt from its claim to its end."""
    with transaction(sessions) as session:
        claimed = start_job(session)
        return claims.finish_held_attempt(
            session, lease_of(claimed), Reason.STORAGE_FULL, "Full.", storage_wait_seconds=limit_seconds
        )


def validate(sessions: Sessions) -> None:
    with transaction(sessions) as session:
        validate_job(session)


def shift(sessions: Sessions, job: Job, seconds: float) -> None:
    """The first full disk was so much earlier, and the pause is over."""
    since = Job.storage_full_since - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    with transaction(sessions) as session:
        session.execute(
            update(Job).where(Job.id == job.id).values(storage_full_since=since, run_after=func.clock_timestamp())
        )


def pause_of(sessions: Sessions, job: Job) -> float:
    with transaction(sessions) as session:
        (waiting,) = (each for each in fair_queue.waiting_jobs(session) if each.job_id == job.id)
    return waiting.pause_seconds


class TestTheWait:
    def test_no_worker_takes_the_job_before_its_pause_is_over_and_the_forecast_knows(
        self, sessions: Sessions, job: Job
    ) -> None:
        validate(sessions)
        waiting = meet_full_disk(sessions)
        assert (waiting.state, waiting.phase, waiting.desired) == ("queued", "waiting_for_storage", "run")
        assert 25 < pause_of(sessions, job) <= 30
        with transaction(sessions) as session:
            assert claims.claim(session, "train", "me", 60) is None
            assert not claims.has_claimable_job(session, "train")

    @pytest.mark.parametrize(("waited", "pause"), [(30, 60), (90, 120), (7200, 1800)])
    def test_each_wait_for_space_is_longer(self, sessions: Sessions, job: Job, waited: float, pause: float) -> None:
        validate(sessions)
        meet_full_disk(sessions)
        shift(sessions, job, waited)
        meet_full_disk(sessions)
        assert pause - 5 < pause_of(sessions, job) <= pause + 10

    def test_a_wait_for_space_ends_in_a_pause_that_can_be_resumed(self, sessions: Sessions, job: Job) -> None:
        validate(sessions)
        meet_full_disk(sessions)
        shift(sessions, job, DAY)
        paused = meet_full_disk(sessions)
        assert (paused.state, paused.phase, paused.desired, paused.error_code) == ("paused", None, "run", None)
        with transaction(sessions) as session:
            resumed = jobs.resume(session, job.project_id, job.id)
            assert resumed is not None
            assert (resumed.state, resumed.storage_full_since) == ("queued", None)
        assert pause_of(sessions, job) == 0

    @pytest.mark.parametrize("is_running", [True, False])
    def test_a_requested_pause_ends_the_wait_for_space(self, sessions: Sessions, job: Job, is_running: bool) -> None:
        validate(sessions)
        if not is_running:
            meet_full_disk(sessions)
        with transaction(sessions) as session:
            claimed = start_job(session) if is_running else None
            paused = jobs.pause(session, job.project_id, job.id)
            if claimed:
                paused = claims.finish_held_attempt(session, lease_of(claimed), Reason.STORAGE_FULL, "Full.")
        assert (paused.state, paused.phase, paused.storage_full_since) == ("paused", None, None)

    def test_a_validation_waits_for_space_without_end(self, sessions: Sessions, job: Job) -> None:
        with transaction(sessions) as session:
            claimed = claims.claim(session, "validate", "me", 60)
            assert claimed is not None
            waiting = claims.finish_held_attempt(
                session, lease_of(claimed), Reason.STORAGE_FULL, "Full.", storage_wait_seconds=0
            )
        assert (waiting.state, waiting.phase) == ("validating_files", "waiting_for_storage")
