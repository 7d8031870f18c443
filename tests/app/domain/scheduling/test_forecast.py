"""The queue played to its end: whose turn it is, where a job fits, limits, and jobs that nobody can take."""

from __future__ import annotations

from app.domain.scheduling.fair_share import Standing, faded, used
from app.domain.scheduling.forecast import Placed, Slot, Waiting, forecast
from app.domain.scheduling.worker_capacity import Need, Offer

GB = 10**9
ANY = Need("m")
CARD = Offer("cuda", 24 * GB, frozenset({"m"}))
LARGE = Offer("cuda", 80 * GB, frozenset({"m", "huge"}), frozenset({"site=berlin"}))


def job(name: str, project: str = "a", seq: int = 0, **more: object) -> Waiting:
    return Waiting(name, project, seq or int(name[1:]), **({"need": ANY, "seconds": 100.0} | more))  # type: ignore[arg-type]


def starts(placed: list[Placed]) -> list[tuple[str, float | None]]:
    return [(each.job_id, each.start_in_seconds) for each in placed]


class TestOrder:
    def test_projects_take_turns_by_what_they_have_used_and_are_about_to_use(self) -> None:
        waiting = [job("j1"), job("j2"), job("j3", "b"), job("j4", "b")]
        placed = forecast([Slot(CARD)], waiting, [Standing("a", usage=50.0), Standing("b")])
        assert starts(placed) == [("j3", 0.0), ("j1", 100.0), ("j4", 200.0), ("j2", 300.0)]
        assert [each.position for each in placed] == [1, 2, 3, 4]

    def test_weight_divides_what_counts(self) -> None:
        waiting = [job(f"j{n}", "ab"[n % 2]) for n in range(1, 13)]
        placed = forecast([Slot(CARD)], waiting, [Standing("a", weight=3.0), Standing("b")])
        assert [each.project_id for each in placed[:8]].count("a") == 6

    def test_within_a_project_priority_comes_before_age_and_an_urgent_job_before_everybody(self) -> None:
        waiting = [job("j1"), job("j2", priority=5), job("j3", "b", is_urgent=True)]
        placed = forecast([Slot(CARD)], waiting, [Standing("b", usage=1e9)])
        assert [each.job_id for each in placed] == ["j3", "j2", "j1"]

    def test_a_slot_is_free_when_its_job_is_over(self) -> None:
        placed = forecast([Slot(CARD, 40.0, "b"), Slot(CARD, 70.0, "b")], [job("j1"), job("j2"), job("j3")], [])
        assert starts(placed) == [("j1", 40.0), ("j2", 70.0), ("j3", 140.0)]

    def test_a_job_starts_when_its_pause_is_over_and_others_go_before_it(self) -> None:
        waiting = [job("j1", pause_seconds=150.0), job("j2"), job("j3")]
        assert starts(forecast([Slot(CARD)], waiting, [])) == [("j2", 0.0), ("j3", 100.0), ("j1", 200.0)]
        assert starts(forecast([Slot(CARD)], waiting[:2], [])) == [("j2", 0.0), ("j1", 150.0)]
        assert starts(forecast([Slot(CARD), Slot(CARD)], waiting[:1], [])) == [("j1", 150.0)]

    def test_after_its_pause_it_stands_where_its_age_puts_it(self) -> None:
        waiting = [job("j1", pause_seconds=50.0), job("j2"), job("j3"), job("j4", "b", pause_seconds=50.0)]
        placed = forecast([Slot(CARD)], waiting, [Standing("b", usage=150.0)])
        assert starts(placed) == [("j2", 0.0), ("j1", 100.0), ("j4", 200.0), ("j3", 300.0)]

    def test_a_paused_job_of_a_project_that_is_full_waits_for_one_of_its_own(self) -> None:
        limited = Standing("a", running=1, max_running=1)
        placed = forecast([Slot(CARD), Slot(CARD, 30.0, "a")], [job("j1", pause_seconds=100.0)], [limited])
        assert starts(placed) == [("j1", 100.0)]


class TestFit:
    def test_a_job_goes_only_where_model_labels_and_memory_are(self) -> None:
        waiting = [
            job("j1", need=Need("huge")),
            job("j2", need=Need("m", frozenset({"site=berlin"}))),
            job("j3", need=Need("m", cuda_bytes=60 * GB)),
            job("j4"),
        ]
        placed = forecast([Slot(CARD), Slot(LARGE)], waiting, [])
        assert dict(starts(placed)) == {"j4": 0.0, "j1": 0.0, "j2": 100.0, "j3": 200.0}

    def test_what_nobody_can_take_comes_last_and_says_why(self) -> None:
        waiting = [
            job("j1", need=Need("other")),
            job("j2", need=Need("m", frozenset({"nowhere"}))),
            job("j3", need=Need("m", cuda_bytes=90 * GB)),
            job("j4"),
        ]
        placed = forecast([Slot(LARGE)], waiting, [])
        assert starts(placed)[0] == ("j4", 0.0)
        why = {each.job_id: each.waiting_for or "" for each in placed}
        assert 'has the model "other"' in why["j1"]
        assert "has the labels nowhere" in why["j2"]
        assert "it needs 90.00 GB, the largest has 80.00" in why["j3"]

    def test_without_any_worker_there_is_an_order_and_no_start(self) -> None:
        placed = forecast([], [job("j1", priority=-1), job("j2")], [])
        assert starts(placed) == [("j2", None), ("j1", None)]
        assert placed[0].waiting_for == "No worker that trains is alive."


class TestLimits:
    def test_a_project_that_runs_as_many_as_it_may_waits_for_one_of_its_own(self) -> None:
        limited = Standing("a", running=1, max_running=1)
        placed = forecast([Slot(CARD), Slot(CARD, 30.0, "a")], [job("j1"), job("j2")], [limited])
        assert starts(placed) == [("j1", 30.0), ("j2", 130.0)]

    def test_one_that_may_run_none_has_no_start(self) -> None:
        assert starts(forecast([Slot(CARD)], [job("j1")], [Standing("a", max_running=0)])) == [("j1", None)]


def test_usage_halves_with_every_half_life_and_adds_up_while_a_job_runs() -> None:
    assert faded(100.0, 50.0, half_life=50.0) == 50.0
    whole, parts = used(2, 90.0, 0.0, 50.0), used(2, 90.0, 40.0, 50.0) + used(2, 40.0, 0.0, 50.0)
    assert abs(whole - parts) < 1e-9
    assert abs(used(1, 1.0, 0.0) - 1.0) < 1e-4  # a second is a second, as long as it is fresh
    assert faded(1.0, 1e12, 1.0) < 1e-300
