"""The interval that decides whether "auto" is worse: right on cases whose answer is known."""

from __future__ import annotations

import pytest

from benchmarks.paired import accuracy_interval, loss_interval
from benchmarks.score import Score


def score(exact: list[bool], nats: list[float] | None = None) -> Score:
    return Score(tuple(nats or [1.0] * len(exact)), tuple([2] * len(exact)), tuple(exact))


def test_an_adapter_is_not_worse_than_itself() -> None:
    same = [score([True, False] * 50)]
    interval = accuracy_interval(same, same)
    assert (interval.difference, interval.low, interval.high) == (0, 0, 0)
    assert not interval.is_worse


def test_losing_a_tenth_of_the_examples_is_worse_and_one_of_a_hundred_is_chance() -> None:
    right = [score([True] * 100)]
    assert accuracy_interval([score([False] * 10 + [True] * 90)], right).is_worse
    assert not accuracy_interval([score([False] + [True] * 99)], right).is_worse


def test_pairing_sees_what_two_independent_samples_would_not() -> None:
    """Six losses and no gain, where half of all answers are wrong on both sides: unpaired, +-14 points are noise."""
    theirs = [score([True] * 50 + [False] * 50)]
    assert accuracy_interval([score([False] * 6 + [True] * 44 + [False] * 50)], theirs).is_worse


def test_the_interval_is_about_two_standard_errors_wide() -> None:
    gains = [score([True] * 60 + [False] * 340)], [score([False] * 60 + [True] * 20 + [False] * 320)]
    interval = accuracy_interval(*gains)
    error = (0.2 - 0.1**2) ** 0.5 / 400**0.5  # gains are +1 (60), -1 (20) and 0 (320): mean 0.1, mean square 0.2
    assert interval.difference == pytest.approx(0.1)
    assert (interval.low, interval.high) == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=0.01)


def test_seeds_are_averaged_within_an_example() -> None:
    ours = [score([True, True]), score([False, True])]
    assert accuracy_interval(ours, [score([True, True])] * 2).difference == -0.25


def test_a_higher_loss_is_worse_and_is_counted_by_the_token() -> None:
    interval = loss_interval([score([True] * 50, [3.0] * 50)], [score([True] * 50, [1.0] * 50)])
    assert interval.difference == pytest.approx(-1.0)  # two nats on two tokens
    assert interval.is_worse
