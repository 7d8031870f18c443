"""A table of estimated and actual time and memory of jobs, and whether the errors meet the targets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.planning.execution_plan import ExecutionPlan

MEMORY_WITHIN, DURATION_WITHIN = 0.03, 0.15  # of the median job

HEADER = (
    f"{'job':20}{'tokens':>18}{'steps':>12}{'peak, MB':>17}{'':>8}{'trainer, s':>17}{'':>8}{'claim to end, s':>17}"
    "  layout"
)


@dataclass(frozen=True)
class Outcome:
    """One job: its estimate, and its actual time and memory."""

    name: str
    planned_tokens: int
    tokens: int
    planned_steps: int
    steps: int
    mode: ExecutionPlan
    planned_peak_bytes: int
    peak_bytes: int
    planned_seconds: float
    seconds: float  # of the trainer's process
    attempt_seconds: float  # from its claim to its end: with preparing and publishing

    @property
    def is_exact(self) -> bool:
        return (self.planned_tokens, self.planned_steps) == (self.tokens, self.steps)

    @property
    def memory_error(self) -> float:
        """The error relative to the actual value; positive if the estimate is too high."""
        return self.planned_peak_bytes / self.peak_bytes - 1

    @property
    def duration_error(self) -> float:
        return self.planned_seconds / self.seconds - 1

    @property
    def attempt_error(self) -> float:
        return self.planned_seconds / self.attempt_seconds - 1


def line(outcome: Outcome) -> str:
    tokens = f"{outcome.planned_tokens:,} -> {outcome.tokens:,}"
    steps = f"{outcome.planned_steps} -> {outcome.steps}"
    peak = f"{outcome.planned_peak_bytes / 1e6:,.0f} -> {outcome.peak_bytes / 1e6:,.0f}"
    seconds = f"{outcome.planned_seconds:.0f} -> {outcome.seconds:.0f}"
    return (
        f"{outcome.name:20}{tokens:>18}{steps:>12}{peak:>17}{outcome.memory_error:>+8.1%}"
        f"{seconds:>17}{outcome.duration_error:>+8.1%}{outcome.attempt_seconds:>17.0f}  {outcome.mode}"
    )


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    """Each target with the measured value."""
    inexact = [outcome.name for outcome in outcomes if not outcome.is_exact]
    of_attempt = _median([outcome.attempt_error for outcome in outcomes])
    return [
        f"{_met(not inexact)} tokens and steps exact: {len(outcomes) - len(inexact)} of {len(outcomes)} jobs"
        + (f", not {', '.join(inexact)}" if inexact else ""),
        _within("memory", [outcome.memory_error for outcome in outcomes], MEMORY_WITHIN),
        _within("duration", [outcome.duration_error for outcome in outcomes], DURATION_WITHIN),
        f"       against the time from claim to end, in which files are brought and published, too: {of_attempt:.1%}",
    ]


def _within(what: str, errors: Sequence[float], allowed: float) -> str:
    median_error, worst = _median(errors), max(errors, key=abs)
    target = f"at most {allowed:.0%} (worst {worst:+.1%})"
    return f"{_met(median_error <= allowed)} {what}, median error: {median_error:.1%}, {target}"


def _median(errors: Sequence[float]) -> float:
    return statistics.median(abs(error) for error in errors)


def _met(is_met: bool) -> str:
    return "met   " if is_met else "MISSED"
