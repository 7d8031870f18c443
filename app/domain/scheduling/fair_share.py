"""Whose turn it is: the project with the least decayed GPU time, by its weight, goes first.

    usage(t)  = integral over the past of gpus(s) * 2^-((t - s) / half_life) ds       GPU seconds that fade
    held(t)   = gpus * planned seconds that are left, over the jobs that run          what they are about to use
    share(t)  = (usage(t) + held(t)) / weight

A running job's time counts as it runs; what is left of its plan counts from its start, so that a project which was
idle cannot take every GPU at once for jobs of a day each. docs/decisions/0023-a-fair-queue.md has the sources.
app.db.scheduling.fair_queue says the same in SQL, for the claim; a property holds both against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF_LIFE_SECONDS = 86_400.0
UNPLANNED_SECONDS = 600.0  # of a job whose duration nobody has reckoned
MOST_HALF_LIVES = 1_000.0  # beyond, a number has no digits left; PostgreSQL calls it an error

LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100


@dataclass(frozen=True)
class Standing:
    """How a project stands at one moment."""

    project_id: str
    usage: float = 0.0  # decayed GPU seconds, what runs included
    held: float = 0.0
    weight: float = 1.0
    running: int = 0
    max_running: int | None = None

    @property
    def share(self) -> float:
        return (self.usage + self.held) / self.weight

    @property
    def has_room(self) -> bool:
        return self.max_running is None or self.running < self.max_running


def faded(gpu_seconds: float, seconds: float, half_life: float = HALF_LIFE_SECONDS) -> float:
    """What `seconds` leave of usage."""
    return gpu_seconds * math.pow(0.5, min(MOST_HALF_LIVES, max(0.0, seconds) / half_life))


def used(gpus: int, began_ago: float, ended_ago: float = 0.0, half_life: float = HALF_LIFE_SECONDS) -> float:
    """What an attempt that ran from `began_ago` to `ended_ago` seconds before now still counts."""
    scale = gpus * half_life / math.log(2)
    return faded(scale, ended_ago, half_life) - faded(scale, began_ago, half_life)
