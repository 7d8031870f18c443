"""The arithmetic of `make bench-plan`: errors, medians, verdicts, and what its jobs are made of."""

from __future__ import annotations

import json
from itertools import chain

import pytest

from app.domain.planning.execution_plan import ExecutionPlan
from benchmarks import plan
from benchmarks.plan_table import HEADER, Outcome, line, verdicts


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


def test_a_line_stands_under_its_header() -> None:
    text = line(outcome(peak=800_000_000))
    assert "500 -> 500" in text
    assert "1,000 -> 800" in text
    assert "+25.0%" in text
    assert HEADER.index("layout") == text.index("packed batches")


class TestJobs:
    def test_all_but_the_first_differ_in_a_way_that_the_first_does_not_show(self) -> None:
        shapes = {(job.turns, job.batch_size, job.n_epochs, job.validation, job.shortest) for job in plan.OTHERS}
        assert len(shapes) == len(plan.OTHERS) == 5
        assert plan.FIRST.validation == 0

    def test_conversations_of_several_turns_are_so_many_rows_in_one(self) -> None:
        job = plan.Recipe("joined", examples=3, batch_size=1, turns=4)
        rows = [json.loads(line)["messages"] for line in plan.training_rows(job).splitlines()]
        assert [len(messages) for messages in rows] == [8, 8, 8]
        alone = plan.Recipe("alone", examples=12, batch_size=1)
        singles = [json.loads(line)["messages"] for line in plan.training_rows(alone).splitlines()]
        assert list(chain.from_iterable(singles)) == list(chain.from_iterable(rows))

    def test_short_rows_are_shorter_than_those_that_come_first(self) -> None:
        short, usual = (plan.Recipe("job", examples=50, batch_size=1, shortest=which) for which in (True, False))
        assert len(plan.training_rows(short)) < 0.6 * len(plan.training_rows(usual))

    def test_every_job_has_as_many_rows_as_it_says(self) -> None:
        for job in (plan.FIRST, *plan.OTHERS):
            assert len(plan.training_rows(job).splitlines()) == job.examples
            assert len(plan.validation_rows(job).splitlines()) == job.validation
