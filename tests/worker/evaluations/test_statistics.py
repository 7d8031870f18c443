from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.evaluations.summarize import paired_difference


def test_newcombes_published_example() -> None:
    """Table III, 36 both, 12 only the first, 2 only the second, 0 neither: 0.2 with 0.0569 to 0.3404 by method 10."""
    left = [1.0] * 36 + [1.0] * 12 + [0.0] * 2
    right = [1.0] * 36 + [0.0] * 12 + [1.0] * 2
    difference = paired_difference(left, right)
    assert difference.method == "paired_wilson"
    assert difference.mean == pytest.approx(0.2)
    assert difference.low == pytest.approx(0.0569, abs=5e-5)
    assert difference.high == pytest.approx(0.3404, abs=5e-5)


def test_equal_answers_still_have_an_interval() -> None:
    difference = paired_difference([1.0] * 10, [1.0] * 10)
    assert difference.low is not None
    assert difference.low < 0 < (difference.high or 0)


def test_one_row_has_no_interval() -> None:
    assert paired_difference([1.0], [0.0]).low is None


def test_a_bootstrap_is_repeatable_and_near_the_interval_of_the_normal_distribution() -> None:
    draw = random.Random(3)
    left = [draw.random() for _ in range(200)]
    right = [value * 0.8 for value in left]
    difference = paired_difference(left, right)
    assert difference == paired_difference(left, right)
    assert difference.method == "paired_bootstrap"
    pairs = np.subtract(left, right)
    half = 1.96 * pairs.std(ddof=1) / len(pairs) ** 0.5
    assert difference.low == pytest.approx(pairs.mean() - half, rel=0.02)
    assert difference.high == pytest.approx(pairs.mean() + half, rel=0.02)


def test_the_intervals_contain_the_true_difference() -> None:
    """Of 95 % intervals of 40 pairs with correlated answers, at least 93 % of 500 do."""
    draw, hits = random.Random(7), 0
    for _ in range(500):
        pairs = []
        for _ in range(40):
            difficulty = draw.random()
            pairs.append((float(draw.random() < 0.3 + 0.6 * difficulty), float(draw.random() < 0.7 * difficulty)))
        left, right = zip(*pairs, strict=True)
        difference = paired_difference(left, right)
        assert difference.low is not None
        assert difference.high is not None
        hits += difference.low <= 0.25 <= difference.high
    assert hits >= 0.93 * 500


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60))
def test_the_interval_contains_the_mean_and_swaps_with_the_models(pairs: list[tuple[float, float]]) -> None:
    left, right = zip(*pairs, strict=True)
    forward, backward = paired_difference(left, right), paired_difference(right, left)
    assert forward.low is not None
    assert forward.high is not None
    assert -1 <= forward.low <= forward.mean <= forward.high <= 1
    assert backward.low == pytest.approx(-forward.high)
