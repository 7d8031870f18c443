"""The plan of an evaluation: rows, tokens, time."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.domain.evaluations.graders import EvaluationSettings

FORWARD_SHARE = 3.0  # a training step takes about three times a forward
DECODE_FACTOR = 3.0  # a generated token takes about three times a token of a prompt, in small batches


class EvaluationPlan(BaseModel):
    """An upper bound: most answers end before `max_new_tokens`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: int | None
    """Rows to evaluate; null until a worker has read the file."""
    prompt_tokens: int | None
    """Tokens of all prompts; null until a worker counts them."""
    max_answer_tokens: int | None
    """The most tokens that both models may generate."""
    estimated_seconds: float | None
    """An upper estimate of the generation; null: unknown."""
    basis: Literal["measured", "training_speed"] | None
    """What the estimate comes from: an earlier evaluation of this base, or this job's training."""


def make_plan(
    settings: EvaluationSettings,
    rows: int | None,
    prompt_tokens: int | None,
    seconds_per_answer: float | None,
    progress: dict[str, Any] | None,
) -> EvaluationPlan:
    """The plan for `rows` rows. `progress` is that of the job, which has the speed of its training."""
    if rows is None:
        return EvaluationPlan(rows=None, prompt_tokens=None, max_answer_tokens=None, estimated_seconds=None, basis=None)
    max_answer_tokens = 2 * rows * settings.max_new_tokens
    training_speed = (progress or {}).get("tokens_per_second")
    seconds, basis = None, None
    if seconds_per_answer is not None:
        seconds, basis = 2 * rows * seconds_per_answer, "measured"
    elif training_speed:
        tokens = 2 * (prompt_tokens or 0) + DECODE_FACTOR * max_answer_tokens
        seconds, basis = tokens / (FORWARD_SHARE * training_speed), "training_speed"
    return EvaluationPlan(
        rows=rows,
        prompt_tokens=prompt_tokens,
        max_answer_tokens=max_answer_tokens,
        estimated_seconds=None if seconds is None else round(seconds, 1),
        basis=basis,
    )
