"""The 95 % interval of a paired difference: both models answered the same rows, so their scores are correlated.

Scores of 0 and 1: Newcombe's method 10 (Statistics in Medicine 17, 1998, pages 2635 to 2650), which combines the two
Wilson intervals with the correlation of the pairs. Unlike a bootstrap it has a width when all rows agree, and it keeps
its coverage with few rows. Other scores: percentiles of the bootstrap over rows, with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from app.domain.evaluations.summary import Difference

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
RESAMPLES = 10_000
SEED = 0
MIN_ROWS = 2


def paired_difference(left: Sequence[float], right: Sequence[float]) -> Difference:
    """The mean of `left - right` over the rows, with its interval. Raises ValueError without rows."""
    if not left:
        raise ValueError("a difference needs at least one row")
    mean = math.fsum(a - b for a, b in zip(left, right, strict=True)) / len(left)
    is_binary = all(score in (0.0, 1.0) for score in (*left, *right))
    low: float | None = None
    high: float | None = None
    if len(left) >= MIN_ROWS:
        low, high = _newcombe(left, right) if is_binary else _bootstrap(left, right)
    method = "paired_wilson" if is_binary else "paired_bootstrap"
    return Difference(mean=mean, low=low, high=high, rows=len(left), method=method)


def _newcombe(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    n = len(left)
    both = sum(a == b == 1 for a, b in zip(left, right, strict=True))
    only_left, only_right = int(sum(left)) - both, int(sum(right)) - both
    neither = n - both - only_left - only_right
    p, q = (both + only_left) / n, (both + only_right) / n
    (p_low, p_high), (q_low, q_high) = _wilson(p, n), _wilson(q, n)
    phi = _correlation(both, only_left, only_right, neither)
    below = math.sqrt(max(0.0, (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2))
    above = math.sqrt(max(0.0, (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2))
    return max(-1.0, p - q - below), min(1.0, p - q + above)


def _wilson(p: float, n: int) -> tuple[float, float]:
    centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return (centre - half) / scale, (centre + half) / scale


def _correlation(both: int, only_left: int, only_right: int, neither: int) -> float:
    """The correlation of the pairs, with Newcombe's correction for continuity if it is positive."""
    product = (both + only_left) * (only_right + neither) * (both + only_right) * (only_left + neither)
    if not product:
        return 0.0
    difference = float(both * neither - only_left * only_right)
    if difference > 0:
        difference = max(0.0, difference - (both + only_left + only_right + neither) / 2)
    return difference / math.sqrt(product)


def _bootstrap(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    difference_N = np.asarray(left, dtype=float) - np.asarray(right, dtype=float)
    random = np.random.default_rng(SEED)
    means = [random.choice(difference_N, difference_N.size).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
