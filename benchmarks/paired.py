"""Paired bootstrap: whether one adapter is worse than another on the same held-out examples, beyond chance.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), the percentile interval. Seeds of training are averaged
within an example first: an example is what is drawn again, not a run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.score import Score

DRAWS = 4000
SEED = 7


@dataclass(frozen=True)
class Interval:
    """A confidence interval of the difference ours - theirs; positive is better for Tunery."""

    difference: float
    low: float
    high: float

    @property
    def is_worse(self) -> bool:
        return self.high < 0


def accuracy_interval(ours: Sequence[Score], theirs: Sequence[Score]) -> Interval:
    """The interval of the difference in accuracy. One score per seed, in the same order on both sides."""
    return _interval(_exact(ours), _exact(theirs), [1.0] * len(ours[0].exact))


def loss_interval(ours: Sequence[Score], theirs: Sequence[Score]) -> Interval:
    """The interval of the difference in loss (nats per labelled token), negated: positive is better for Tunery."""
    return _interval(_nats(theirs), _nats(ours), [float(count) for count in ours[0].tokens])


def _exact(scores: Sequence[Score]) -> list[float]:
    return [sum(seeds) / len(scores) for seeds in zip(*(score.exact for score in scores), strict=True)]


def _nats(scores: Sequence[Score]) -> list[float]:
    return [sum(seeds) / len(scores) for seeds in zip(*(score.nats for score in scores), strict=True)]


def _interval(ours: list[float], theirs: list[float], weights: list[float]) -> Interval:
    """The interval of sum(ours - theirs) / sum(weights), over examples drawn with replacement."""
    gains = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    dice, pairs, size = random.Random(SEED), list(zip(gains, weights, strict=True)), len(gains)
    draws = sorted(_ratio(dice.choices(pairs, k=size)) for _ in range(DRAWS))
    return Interval(_ratio(pairs), draws[round(0.025 * DRAWS)], draws[round(0.975 * DRAWS) - 1])


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(gain for gain, _ in pairs) / sum(weight for _, weight in pairs)
