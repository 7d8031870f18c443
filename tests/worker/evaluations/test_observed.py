"""Evaluations as the operator sees them: GPU time in usage and fair share, the queue, the worker, the metrics."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import func, select, update

from app.db.access import usage
from app.db.engine import transaction
from app.db.jobs import evaluations, leases
from app.db.scheduling import fair_queue
from app.db.tables import Evaluation, EvaluationAttempt, Job, Project
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.services import queue
from tests.factories import make_project
from tests.worker.evaluations.conftest import Ask, evaluator, fake
from tests.worker.worker_harness import OWNER, WorkerHarness

MINUTE = 60


@pytest.fixture
def evaluation(ask: Ask) -> Evaluation:
    """A queued evaluation of a finished job."""
    return ask()


def claim(harness: WorkerHarness, gpus: int = 1) -> Evaluation:
    capacity = WorkerCapacity("cpu", 1 << 40, frozenset({"tiny"}), frozenset(), gpus)
    with transaction(harness.sessions) as session:
        held = evaluations.claim(session, OWNER, 60, capacity)
    assert held is not None
    return held


def began_a_minute_ago(harness: WorkerHarness) -> None:
    with transaction(harness.sessions) as session:
        earlier = func.clock_timestamp() - timedelta(seconds=MINUTE)
        session.execute(update(EvaluationAttempt).values(started_at=earlier))


def used_seconds(harness: WorkerHarness) -> tuple[float, float]:
    """GPU-seconds of the project: this month, and in its share of the queue."""
    with transaction(harness.sessions) as session:
        share = next(each for each in fair_queue.project_shares(session) if each.project_id == harness.project.id)
        return usage.gpu_seconds(session, harness.project.id)[0], share.usage


class TestOrder:
    def test_the_project_that_used_less_comes_first_and_its_oldest_evaluation(
        self, harness: WorkerHarness, ask: Ask, evaluation: Evaluation
    ) -> None:
        """`default` has trained a job, and its two evaluations are older than that of the other project."""
        second, third = ask().id, ask().id
        of_other_project(harness, third)
        assert [claim(harness).id for _ in range(3)] == [third, evaluation.id, second]

    def test_a_project_of_a_larger_weight_may_have_used_more(
        self, harness: WorkerHarness, ask: Ask, evaluation: Evaluation
    ) -> None:
        second, third, fourth = ask().id, ask().id, ask().id
        of_other_project(harness, third, fourth)
        with transaction(harness.sessions) as session:
            session.execute(update(Project).where(Project.id == harness.project.id).values(share_weight=1000.0))
        assert claim(harness).id == third
        began_a_minute_ago(harness)
        assert [claim(harness).id for _ in range(3)] == [evaluation.id, second, fourth]


def of_other_project(harness: WorkerHarness, *ids: str) -> None:
    with transaction(harness.sessions) as session:
        other = make_project(session, "other")
        session.execute(update(Evaluation).where(Evaluation.id.in_(ids)).values(project_id=other.id))


class TestUsage:
    def test_a_running_evaluation_uses_the_time_of_all_gpus_of_its_worker(
        self, harness: WorkerHarness, evaluation: Evaluation
    ) -> None:
        month, share = used_seconds(harness)
        claim(harness, gpus=2)
        began_a_minute_ago(harness)
        month_now, share_now = used_seconds(harness)
        assert month_now - month >= 2 * MINUTE
        assert share_now - share >= 2 * MINUTE * 0.99

    def test_the_time_stays_after_the_end_and_is_counted_once(
        self, harness: WorkerHarness, evaluation: Evaluation
    ) -> None:
        month, share = used_seconds(harness)
        held = claim(harness)
        with transaction(harness.sessions) as session:
            leases.release(session, held)
            minute = timedelta(seconds=MINUTE)
            session.execute(update(EvaluationAttempt).values(started_at=EvaluationAttempt.ended_at - minute))
        for _ in range(3):
            month_now, share_now = used_seconds(harness)
            assert month_now - month == pytest.approx(MINUTE, rel=0.02)
            assert share_now - share == pytest.approx(MINUTE, rel=0.02)
            with transaction(harness.sessions) as session:
                fair_queue.count_usage(session)

    def test_each_attempt_has_a_row_and_a_cancel_ends_the_last_one(
        self, harness: WorkerHarness, evaluation: Evaluation
    ) -> None:
        first = claim(harness)
        with transaction(harness.sessions) as session:
            leases.release(session, first)
        claim(harness)
        with transaction(harness.sessions) as session:
            evaluations.cancel(session, session.get_one(Evaluation, evaluation.id))
        with transaction(harness.sessions) as session:
            rows = session.scalars(select(EvaluationAttempt).order_by(EvaluationAttempt.attempt)).all()
            assert [(row.attempt, row.worker, row.ended_at is not None) for row in rows] == [
                (1, OWNER, True), (2, OWNER, True),
            ]  # fmt: skip

    def test_a_slot_of_a_shared_gpu_counts_as_its_part(self, harness: WorkerHarness, evaluation: Evaluation) -> None:
        with transaction(harness.sessions) as session:
            session.execute(update(Job).values(needed_cuda_bytes=1 << 20))
            capacity = WorkerCapacity("cuda", 24 << 30, slots_per_gpu=4, gpu_uuids=("GPU-1",))
            held = evaluations.claim(session, OWNER, 60, capacity)
            assert held is not None
            assert session.get_one(EvaluationAttempt, (held.id, held.attempt)).gpus == 0.25


class TestQueue:
    def test_the_queue_shows_the_evaluation_of_the_project_and_hides_it_from_others(
        self, harness: WorkerHarness, evaluation: Evaluation
    ) -> None:
        def shown(project_id: str, is_admin: bool = False) -> list[tuple[str, str]]:
            with transaction(harness.sessions) as session:
                view = queue.view_queue(session, project_id, is_admin, 10, 3600)
                return [(each.id, each.state) for each in view["evaluations"]]

        with transaction(harness.sessions) as session:
            other = make_project(session, "other").id
        assert shown(harness.project.id) == [(evaluation.id, "queued")]
        claim(harness)
        assert shown(harness.project.id) == shown(other, is_admin=True) == [(evaluation.id, "running")]
        assert shown(other) == []


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class TestMetrics:
    @pytest.mark.parametrize(("code", "reason"), [(None, "done"), ("sys.exit(3)\n", "server_error")])
    def test_an_attempt_is_counted_with_its_reason(
        self, harness: WorkerHarness, evaluation: Evaluation, tmp_path: Path, code: str | None, reason: str
    ) -> None:
        claimed = sample("tunery_claims_total", kind="evaluate")
        ended = sample("tunery_attempts_ended_total", kind="evaluate", reason=reason)
        command = fake(tmp_path, code) if code else fake(tmp_path)
        assert evaluator(harness, tmp_path, *command).run_next()
        assert sample("tunery_claims_total", kind="evaluate") == claimed + 1
        assert sample("tunery_attempts_ended_total", kind="evaluate", reason=reason) == ended + 1
        assert sample("tunery_attempts_running", kind="evaluate") == 0
