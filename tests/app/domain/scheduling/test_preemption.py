"""Who gives way: only as many as help, none that is too young, too near its end, urgent itself or asked too often."""

from __future__ import annotations

import pytest

from app.domain.scheduling.preemption import Holder, Policy, Urgent, who_gives_way
from app.domain.scheduling.worker_capacity import Need, Offer

POLICY = Policy(after_seconds=600, limit=3)
SMALL, LARGE = Offer("cuda", 24 * 10**9), Offer("cuda", 80 * 10**9)
URGENT = Urgent("u1", "ops", Need("m"))


def holder(name: str = "long", offer: Offer = SMALL, share: float = 1.0, **more: object) -> Holder:
    return Holder(name, "a", offer, share, **({"ran_seconds": 3600.0, "seconds_left": 3600.0} | more))  # type: ignore[arg-type]


def ask(
    holders: list[Holder], urgent: list[Urgent] | None = None, free: list[Offer] | None = None, **room: int
) -> list[str]:
    return [each.job_id for each in who_gives_way(urgent or [URGENT], free or [], holders, room, POLICY)]


def test_a_long_one_gives_way_where_no_slot_is_free() -> None:
    assert ask([holder()]) == ["long"]
    assert ask([holder()], free=[SMALL]) == []


def test_of_several_one_of_the_project_that_had_the_most_and_of_the_lowest_priority() -> None:
    holders = [holder("poor", share=1), holder("rich", share=9), holder("rich and low", share=9, priority=-5)]
    assert ask(holders) == ["rich and low"]


def test_as_many_as_there_are_urgent_jobs_and_no_more() -> None:
    many = [Urgent(f"u{n}", "ops", Need("m")) for n in range(2)]
    assert len(ask([holder(str(n)) for n in range(4)], many)) == 2
    assert len(ask([holder("0", is_asked=True), *(holder(str(n)) for n in range(1, 4))], many)) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"ran_seconds": 599.0},
        {"times_yielded": 3},
        {"is_urgent": True},
        {"is_stoppable": False},
        {"is_asked": True},
        {"seconds_left": 100.0},
    ],
    ids=str,
)
def test_none_that_has_just_begun_or_is_about_to_end_or_was_asked_often(more: dict[str, object]) -> None:
    assert ask([holder(**more)]) == []


def test_only_where_it_frees_a_slot_that_fits() -> None:
    large = Urgent("u1", "ops", Need("m", cuda_bytes=60 * 10**9))
    assert ask([holder("small"), holder("large", LARGE, share=0.1)], [large]) == ["large"]
    assert ask([holder("small")], [large]) == []


def test_a_project_at_its_limit_gains_nothing_from_the_jobs_of_others() -> None:
    assert ask([holder()], ops=0) == []
    own = Urgent("u1", "a", Need("m"))
    assert ask([holder()], [own], a=0) == ["long"]
