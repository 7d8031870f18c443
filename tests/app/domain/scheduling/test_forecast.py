"""The simulated queue: order, requirements, limits, and jobs that no worker can run."""

from __future__ import annotations

from dataclasses import replace

from app.domain.scheduling.fair_share import ProjectShare
from app.domain.scheduling.forecast import JobForecast, QueuedJob, WorkerSlot, forecast
from app.domain.scheduling.worker_capacity import JobRequirements, WorkerCapacity

GB = 10**9
ANY = JobRequirements("m")
CARD = WorkerCapacity("cuda", 24 * GB, frozenset({"m"}))
LARGE = WorkerCapacity("cuda", 80 * GB, frozenset({"m", "huge"}), frozenset({"site=berlin"}))


def job(name: str, project: str = "a", **more: object) -> QueuedJob:
    return QueuedJob(name, project, **({"requirements": ANY, "seconds": 100.0} | more))  # type: ignore[arg-type]


def starts(forecasts: list[JobForecast]) -> list[tuple[str, float | None]]:
    return [(each.job_id, each.start_in_seconds) for each in forecasts]


class TestStart:
    def test_a_slot_is_free_when_its_job_is_over(self) -> None:
        forecasts = forecast(
            [WorkerSlot(CARD, 40.0, "b"), WorkerSlot(CARD, 70.0, "b")], [job("j1"), job("j2"), job("j3")], []
        )
        assert starts(forecasts) == [("j1", 40.0), ("j2", 70.0), ("j3", 140.0)]
        assert [each.position for each in forecasts] == [1, 2, 3]

    def test_a_job_starts_when_its_pause_is_over_and_later_ones_start_before_it(self) -> None:
        queued = [job("j1", pause_seconds=150.0), job("j2"), job("j3")]
        assert starts(forecast([WorkerSlot(CARD)], queued, [])) == [("j1", 150.0), ("j2", 0.0), ("j3", 100.0)]


class TestFit:
    def test_a_job_starts_only_on_a_worker_with_its_model_labels_and_memory(self) -> None:
        queued = [
            job("j1", requirements=JobRequirements("huge")),
            job("j2", requirements=JobRequirements("m", frozenset({"site=berlin"}))),
            job("j3", requirements=JobRequirements("m", cuda_bytes=60 * GB)),
            job("j4"),
        ]
        forecasts = forecast([WorkerSlot(CARD), WorkerSlot(LARGE)], queued, [])
        assert dict(starts(forecasts)) == {"j4": 0.0, "j1": 0.0, "j2": 100.0, "j3": 200.0}

    def test_jobs_that_no_worker_can_run_come_last_with_the_reason(self) -> None:
        queued = [
            job("j1", requirements=JobRequirements("other")),
            job("j2", requirements=JobRequirements("m", frozenset({"nowhere"}))),
            job("j3", requirements=JobRequirements("m", cuda_bytes=90 * GB)),
            job("j4"),
        ]
        forecasts = forecast([WorkerSlot(LARGE)], queued, [])
        assert starts(forecasts)[0] == ("j4", 0.0)
        why = {each.job_id: each.waiting_for or "" for each in forecasts}
        assert 'has the model "other"' in why["j1"]
        assert "has the labels nowhere" in why["j2"]
        assert "needs 90.00 GB, the largest worker has 80.00" in why["j3"]

    def test_without_any_worker_jobs_are_ordered_and_have_no_start(self) -> None:
        forecasts = forecast([], [job("j1"), job("j2")], [])
        assert starts(forecasts) == [("j1", None), ("j2", None)]
        assert forecasts[0].waiting_for == "No training worker is running."


class TestLimits:
    def test_a_project_at_its_limit_waits_for_one_of_its_own_jobs(self) -> None:
        limited = ProjectShare("a", running=1, max_running=1)
        forecasts = forecast([WorkerSlot(CARD), WorkerSlot(CARD, 30.0, "a")], [job("j1"), job("j2")], [limited])
        assert starts(forecasts) == [("j1", 30.0), ("j2", 130.0)]

    def test_a_project_at_its_limit_leaves_an_idle_slot_to_the_next_one(self) -> None:
        slots = [WorkerSlot(CARD), WorkerSlot(CARD, 30.0, "a")]
        queued = [job("a1"), job("b1", "b")]
        assert starts(forecast(slots, queued, [ProjectShare("a", running=1, max_running=1)])) == [
            ("a1", 30.0),
            ("b1", 0.0),
        ]

    def test_a_project_that_may_run_no_job_has_no_start(self) -> None:
        assert starts(forecast([WorkerSlot(CARD)], [job("j1")], [ProjectShare("a", max_running=0)])) == [("j1", None)]


class TestSharedGpus:
    SLOT = WorkerCapacity("cuda", 24 * GB, frozenset({"m"}), slots_per_gpu=2, gpu_uuids=("GPU-1",))
    OTHER = replace(SLOT, gpu_uuids=("GPU-2",))
    SMALL, LARGE = JobRequirements("m", cuda_bytes=5 * GB), JobRequirements("m", cuda_bytes=15 * GB)

    def test_two_jobs_run_beside_each_other(self) -> None:
        queued = [job(f"j{number}", requirements=self.SMALL) for number in range(1, 4)]
        forecasts = forecast([WorkerSlot(self.SLOT), WorkerSlot(self.SLOT)], queued, [])
        assert starts(forecasts) == [("j1", 0.0), ("j2", 0.0), ("j3", 100.0)]
        assert {each.waiting_for for each in forecasts} == {None}

    def test_a_job_for_a_whole_gpu_waits_for_it_says_so_and_is_not_passed(self) -> None:
        queued = [job("j1", requirements=self.LARGE), job("j2", requirements=self.SMALL)]
        slots = [WorkerSlot(self.SLOT, 60.0, "b", self.SLOT.slot_bytes), WorkerSlot(self.SLOT)]
        forecasts = forecast(slots, queued, [])
        assert starts(forecasts) == [("j1", 60.0), ("j2", 160.0)]
        assert (forecasts[0].waiting_for or "").endswith("it starts when a whole GPU is free.")
        assert forecasts[1].waiting_for is None

    def test_a_job_on_several_gpus_waits_for_all_of_them(self) -> None:
        pair = replace(self.SLOT, gpus=2, gpu_uuids=("GPU-1", "GPU-2"), labels=frozenset({"pair"}))
        needs_pair = JobRequirements("m", frozenset({"pair"}), cuda_bytes=5 * GB)
        slots = [
            WorkerSlot(self.SLOT, 60.0, "b", self.SLOT.slot_bytes),
            WorkerSlot(self.OTHER, 80.0, "b", self.SLOT.slot_bytes),
            WorkerSlot(pair),
        ]
        assert starts(forecast(slots, [job("j1", requirements=needs_pair)], [])) == [("j1", 80.0)]
