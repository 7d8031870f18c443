"""The histogram of lengths as ECharts options."""

from __future__ import annotations

import pytest

from app.web.pages.dataset_report import histogram_options

BUCKETS = [
    {"least": 65, "most": 128, "rows": 5},
    {"least": 129, "most": 256, "rows": 144},
    {"least": 257, "most": 512, "rows": 91},
]


@pytest.mark.parametrize(("context_length", "place"), [(128, 1.0), (192, 1.5), (512, 3.0), (64, 0.0)])
def test_the_context_length_is_drawn_in_its_place_within_a_bar(context_length: int, place: float) -> None:
    line = histogram_options(BUCKETS, context_length)["series"][1]["markLine"]
    assert line["data"] == [{"xAxis": place}]
    assert f"context length {context_length}" in line["label"]["formatter"]


def test_a_context_length_beyond_the_longest_row_is_not_drawn() -> None:
    assert histogram_options(BUCKETS, 2_048)["series"][1]["markLine"]["data"] == []


def test_bars_beyond_the_context_length_have_the_colour_of_a_warning() -> None:
    bars = histogram_options(BUCKETS, 256)["series"][0]["data"]
    assert ["warn" in bar["itemStyle"][":color"] for bar in bars] == [False, False, True]
