"""The metrics of a job: curves as ECharts options."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import app.web
from app.domain.methods import METHODS, Method
from app.web.pages.jobs.compare import MAX_JOBS
from app.web.pages.jobs.metrics import (
    COLOURS,
    MAX_SYMBOLS,
    ChartedJob,
    best_validation,
    clipped_text,
    options,
    robust_top,
    x_values,
)
from tests.sentences import Reviewed

ROWS = [
    {"step": 1, "train_loss": 2.0, "num_tokens": 100, "tokens_per_second": 50.0, "grad_norm": 1.0},
    {"step": 2, "train_loss": None, "num_tokens": 300, "tokens_per_second": 100.0, "full_valid_loss": 1.8},
    {"step": 3, "train_loss": 1.0, "num_tokens": 400, "tokens_per_second": 100.0, "full_valid_loss": 1.9},
]
THEME = (Path(app.web.__file__).parent / "static" / "theme.css").read_text(encoding="utf-8")
Json = dict[str, Any]


def line_of(name: str, **look: Any) -> Json:
    """The series of a job with this name, with its points as a list instead of an expression in JavaScript."""
    line = next(one for one in options([ChartedJob("job", ROWS)], **look)["series"] if one["name"] == name)
    points = line.pop(":data").removeprefix("Object.freeze(JSON.parse('").removesuffix("'))")
    return line | {"points": json.loads(points)}


def test_a_smoothed_curve_has_the_raw_one_beside_it() -> None:
    assert line_of("Train loss (raw)", smoothing=0.6)["points"] == [[1.0, 2.0], [3.0, 1.0]]
    assert line_of("Train loss", smoothing=0.6)["points"] == [[1.0, 2.0], [3.0, 1.375]]


@pytest.mark.parametrize(
    ("axis", "positions"), [("step", [1.0, 2.0, 3.0]), ("num_tokens", [100.0, 300.0, 400.0]), ("time", [2.0, 4.0, 5.0])]
)
def test_the_axis_is_steps_tokens_or_training_time(axis: str, positions: list[float]) -> None:
    assert x_values(ROWS, axis) == positions


def test_the_best_validation_is_the_lowest() -> None:
    assert best_validation(ROWS) == ROWS[1]
    assert best_validation(ROWS[:1]) is None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_metric_of_a_method_is_charted_with_its_validation(method: Method) -> None:
    row = {"step": 1, "train_loss": 1.0}
    row |= {f"{scope}_{name}": 0.5 for name in method.metrics for scope in ("train", "full_valid")}
    made = options([ChartedJob("job", [row])])
    assert len(made["title"]) == 1 + len(method.metrics)
    below = [line["yAxisIndex"] for line in made["series"] if line["yAxisIndex"]]
    assert below == [index for index in range(1, len(method.metrics) + 1) for _ in ("train", "validation")]


def job_of(*losses: float, **other: list[float]) -> ChartedJob:
    rows = [{"step": step, "train_loss": loss} for step, loss in enumerate(losses, 1)]
    return ChartedJob(
        "job", [row | {name: curve[step] for name, curve in other.items()} for step, row in enumerate(rows)]
    )


STEEP = [0.5 + 7.5 * math.exp(-step / 3) for step in range(86)]


def test_the_first_steps_do_not_end_the_axis_of_the_losses(reviewed: Reviewed) -> None:
    top = robust_top([job_of(*STEEP)])
    assert top is not None
    assert 0.5 < top < 1.0
    axis = options([job_of(*STEEP)], top=top)["yAxis"]
    assert axis[0]["max"] == top
    reviewed(clipped_text([job_of(*STEEP)], top))


@pytest.mark.parametrize(
    "jobs",
    [
        [],
        [job_of(2.0)],
        [job_of(*[1.5] * 20)],
        [job_of(*(2.5 - step / 50 for step in range(100)))],
        [job_of(*STEEP[30:], full_valid_loss=[2.0 - step / 100 for step in range(56)])],  # another curve needs the room
        [job_of(*[8.0] * 20), job_of(*[0.5] * 80)],  # no job is hidden as a whole
    ],
    ids=["none", "one value", "constant", "even", "validation above", "two jobs"],
)
def test_without_outliers_all_losses_are_shown(jobs: list[ChartedJob]) -> None:
    assert robust_top(jobs) is None


@example([[0.0] * 9 + [5e-324] * 2])
@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), min_size=1, max_size=4))
def test_at_most_a_tenth_of_each_curve_is_above_the_axis(curves: list[list[float]]) -> None:
    top = robust_top([job_of(*curve) for curve in curves])
    if top is not None:
        assert all(sum(loss > top for loss in curve) <= math.ceil((len(curve) - 1) / 10) for curve in curves)
        assert any(loss > top for curve in curves for loss in curve)


def test_many_validations_are_a_line_without_symbols() -> None:
    def shows_symbols(validations: int) -> bool:
        rows = [{"step": step, "train_loss": 1.0, "full_valid_loss": 1.0} for step in range(validations)]
        series = options([ChartedJob("job", rows)])["series"]
        return bool(next(one for one in series if one["name"] == "Validation loss")["showSymbol"])

    assert shows_symbols(MAX_SYMBOLS)
    assert not shows_symbols(MAX_SYMBOLS + 1)


def test_each_of_the_most_compared_jobs_has_a_line_in_a_colour_of_its_own() -> None:
    jobs = [ChartedJob(str(number), [{"step": 1, "train_loss": 1.0}]) for number in range(MAX_JOBS)]
    lines = {one["name"]: one["lineStyle"][":color"] for one in options(jobs)["series"]}
    assert len(lines) == len(set(lines.values())) == MAX_JOBS
    assert all(THEME.count(f"{name}:") >= 2 for name in COLOURS)  # light and dark
