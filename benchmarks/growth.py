"""How a time grows with the size of an input: the exponent of the power law that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLOOR_SECONDS = 0.0005  # below it the caches of the processor and the clock bend the line
MIN_POINTS = 3  # with fewer the largest input takes some milliseconds, however the time grows
MAX_EXPONENT = 1.2


@dataclass(frozen=True)
class Growth:
    sizes: Sequence[int]
    seconds: Sequence[float]
    floor_seconds: float = FLOOR_SECONDS
    min_points: int = MIN_POINTS

    @property
    def exponent(self) -> float | None:
        """None if too few sizes take longer than the fixed cost."""
        points = [
            (size, seconds)
            for size, seconds in zip(self.sizes, self.seconds, strict=True)
            if seconds > self.floor_seconds
        ]
        return slope(points) if len(points) >= self.min_points else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent of the power law that fits best, by least squares on logarithmic axes."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - middle_x) ** 2 for x in xs)
