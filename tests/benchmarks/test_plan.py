"""The arithmetic of `make bench-plan`: errors, medians and verdicts."""

from __future__ import annotations

import pytest

from app.domain.planning.execution_plan import ExecutionPlan
from benchmarks.plan_table import Outcome, verdicts


def outcome(peak: int = 1_000_000_000, seconds: float = 100.0, tokens: int = 500, name: str = "a job") -> Outcome:
    """Predicted were 1 GB, 100 s and 500 tokens."""
    return Outcome(
        name=name, planned_tokens=500, tokens=tokens, planned_steps=4, steps=4, mode=ExecutionPlan(row_tokens=1024),
        planned_peak_bytes=1_000_000_000, peak_bytes=peak, planned_seconds=100.0, seconds=seconds,
        attempt_seconds=seconds + 25,
    )  # fmt: skip


def test_an_error_is_a_part_of_what_was_measured_and_positive_if_too_much_was_predicted() -> None:
    assert outcome(peak=800_000_000).memory_error == pytest.approx(0.25)
    assert outcome(seconds=125.0).duration_error == pytest.approx(-0.2)
    assert outcome(seconds=100.0).attempt_error == pytest.approx(-0.2)


def test_the_median_of_the_sizes_of_errors_counts_not_that_of_the_errors() -> None:
    """+-5 % five times is 5 % wrong, although the errors add up to nothing."""
    peaks = [1_000_000_000 * 100 // (100 + error) for error in (5, -5, 5, -5, 0)]
    _, memory, *_ = verdicts([outcome(peak=peak) for peak in peaks])
    assert memory.startswith("MISSED memory")
    assert "5.0%" in memory


def test_one_job_far_off_does_not_miss_the_target_but_is_named_as_the_worst() -> None:
    texts = verdicts([outcome(), outcome(), outcome(), outcome(), outcome(peak=500_000_000, seconds=50.0)])
    assert [text.split()[:2] for text in texts[1:3]] == [["met", "memory,"], ["met", "duration,"]]
    assert all("+100.0%" in text for text in texts[1:3])
    assert texts[3].endswith("20.0%")


def test_tokens_must_be_exact_in_every_job() -> None:
    met, *_ = verdicts([outcome()] * 5)
    assert met.split()[0] == "met"
    missed, *_ = verdicts([outcome(), outcome(tokens=501, name="short rows")])
    assert (missed.split()[0], "short rows" in missed) == ("MISSED", True)
