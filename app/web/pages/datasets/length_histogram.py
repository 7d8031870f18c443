"""The lengths of the rows in tokens, with the context length drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui

HEIGHT_PX = 220

Json = dict[str, Any]


def length_histogram(buckets: Sequence[Json], context_length: int) -> ui.echart:
    chart = ui.echart(options(buckets, context_length)).style(f"height: {HEIGHT_PX}px").classes("t-chart")
    chart.props["role"] = "img"
    longest = max((bucket["most"] for bucket in buckets), default=0)
    chart.props["aria-label"] = (
        f"Histogram of lengths up to {longest:,} tokens; context length {context_length:,} tokens"
    )
    return chart


def options(buckets: Sequence[Json], context_length: int) -> Json:
    """Bars of buckets that exceed the context length have the colour of a warning."""
    labels = [_label(bucket) for bucket in buckets]
    limit = next((label for label, b in zip(labels, buckets, strict=True) if b["most"] >= context_length), None)
    colour = {":color": "cssColor('--muted')", "fontSize": 11}
    bars = [
        {
            "value": bucket["rows"],
            "itemStyle": {":color": f"cssColor('{'--warn' if bucket['least'] > context_length else '--train'}')"},
        }
        for bucket in buckets
    ]
    line = {
        "symbol": "none",
        "data": [{"xAxis": limit}] if limit else [],
        "label": {"formatter": f"context length {context_length:,}", **colour},
        "lineStyle": {":color": "cssColor('--bad')"},
    }
    return {
        "animation": False,
        "grid": {"left": 56, "right": 16, "top": 28, "bottom": 44},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "category", "data": labels, "name": "Tokens", "nameLocation": "middle", "nameGap": 26,
                  "nameTextStyle": colour, "axisLabel": colour},
        "yAxis": {"type": "value", "name": "Rows", "nameTextStyle": colour, "axisLabel": colour,
                  "splitLine": {"lineStyle": {":color": "cssColor('--border')"}}},
        "series": [{"type": "bar", "name": "Rows", "data": bars, "barCategoryGap": "8%", "markLine": line}],
    }  # fmt: skip


def _label(bucket: Json) -> str:
    return str(bucket["least"]) if bucket["least"] == bucket["most"] else f"{bucket['least']}–{bucket['most']}"
