"""The metrics of a job: curves as ECharts options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import app.web
from app.domain.methods import METHODS, Method
from app.web.pages.jobs.compare import MAX_JOBS
from app.web.pages.jobs.metrics import (
    COLOURS,
    MAX_SYMBOLS,
    ChartedJob,
    best_validation,
    options,
    x_values,
)

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
