"""Fair share: the project with the least decayed GPU time, divided by its weight, comes first.

    usage(t)  = integral over the past of gpus(s) * 2^-((t - s) / half_life) ds       decayed GPU seconds
    held(t)   = gpus * planned seconds left, summed over the running jobs             GPU seconds about to be used
    share(t)  = (usage(t) + held(t)) / weight

A slot of a GPU that several slots share counts as its share of that GPU. The time of a running job counts as it runs.
What is left of its plan counts from its start, so that a project that was idle cannot take every GPU at once for jobs
of a day each. docs/how-it-works/decisions/fair-queue.md has the sources.
app.db.scheduling.fair_queue computes them in SQL.
"""

from __future__ import annotations

from dataclasses import dataclass

HALF_LIFE_SECONDS = 86_400.0
DEFAULT_DURATION_SECONDS = 600.0  # of a job without an estimated duration
MAX_HALF_LIVES = 1_000.0  # above, the result has no significant digits, and PostgreSQL raises an underflow error

LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100


@dataclass(frozen=True)
class ProjectShare:
    """What a project has used and is about to use at one moment, and its limits."""

    project_id: str
    usage: float = 0.0  # decayed GPU seconds, those of running jobs included
    held: float = 0.0  # GPU seconds left in the plans of its running jobs
    weight: float = 1.0
    running: int = 0
    max_running: int | None = None

    @property
    def share(self) -> float:
        return (self.usage + self.held) / self.weight
