"""What a job measured, a row per optimizer step: as CSV, and thinned out for a chart without losing its shape."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# OpenAI's five columns first, as scripts read them by position; then ours.
RESULT_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "train_mean_token_accuracy": "train_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
    "num_tokens": "num_tokens",
}
REWARD_COLUMNS = {  # of DPO, and there only
    name: name
    for name in (
        "train_reward_accuracy", "train_reward_margin", "full_valid_reward_accuracy", "full_valid_reward_margin",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A step as a chart sees it; `row` is where the rest of it stands."""

    step: int
    loss: float
    is_validated: bool
    row: int


def results_csv(rows: Iterable[dict[str, Any]]) -> bytes:
    """A line per step; blank where nothing was measured."""
    text, rows = io.StringIO(), list(rows)
    has_rewards = any("train_reward_margin" in row for row in rows)
    columns = RESULT_COLUMNS | (REWARD_COLUMNS if has_rewards else {})
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(source) for source in columns.values())
        writer.writerow(["" if value is None else value for value in values])
    return text.getvalue().encode()


def thin_out(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` (at least 2) of the points, the first and the last among them; true ones, never means.

    Largest triangle three buckets (Steinarsson 2013): of each bucket the point that a line through its neighbours would
    miss most, so a spike stays a spike. A point with a validation is preferred to its neighbours without.
    """
    if len(points) <= most:
        return list(points)
    chosen = [points[0]]
    buckets = _buckets(points, most - 2)
    for bucket, following in zip(buckets, [*buckets, [points[-1]]][1:], strict=True):
        candidates = [point for point in bucket if point.is_validated] or bucket
        chosen.append(max(candidates, key=_area(chosen[-1], following)))
    return [*chosen, points[-1]]


def _buckets(points: Sequence[Point], count: int) -> list[Sequence[Point]]:
    inner = points[1:-1]
    edges = [index * len(inner) // count for index in range(count + 1)] if count else [0]
    return [inner[start:end] for start, end in pairwise(edges)]


def _area(before: Point, following: Sequence[Point]) -> Any:
    """Twice the area of the triangle of a point, the one chosen before it, and the middle of the bucket after it."""
    step = sum(point.step for point in following) / len(following)
    loss = sum(point.loss for point in following) / len(following)

    def area(point: Point) -> float:
        return abs(
            (before.step - step) * (point.loss - before.loss) - (before.step - point.step) * (loss - before.loss)
        )

    return area
