"""The lengths of the rows in tokens, with the context length drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from app.web.components.elements import chart

HEIGHT_PX = 220

Json = dict[str, Any]


def length_histogram(buckets: Sequence[Json], context_length: int) -> ui.echart:
    longest = max((bucket["most"] for bucket in buckets), default=0)
    label = f"Histogram of lengths up to {longest:,} tokens; context length {context_length:,} tokens"
    return chart(options(buckets, context_length), label).style(f"height: {HEIGHT_PX}px")


def options(buckets: Sequence[Json], context_length: int) -> Json:
    """Bars of buckets that exceed the context length have the colour of a warning."""
    labels = [_label(bucket) for bucket in buckets]
    limit = _place(buckets, context_length)
    colour = {":color": "cssColor('--muted')", "fontSize": 11}
    bars = [
        {
            "value": bucket["rows"],
            "itemStyle": {":color": f"cssColor('{'--warn' if bucket['least'] > context_length else '--train'}')"},
        }
        for bucket in buckets
    ]
    align = "right" if limit is not None and limit > len(buckets) / 2 else "left"  # towards the middle of the chart
    line = {
        "symbol": "none",
        "data": [] if limit is None else [{"xAxis": limit}],
        "label": {"formatter": f"context length {context_length:,}", "align": align, **colour},
        "lineStyle": {":color": "cssColor('--bad')"},
    }
    return {
        "animation": False,
        "grid": {"left": 56, "right": 16, "top": 28, "bottom": 44},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": [
            {"type": "category", "data": labels, "name": "Tokens", "nameLocation": "middle", "nameGap": 26,
             "nameTextStyle": colour, "axisLabel": colour},
            {"type": "value", "min": 0, "max": max(len(buckets), 1), "show": False},  # the place of the line
        ],
        "yAxis": {"type": "value", "name": "Rows", "nameTextStyle": colour, "axisLabel": colour,
                  "splitLine": {"lineStyle": {":color": "cssColor('--border')"}}},
        "series": [
            {"type": "bar", "name": "Rows", "data": bars, "barCategoryGap": "8%"},
            {"type": "line", "name": "", "data": [], "xAxisIndex": 1, "markLine": line},
        ],
    }  # fmt: skip


def _place(buckets: Sequence[Json], context_length: int) -> float | None:
    """Where the context length is, in buckets from the left; None beyond the last one."""
    for number, bucket in enumerate(buckets):
        if context_length <= bucket["most"]:
            width = bucket["most"] - bucket["least"] + 1
            return float(number + max(0, context_length - bucket["least"] + 1) / width)
    return None


def _label(bucket: Json) -> str:
    return str(bucket["least"]) if bucket["least"] == bucket["most"] else f"{bucket['least']}–{bucket['most']}"
