from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.domain.jobs.events import Point, downsample, results_csv

LOSSES = st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=1, max_size=300)


def points(losses: list[tuple[float, bool]]) -> list[Point]:
    return [Point(step, loss, is_validated, step * 3) for step, (loss, is_validated) in enumerate(losses, 1)]


@given(LOSSES, st.integers(2, 120))
def test_a_chart_has_true_points_in_order_with_both_ends(losses: list[tuple[float, bool]], most: int) -> None:
    all_of_them = points(losses)
    chosen = downsample(all_of_them, most)
    assert len(chosen) == min(most, len(all_of_them))
    assert set(chosen) <= set(all_of_them)
    assert [point.step for point in chosen] == sorted({point.step for point in chosen})
    assert (chosen[0], chosen[-1]) == (all_of_them[0], all_of_them[-1])


@given(st.integers(1, 498))
def test_a_spike_stays_a_spike(at: int) -> None:
    losses = [(2.0, False)] * 500
    losses[at] = (9.0, False)
    assert 9.0 in {point.loss for point in downsample(points(losses), 20)}


def test_a_step_with_a_validation_is_preferred() -> None:
    losses = [(1.0 + (step % 7), step % 50 == 25) for step in range(500)]
    assert sum(point.is_validated for point in downsample(points(losses), 12)) == 10


@given(st.lists(st.floats(0, 100), min_size=101, max_size=400), st.integers(100, 200))
def test_the_lowest_and_the_highest_loss_stay(losses: list[float], most: int) -> None:
    chosen = {point.loss for point in downsample(points([(loss, False) for loss in losses]), most)}
    assert {min(losses), max(losses)} <= chosen


@given(st.integers(0, 398), st.integers(100, 200))
def test_the_best_validation_stays(best: int, most: int) -> None:
    made = [Point(n, 2.0 + n % 3, True, n, valid_loss=0.5 if n == best else 1.0 + n % 5) for n in range(400)]
    assert made[best] in downsample(made, most)


def test_a_loss_that_was_not_finite_is_no_extreme() -> None:
    made = [Point(step, 2.0 if step != 50 else 0.0, False, step, is_finite=step != 50) for step in range(500)]
    made[250] = Point(250, 1.0, False, 250)
    assert made[250] in downsample(made, 100)


def test_a_csv_has_a_line_per_step_and_blanks_where_nothing_was_measured() -> None:
    header, row = results_csv([{"step": 1, "train_loss": 0.5, "valid_loss": None}]).decode().splitlines()
    assert header.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert row.startswith("1,0.5,,,")
