"""The forecast of starts: order, requirements, pauses, and jobs that no worker can run."""

from __future__ import annotations

from app.domain.scheduling.fair_share import ProjectShare
from app.domain.scheduling.forecast import JobForecast, QueuedJob, forecast
from app.domain.scheduling.worker_capacity import JobRequirements, WorkerCapacity
from tests.sentences import Reviewed

GB = 10**9
ANY = JobRequirements("m")
CARD = WorkerCapacity("cuda", 24 * GB, frozenset({"m"}))
HALF = WorkerCapacity("cuda", 24 * GB, frozenset({"m"}), slots_per_gpu=2, gpu_uuids=("GPU-1",))


def job(name: str, project: str = "a", **more: object) -> QueuedJob:
    return QueuedJob(name, project, **({"requirements": ANY, "seconds": 100.0} | more))  # type: ignore[arg-type]


def starts(forecasts: list[JobForecast]) -> dict[str, float | None]:
    """In the order of the positions."""
    assert [each.position for each in forecasts] == list(range(1, len(forecasts) + 1))
    return {each.job_id: each.start_in_seconds for each in forecasts}


def test_a_start_is_the_work_before_it_divided_by_the_slots() -> None:
    three = [job("j1"), job("j2"), job("j3")]
    assert starts(forecast([CARD, CARD], [40.0, 70.0], three, [])) == {"j1": 55.0, "j2": 105.0, "j3": 155.0}
    assert starts(forecast([CARD, CARD], [40.0], three, [])) == {"j1": 0.0, "j2": 70.0, "j3": 120.0}


def test_a_job_starts_when_its_pause_is_over() -> None:
    assert starts(forecast([CARD], [], [job("j1", pause_seconds=150.0)], [])) == {"j1": 150.0}


def test_jobs_that_no_worker_can_run_come_last_with_the_reason(reviewed: Reviewed) -> None:
    queued = [
        job("other model", requirements=JobRequirements("other")),
        job("other label", requirements=JobRequirements("m", frozenset({"nowhere"}))),
        job("too large", requirements=JobRequirements("m", cuda_bytes=90 * GB)),
        job("whole GPU", requirements=JobRequirements("m", cuda_bytes=15 * GB)),
        job("any", requirements=JobRequirements("m", cuda_bytes=5 * GB)),
    ]
    forecasts = forecast([HALF, HALF], [], queued, [])
    assert list(starts(forecasts)) == ["whole GPU", "any", "other model", "other label", "too large"]
    assert [each.start_in_seconds for each in forecasts] == [0.0, 0.0, None, None, None]
    assert forecasts[1].waiting_for is None
    for each in (forecasts[0], *forecasts[2:]):
        reviewed(str(each.waiting_for))


def test_a_job_without_any_worker_has_a_position_and_no_start() -> None:
    assert starts(forecast([], [], [job("j1"), job("j2")], [])) == {"j1": None, "j2": None}


def test_a_project_that_may_run_no_job_has_no_start() -> None:
    assert starts(forecast([CARD], [], [job("j1")], [ProjectShare("a", max_running=0)])) == {"j1": None}
