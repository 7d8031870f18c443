from __future__ import annotations

from typing import Any

import pytest

from app.domain.evaluations.graders import PromoteIf
from app.domain.evaluations.summary import decide, delivery_verdict
from app.domain.jobs.states import WorkState
from tests.sentences import Reviewed


def grader(base: float, adapter: float, low: float | None) -> dict[str, Any]:
    difference = {"mean": adapter - base, "low": low, "high": 1.0}
    return {"base": {"mean": base}, "adapter": {"mean": adapter}, "difference": difference}


@pytest.mark.parametrize(
    ("base", "adapter", "low", "margin", "is_allowed"),
    [
        (0.5, 0.9, 0.2, 0.0, True),
        (0.5, 0.5, 0.0, 0.0, False),  # the bound must be above the margin
        (0.5, 0.5, -0.05, 0.1, True),  # no worse by more than the margin
        (0.5, 0.6, -0.05, 0.0, False),
        (0.6, 0.5, -0.05, 0.1, False),  # the mean is below the base, whatever the margin
        (0.5, 0.9, None, 0.0, False),
    ],
)
def test_the_mean_and_the_lower_bound_decide(
    base: float, adapter: float, low: float | None, margin: float, is_allowed: bool
) -> None:
    verdict = decide(PromoteIf(grader="exact", margin=margin), grader(base, adapter, low), missing_scores=0)
    assert verdict.is_allowed is is_allowed
    assert verdict.reason.startswith("exact")


@pytest.mark.parametrize(("margin", "bound"), [(0.0, "0"), (0.02, "-0.02")])
def test_a_refusal_names_the_bound_and_what_to_do(margin: float, bound: str, reviewed: Reviewed) -> None:
    verdict = decide(PromoteIf(grader="exact", margin=margin), grader(0.5, 0.5, -0.15), missing_scores=0)
    reviewed(verdict.reason)


def test_missing_scores_allow_nothing(reviewed: Reviewed) -> None:
    verdict = decide(PromoteIf(grader="judge"), grader(0.1, 0.9, 0.5), missing_scores=3)
    assert verdict.is_allowed is False
    reviewed(verdict.reason)


@pytest.mark.parametrize(
    ("is_requested", "state", "promotion", "is_allowed"),
    [
        (False, None, None, True),
        (True, None, None, None),
        (True, WorkState.RUNNING, None, None),
        (True, WorkState.FAILED, None, False),
        (True, WorkState.CANCELLED, None, False),
        (True, WorkState.SUCCEEDED, {"allowed": False, "reason": "no"}, False),
        (True, WorkState.SUCCEEDED, {"allowed": True, "reason": "yes"}, True),
    ],
)
def test_a_delivery_waits_for_the_evaluation_that_has_the_condition(
    is_requested: bool, state: WorkState | None, promotion: dict[str, Any] | None, is_allowed: bool | None
) -> None:
    summary = {"promotion": promotion} if promotion else None
    assert delivery_verdict(is_requested, state, summary).is_allowed is is_allowed
