"""The metrics of a job, one row per optimizer step: as CSV, and downsampled for a chart."""

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
REWARD_COLUMNS = {  # DPO only
    name: name
    for name in (
        "train_reward_accuracy",
        "train_reward_margin",
        "full_valid_reward_accuracy",
        "full_valid_reward_margin",
    )
}


MIN_POINTS_WITH_EXTREMES = 100  # as many as a chart has at least


@dataclass(frozen=True)
class Point:
    """A step of the loss chart; `row` is the index of its row."""

    step: int
    loss: float
    is_validated: bool
    row: int
    is_finite: bool = True
    valid_loss: float | None = None


def results_csv(rows: Iterable[dict[str, Any]]) -> bytes:
    """One line per step; values that were not measured are blank."""
    text, rows = io.StringIO(), list(rows)
    has_rewards = any("train_reward_margin" in row for row in rows)
    columns = RESULT_COLUMNS | (REWARD_COLUMNS if has_rewards else {})
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(source) for source in columns.values())
        writer.writerow(["" if value is None else value for value in values])
    return text.getvalue().encode()


def downsample(points: Sequence[Point], max_points: int, extremes: Sequence[Point] = ()) -> list[Point]:
    """At most `max_points` (at least 2) of the points, including the first and the last; measured points, not means.

    From MIN_POINTS_WITH_EXTREMES on, the points with the lowest and the highest loss, with the best validation, and the
    given `extremes` of other metrics are among them. Largest triangle three buckets (Steinarsson 2013): the point of
    each bucket that is farthest from a line through its neighbours, so that spikes remain. Points with a validation are
    preferred.
    """
    if len(points) <= max_points:
        return list(points)
    chosen = _largest_triangles(points, max_points)
    if max_points >= MIN_POINTS_WITH_EXTREMES:
        _insert_extremes(chosen, [*_extremes(points), *extremes])
    return chosen


def _extremes(points: Sequence[Point]) -> list[Point]:
    losses = [point for point in points if point.is_finite]
    found = [min(losses, key=_loss), max(losses, key=_loss)] if losses else []
    validations = [(point.valid_loss, point.step, point) for point in points if point.valid_loss is not None]
    return [*found, min(validations)[2]] if validations else found


def _insert_extremes(chosen: list[Point], extremes: Sequence[Point]) -> None:
    """Put each extreme in the place of the chosen point nearest to it, but of neither end nor another extreme."""
    for extreme in extremes:
        if extreme not in chosen:
            free = [index for index in range(1, len(chosen) - 1) if chosen[index] not in extremes]
            nearest = min(free, key=lambda index: abs(chosen[index].step - extreme.step))
            chosen[nearest] = extreme


def _loss(point: Point) -> float:
    return point.loss


def _largest_triangles(points: Sequence[Point], max_points: int) -> list[Point]:
    chosen = [points[0]]
    buckets = _buckets(points, max_points - 2)
    for bucket, following in zip(buckets, [*buckets, [points[-1]]][1:], strict=True):
        candidates = [point for point in bucket if point.is_validated] or bucket
        chosen.append(max(candidates, key=_area(chosen[-1], following)))
    return [*chosen, points[-1]]


def _buckets(points: Sequence[Point], count: int) -> list[Sequence[Point]]:
    inner = points[1:-1]
    edges = [index * len(inner) // count for index in range(count + 1)] if count else [0]
    return [inner[start:end] for start, end in pairwise(edges)]


def _area(before: Point, following: Sequence[Point]) -> Any:
    """Twice the area of the triangle of a point, the previous chosen point, and the mean of the following bucket."""
    step = sum(point.step for point in following) / len(following)
    loss = sum(point.loss for point in following) / len(following)

    def area(point: Point) -> float:
        return abs(
            (before.step - step) * (point.loss - before.loss) - (before.step - point.step) * (loss - before.loss)
        )

    return area
