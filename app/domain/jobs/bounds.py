"""Bounds of fractional numbers, both ends included.

They refuse slips (1e308, a rate with its sign in the wrong place), which would train to NaN or learn nothing, and leave
room on both sides of every value that is known to be of use. A job that was created before there were bounds keeps its
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.error_text.json_text import plain_number


@dataclass(frozen=True)
class Bounds:
    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum  # false for NaN

    def __str__(self) -> str:
        return f"from {plain_number(self.minimum)} to {plain_number(self.maximum)}"


LEARNING_RATE = Bounds(1e-12, 10)  # AdamW moves a weight by up to the rate in each step; 1e-6 to 1e-2 are in use
ALPHA = Bounds(1e-3, 100_000)  # 1 to 1,024 are in use
EARLY_STOPPING_THRESHOLD = Bounds(0, 100)  # nats; a loss of 12 is that of guessing among all tokens
SHARE_WEIGHT = Bounds(1e-6, 1e6)  # GPU time is divided by it
