"""The chart of all screens; its colours follow the mode."""

from __future__ import annotations

from typing import Any

from nicegui import ui


def chart(options: dict[str, Any], label: str) -> ui.echart:
    element = ui.echart(options).classes("t-chart")
    element.props["role"] = "img"
    element.props["aria-label"] = label
    # The browser evaluates colours once, and has only their values afterwards: the options are sent again.
    element.on("themechange", lambda: element.update(), args=[])
    return element
