"""The order of the claim and of the positions in real SQL: turns, limits, what a worker has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.jobs import claims
from app.db.jobs.leases import lease_of
from app.db.scheduling import fair_queue
from app.db.scheduling.fair_queue import Kind
from app.db.tables import Attempt, File, Job, Project, ProjectUsage
from app.domain.jobs.states import Reason
from app.domain.scheduling.worker_capacity import WorkerCapacity
from tests.factories import make_project

GB = 10**9
CARD = WorkerCapacity("cuda", 24 * GB, frozenset({"m"}), frozenset({"site=berlin"}))
Make = Callable[..., str]


def add_project(session: Session, name: str, used: float = 0.0, **columns: Any) -> Project:
    project = make_project(session, name)
    for column, value in columns.items():
        setattr(project, column, value)
    session.add(
        File(
            id=f"file-{name}", project_id=project.id, purpose="fine-tune", filename="x", bytes=1, sha256="",
            storage_key="x",
        )
    )  # fmt: skip
    if used:
        session.add(ProjectUsage(project_id=project.id, gpu_seconds=used))
    session.flush()
    return project


def add_job(session: Session, name: str, project: str, **columns: Any) -> str:
    values = {"state": "queued", "base_model": "m", "planned_seconds": 100.0, "spec": {}} | columns
    owner = make_project(session, project)
    session.add(Job(id=name, project_id=owner.id, training_file_id=f"file-{project}", **values))
    session.flush()
    return name


def take(
    sessions: Sessions, kind: Kind = "train", offer: WorkerCapacity | None = CARD, owner: str | None = None
) -> str | None:
    with transaction(sessions) as session:
        owner = owner or f"w{session.scalar(text('SELECT count(*) FROM attempts'))}"
        job = claims.claim(session, kind, owner, 60, offer)
        return job.id if job else None


@pytest.fixture
def two(sessions: Sessions) -> Sessions:
    """Projects a and b, of which a has used an hour."""
    with transaction(sessions) as session:
        add_project(session, "a", used=3600)
        add_project(session, "b")
    return sessions


class TestOrder:
    def test_the_project_that_has_used_least_goes_first_in_any_order_of_creation(self, two: Sessions) -> None:
        with transaction(two) as session:
            for number in range(2):
                add_job(session, f"a{number}", "a")
                add_job(session, f"b{number}", "b", planned_seconds=3000.0)
        assert [take(two) for _ in range(5)] == ["b0", "b1", "a0", "a1", None]

    def test_the_planned_time_of_a_running_job_counts_from_its_start(self, two: Sessions) -> None:
        with transaction(two) as session:
            for number in range(2):
                add_job(session, f"a{number}", "a")
                add_job(session, f"b{number}", "b", planned_seconds=36_000.0)
        assert [take(two) for _ in range(4)] == ["b0", "a0", "a1", "b1"]

    def test_a_project_with_twice_the_weight_may_use_twice_as_much(self, two: Sessions) -> None:
        with transaction(two) as session:
            add_project(session, "c", used=7000, share_weight=2.0)
            add_job(session, "a0", "a")
            add_job(session, "c0", "c")
        assert take(two) == "c0"

    def test_usage_of_long_ago_is_forgotten(self, two: Sessions) -> None:
        with transaction(two) as session:
            add_job(session, "a0", "a")
            add_job(session, "b0", "b")
            session.execute(text("INSERT INTO project_usage (project_id, gpu_seconds) SELECT id, 60 FROM projects "
                                 "WHERE name = 'b'"))  # fmt: skip
            session.execute(text("UPDATE project_usage SET counted_at = clock_timestamp() - interval '10 days' "
                                 "WHERE gpu_seconds = 3600"))  # fmt: skip
        assert take(two) == "a0"

    def test_usage_is_the_same_before_and_after_it_is_counted(self, two: Sessions) -> None:
        with transaction(two) as session:
            add_job(session, "b0", "b", planned_seconds=0.0)
            add_job(session, "b1", "b", planned_seconds=0.0)
        assert (take(two, owner="w"), take(two, owner="v")) == ("b0", "b1")
        with transaction(two) as session:
            session.execute(update(Attempt).values(started_at=text("clock_timestamp() - interval '2 days'"), gpus=2))
            claims.finish_held_attempt(session, lease_of(session.get_one(Job, "b0")), Reason.DRAINED, "enough")

        def used() -> float:
            with transaction(two) as session:
                return max(each.usage for each in fair_queue.project_shares(session) if each.usage > 10_000)

        before = used()
        assert before == pytest.approx(2 * 2 * 86_400 / 0.6931 * (1 - 0.25), rel=1e-3)
        with transaction(two) as session:
            fair_queue.count_usage(session)
            fair_queue.count_usage(session)
        assert used() == pytest.approx(before, rel=1e-6)

    def test_urgent_jobs_come_first(self, two: Sessions) -> None:
        with transaction(two) as session:
            add_job(session, "b0", "b", priority=100)
            add_job(session, "a0", "a", urgent=True)
        assert take(two) == "a0"

    def test_validations_alternate_between_projects(self, two: Sessions) -> None:
        with transaction(two) as session:
            for number in range(3):
                add_job(session, f"a{number}", "a", state="validating_files")
            add_job(session, "b0", "b", state="validating_files")
            add_job(session, "b1", "b", state="validating_files")
        assert [take(two, "validate") for _ in range(5)] == ["a0", "b0", "a1", "b1", "a2"]


class TestFit:
    @pytest.mark.parametrize(
        "columns",
        [
            {"base_model": "other"},
            {"worker_labels": ["site=berlin", "fast"]},
            {"needed_cuda_bytes": 24 * GB},
        ],
        ids=str,
    )
    def test_a_job_that_does_not_fit_the_worker_is_not_claimed(self, two: Sessions, columns: dict[str, Any]) -> None:
        with transaction(two) as session:
            add_job(session, "b0", "b", priority=1, **columns)
            assert claims.claim(session, "train", "w", 60, CARD) is None
            add_job(session, "b1", "b", worker_labels=["site=berlin"], needed_cuda_bytes=20 * GB)
        assert take(two) == "b1"
        assert (
            take(
                two,
                offer=WorkerCapacity("cuda", 80 * GB, frozenset({"m", "other"}), frozenset({"site=berlin", "fast"})),
            )
            == "b0"
        )

    def test_memory_is_that_of_the_workers_kind_of_device(self, two: Sessions) -> None:
        with transaction(two) as session:
            add_job(session, "b0", "b", needed_cuda_bytes=90 * GB, needed_cpu_bytes=GB)
        assert take(two) is None
        assert take(two, offer=WorkerCapacity("cpu", 2 * GB, frozenset({"m"}))) == "b0"

    def test_a_limit_of_one_project_does_not_affect_others(self, two: Sessions) -> None:
        with transaction(two) as session:
            make_project(session, "b").max_running_jobs = 1
            for number in range(2):
                add_job(session, f"b{number}", "b")
            add_job(session, "a0", "a")
        assert [take(two) for _ in range(3)] == ["b0", "a0", None]


class TestAtOnce:
    def test_a_second_claim_waits_for_the_first_and_sees_what_it_took(self, two: Sessions) -> None:
        with transaction(two) as session:
            make_project(session, "b").max_running_jobs = 1
            add_job(session, "b0", "b")
            add_job(session, "b1", "b")
        second: list[str | None] = []
        thread = threading.Thread(target=lambda: second.append(take(two, owner="second")))
        with transaction(two) as session:
            assert claims.claim(session, "train", "first", 60, CARD) is not None
            thread.start()
            thread.join(0.3)
            assert second == []
        thread.join(10)
        assert second == [None]


jobs_of_a_queue = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.booleans(), st.sampled_from([None, 500.0, 4000.0])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs_of_a_queue, st.permutations([100.0, 4000.0, 9000.0]))
def test_jobs_are_claimed_in_the_order_of_their_positions(
    sessions: Sessions, drawn: list[tuple[str, int, bool, float | None]], used: list[float]
) -> None:
    with sessions() as session:
        for name, amount in zip("abc", used, strict=True):
            add_project(session, name, amount, share_weight=2.0 if name == "a" else 1.0)
        for number, (project, priority, is_urgent, seconds) in enumerate(drawn):
            planned_seconds = seconds and seconds + 7 * number
            add_job(
                session, f"j{number}", project, priority=priority, urgent=is_urgent, planned_seconds=planned_seconds
            )
        expected = [each.job_id for each in fair_queue.waiting_jobs(session)]
        claimed = [claims.claim(session, "train", f"w{turn}", 60, CARD) for turn in range(len(drawn))]
        assert [job and job.id for job in claimed] == expected
        session.rollback()


def test_a_job_that_has_made_steps_has_so_much_less_to_do(two: Sessions) -> None:
    with transaction(two) as session:
        for number, (planned, progress) in enumerate((
            (100.0, None), (100.0, {"step": 3, "total_steps": 4}), (100.0, {"step": 0, "total_steps": 0}),
            (100.0, {"step": 5, "total_steps": 4}), (None, {"step": 3, "total_steps": 4}),
        )):  # fmt: skip
            add_job(session, f"j{number}", "b", planned_seconds=planned, progress=progress, worker_labels=["b", "a"])
        waiting = fair_queue.waiting_jobs(session)
    assert [job.seconds for job in waiting] == [100.0, 25.0, 100.0, 0.0, 150.0]
    assert waiting[0].requirements.labels == {"a", "b"}
    assert len({id(job.requirements) for job in waiting}) == 1
