"""Preemption: only as many jobs as help; none too young, near its end, urgent, or preempted too often."""

from __future__ import annotations

import pytest

from app.domain.scheduling.forecast import QueuedJob
from app.domain.scheduling.preemption import PreemptionPolicy, RunningJob, select_preemptions
from app.domain.scheduling.worker_capacity import JobRequirements, WorkerCapacity

POLICY = PreemptionPolicy(min_run_seconds=600, max_preemptions=3)
SMALL, LARGE = WorkerCapacity("cuda", 24 * 10**9), WorkerCapacity("cuda", 80 * 10**9)
URGENT = QueuedJob("u1", "ops", JobRequirements("m"))


def running_job(name: str = "long", offer: WorkerCapacity = SMALL, share: float = 1.0, **more: object) -> RunningJob:
    return RunningJob(name, "a", offer, share, **({"ran_seconds": 3600.0, "seconds_left": 3600.0} | more))  # type: ignore[arg-type]


def victims(
    running: list[RunningJob],
    urgent: list[QueuedJob] | None = None,
    free: list[WorkerCapacity] | None = None,
    **jobs_allowed: int,
) -> list[str]:
    chosen = select_preemptions(urgent or [URGENT], free or [], running, jobs_allowed, POLICY)
    return [each.victim.job_id for each in chosen]


def test_a_long_job_is_preempted_if_no_slot_is_free() -> None:
    assert victims([running_job()]) == ["long"]
    assert victims([running_job()], free=[SMALL]) == []


def test_a_preemption_has_the_urgent_job_that_gets_the_slot() -> None:
    fits_nowhere = QueuedJob("u0", "ops", JobRequirements("m", cuda_bytes=60 * 10**9))
    (chosen,) = select_preemptions([fits_nowhere, URGENT], [], [running_job()], {}, POLICY)
    assert (chosen.victim.job_id, chosen.urgent.job_id) == ("long", "u1")


def test_the_victim_is_of_the_project_with_the_largest_share_and_of_the_lowest_priority() -> None:
    running = [
        running_job("poor", share=1),
        running_job("rich", share=9),
        running_job("rich and low", share=9, priority=-5),
    ]
    assert victims(running) == ["rich and low"]


def test_there_are_as_many_victims_as_urgent_jobs() -> None:
    many = [QueuedJob(f"u{n}", "ops", JobRequirements("m")) for n in range(2)]
    assert len(victims([running_job(str(n)) for n in range(4)], many)) == 2
    assert len(victims([running_job("0", is_preempting=True), *(running_job(str(n)) for n in range(1, 4))], many)) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"ran_seconds": 599.0},
        {"preemption_count": 3},
        {"is_urgent": True},
        {"is_stoppable": False},
        {"is_preempting": True},
        {"seconds_left": 100.0},
    ],
    ids=str,
)
def test_a_job_that_just_began_or_is_about_to_end_or_was_preempted_often_is_no_victim(more: dict[str, object]) -> None:
    assert victims([running_job(**more)]) == []


def test_a_victim_frees_a_slot_that_fits() -> None:
    large = QueuedJob("u1", "ops", JobRequirements("m", cuda_bytes=60 * 10**9))
    assert victims([running_job("small"), running_job("large", LARGE, share=0.1)], [large]) == ["large"]
    assert victims([running_job("small")], [large]) == []


def test_a_project_at_its_limit_gains_nothing_from_the_jobs_of_others() -> None:
    assert victims([running_job()], ops=0) == []
    own = QueuedJob("u1", "a", JobRequirements("m"))
    assert victims([running_job()], [own], a=0) == ["long"]
