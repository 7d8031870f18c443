"""Whether an evaluation allows the delivery of an adapter (`promote_if`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.error_text.json_text import counted
from app.domain.evaluations.graders import PromoteIf
from app.domain.evaluations.states import EvaluationState

REPEAT = "remove the cause, which the report has, and repeat the evaluation"
REMEDY = "more rows narrow the interval, and a larger margin accepts more loss"


@dataclass(frozen=True)
class DeliveryVerdict:
    """`is_allowed` is None while the evaluation has not ended."""

    is_allowed: bool | None
    reason: str


def decide(promote_if: PromoteIf, grader: Mapping[str, Any], missing_scores: int) -> DeliveryVerdict:
    """Apply the condition to the summary of its grader.

    The mean of the adapter must be at least that of the base, and the lower bound of the 95 % interval of the paired
    difference above minus the margin.
    """
    name, difference = promote_if.grader, grader["difference"]
    if missing_scores:
        text = f"{name} has no score for {counted(missing_scores, 'answer')} of base and adapter; {REPEAT}"
        return DeliveryVerdict(False, text)
    if difference is None or difference["low"] is None:
        return DeliveryVerdict(False, f"{name} has too few rows for an interval; evaluate more rows")
    base, adapter, low = grader["base"]["mean"], grader["adapter"]["mean"], difference["low"]
    means = f"{name}: adapter {adapter:.4g}, base {base:.4g}"
    if adapter < base:
        return DeliveryVerdict(False, f"{means}; the adapter is below the base")
    bound = 0 - promote_if.margin  # -0.0 would be shown as -0
    interval = f"the interval of the difference begins at {low:+.4g}"
    if not low > bound:
        return DeliveryVerdict(False, f"{means}; {interval}, which is not above {bound:.4g}: {REMEDY}")
    return DeliveryVerdict(True, f"{means}; {interval}, above {bound:.4g}")


def delivery_verdict(
    is_requested: bool, state: EvaluationState | None, summary: Mapping[str, Any] | None
) -> DeliveryVerdict:
    """The verdict on a delivery.

    `is_requested`: whether a condition exists; `state` and `summary` are those of the evaluation that has it.
    """
    if not is_requested:
        return DeliveryVerdict(True, "no condition was set")
    if state is None or state in (EvaluationState.QUEUED, EvaluationState.RUNNING):
        return DeliveryVerdict(None, "the evaluation has not ended yet")
    if state != EvaluationState.SUCCEEDED or summary is None or summary.get("promotion") is None:
        return DeliveryVerdict(False, f"the evaluation ended with the status {state}, so the condition is not met")
    promotion = summary["promotion"]
    return DeliveryVerdict(bool(promotion["allowed"]), str(promotion["reason"]))
