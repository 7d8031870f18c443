"""A worker whose GPU fails: jobs go on elsewhere, and after three lost attempts in a row it is out of service."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.db.engine import transaction
from app.db.jobs import claims
from app.db.scheduling import device_losses, workers
from app.db.tables import WebhookDelivery
from app.db.webhooks import operator
from app.domain.jobs.states import Reason
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness

LOST = TrainerPlan(steps=2, faults={"*": {"1": "failed:device_lost:69"}})
WORKS = TrainerPlan(steps=1)
BROKEN, RESTARTED, OTHER = "gpu0@host#1", "gpu0@host#2", "gpu1@host#1"


def lose(harness: WorkerHarness, times: int, owner: str = BROKEN) -> None:
    for _ in range(times):
        assert harness.run_next_job(LOST, owner)


def is_out(harness: WorkerHarness, owner: str = BROKEN) -> bool:
    with transaction(harness.sessions) as session:
        return device_losses.is_out_of_service(session, owner)


def test_after_three_lost_attempts_other_workers_take_the_jobs(harness: WorkerHarness) -> None:
    with transaction(harness.sessions) as session:
        operator.set_endpoint(session, "https://alerts.example.com")
    jobs = [harness.create_queued_job() for _ in range(4)]
    lose(harness, 3)
    before = [harness.job(job).attempt for job in jobs]
    for owner in (BROKEN, RESTARTED):
        assert not harness.run_next_job(WORKS, owner)
    assert [harness.job(job).attempt for job in jobs] == before
    assert {harness.job(job).crash_streak for job in jobs} == {0}
    for _ in jobs:
        assert harness.run_next_job(WORKS, OTHER)
    assert {harness.job(job).state for job in jobs} == {"succeeded"}
    with transaction(harness.sessions) as session:
        (announced,) = session.scalars(select(WebhookDelivery).where(WebhookDelivery.event_type.like("operator.%")))
    assert (announced.event_type, announced.data["worker"]) == ("operator.worker_out_of_service", BROKEN)


def test_any_other_end_of_an_attempt_begins_the_count_anew(harness: WorkerHarness) -> None:
    for _ in range(2):
        harness.create_queued_job()
    lose(harness, 2)
    assert harness.run_next_job(WORKS, BROKEN)
    lose(harness, 2, RESTARTED)
    assert not is_out(harness)
    lose(harness, 1)
    assert is_out(harness)
    assert not is_out(harness, OTHER)


@pytest.mark.parametrize("reason", [Reason.STALLED, Reason.WORKER_LOST])
def test_an_end_that_shows_nothing_of_the_gpu_keeps_the_count(harness: WorkerHarness, reason: Reason) -> None:
    for _ in range(2):
        harness.create_queued_job()
    lose(harness, 2)
    with transaction(harness.sessions) as session:
        claims.finish_attempt(session, session.merge(harness.claim(RESTARTED)), reason, "it hung")
    lose(harness, 1, RESTARTED)
    assert is_out(harness)


@pytest.mark.parametrize("progress", [False, True])
def test_a_job_that_lost_the_gpus_of_two_workers_goes_to_a_third_only_with_progress(
    harness: WorkerHarness, progress: bool
) -> None:
    job = harness.create_queued_job()
    lose(harness, 1)
    lose(harness, 1, RESTARTED)
    assert harness.job(job).state == "queued"
    later = {"2": "failed:device_lost:69"} if progress else {"1": "failed:device_lost:69"}
    plan = TrainerPlan(steps=2, snapshot_every=1, faults={"*": later})
    assert harness.run_next_job(plan, OTHER)
    ended = harness.job(job)
    if progress:
        assert (ended.state, ended.reason) == ("queued", "device_lost")
        assert harness.run_next_job(WORKS, BROKEN)
    else:
        assert (ended.state, ended.error_code) == ("failed", "worker_crash_loop")
        assert [each.reason for each in harness.attempts(job) if each.kind == "train"] == ["device_lost"] * 3


def test_it_offers_no_capacity_until_it_is_resumed(harness: WorkerHarness) -> None:
    job = harness.create_queued_job()
    lose(harness, 3)
    with transaction(harness.sessions) as session:
        for owner in (RESTARTED, OTHER):
            workers.heartbeat(session, owner, "gpu", "host", 1, {})
        assert {each.id: each.status for each in workers.alive(session)} == {RESTARTED: "out_of_service", OTHER: "idle"}
        assert [each.id for each in workers.gpu_workers(session)] == [OTHER]
        device_losses.resume(session, RESTARTED)
        assert [each.id for each in workers.gpu_workers(session)] == [RESTARTED, OTHER]
    lose(harness, 1, RESTARTED)
    assert not is_out(harness)
    assert harness.run_next_job(WORKS, RESTARTED)
    assert harness.job(job).state == "succeeded"


def test_a_worker_whose_gpu_is_not_listed_claims_nothing(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.create_queued_job()
    problem: list[str | None] = [None]
    monkeypatch.setattr("worker.jobs.supervisor.gpu_problem", lambda *_: problem[0])
    broken = harness.supervisor(LOST, BROKEN)
    assert broken.run_next()
    ended = harness.job(job)
    assert (ended.state, ended.reason) == ("queued", "device_lost")
    problem[0] = "it is not listed"
    assert not broken.run_next()
    assert harness.job(job).attempt == ended.attempt
    problem[0] = None
    assert broken.run_next()  # the GPU was reset
    assert harness.job(job).attempt == ended.attempt + 1
