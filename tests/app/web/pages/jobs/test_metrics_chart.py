"""Curves as ECharts options."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.web.pages.jobs.metrics import (
    MAX_SYMBOLS,
    ChartedJob,
    Look,
    best_validation,
    options,
    smoothed,
    x_values,
)

ROWS = [
    {"step": 1, "train_loss": 2.0, "num_tokens": 100, "tokens_per_second": 50.0, "grad_norm": 1.0},
    {"step": 2, "train_loss": None, "num_tokens": 300, "tokens_per_second": 100.0, "full_valid_loss": 1.8},
    {"step": 3, "train_loss": 1.0, "num_tokens": 400, "tokens_per_second": 100.0, "full_valid_loss": 1.9},
]
Json = dict[str, Any]
finite = st.floats(-1e6, 1e6)


def points_of(series: Json) -> Any:
    """The points of a series, which are an expression in JavaScript."""
    return json.loads(series[":data"].removeprefix("Object.freeze(JSON.parse('").removesuffix("'))"))


def test_losses_share_their_axes_and_the_best_validation_is_marked() -> None:
    series = options([ChartedJob("job", ROWS)], Look())["series"]
    train, valid = (next(one for one in series if one["name"] == name) for name in ("Train loss", "Validation loss"))
    assert train["yAxisIndex"] == valid["yAxisIndex"] == 0
    assert points_of(train) == [[1.0, 2.0], [2.0, None], [3.0, 1.0]]
    assert valid["markPoint"]["data"][0]["coord"] == [2.0, 1.8]


def test_only_measured_metrics_have_a_grid() -> None:
    made = options([ChartedJob("job", ROWS)], Look())
    assert [title["text"] for title in made["title"]] == ["Loss", "Gradient norm", "Tokens/s"]


def test_the_axis_is_steps_tokens_or_training_time() -> None:
    assert x_values(ROWS, "step") == [1.0, 2.0, 3.0]
    assert x_values(ROWS, "tokens") == [100.0, 300.0, 400.0]
    assert x_values(ROWS, "time") == [2.0, 4.0, 5.0]


def test_the_best_validation_is_the_lowest() -> None:
    assert best_validation(ROWS) == ROWS[1]
    assert best_validation(ROWS[:1]) is None


@given(st.lists(st.one_of(st.none(), finite)), st.floats(0.1, 0.95))
def test_smoothing_keeps_gaps_and_stays_within_the_values(values: list[float | None], weight: float) -> None:
    found = smoothed(values, weight)
    assert [one is None for one in found] == [one is None for one in values]
    present = [one for one in values if one is not None]
    assert all(min(present) - 1e-3 <= one <= max(present) + 1e-3 for one in found if one is not None)


def test_many_validations_are_a_line_without_symbols() -> None:
    def shows_symbols(validations: int) -> bool:
        rows = [{"step": step, "train_loss": 1.0, "full_valid_loss": 1.0} for step in range(validations)]
        series = options([ChartedJob("job", rows)], Look())["series"]
        return bool(next(one for one in series if one["name"] == "Validation loss")["showSymbol"])

    assert shows_symbols(MAX_SYMBOLS)
    assert not shows_symbols(MAX_SYMBOLS + 1)
