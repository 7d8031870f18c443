"""The table of all screens: one semantic table, whose rows become cards on narrow screens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments

Row = dict[str, Any]


def column(key: str, label: str, kind: str = "text", sortable: bool = False, lead: bool = False) -> Row:
    """`kind` is text, number, or wide (a whole row on narrow screens); `lead` marks the column that names the row."""
    return {"key": key, "label": label, "kind": kind, "sortable": sortable, "lead": lead}


class DataTable(Element, component="data_table.js"):
    """Rows have `id`, `label` (their name for screen readers) and a cell per column; see data_table.js."""

    def __init__(self, caption: str, columns: Sequence[Row], rows: Sequence[Row] = ()) -> None:
        super().__init__()
        self._props["caption"] = caption
        self._props["columns"] = list(columns)
        self._props["rows"] = list(rows)

    def set_rows(self, rows: Sequence[Row]) -> None:
        if list(rows) != self._props["rows"]:
            self._props["rows"] = list(rows)
            self.update()

    def set_sort(self, sort: str) -> None:
        self._props["sort"] = sort
        self.update()

    def set_selected(self, row_ids: Sequence[str]) -> None:
        self._props["selectable"] = True
        self._props["selected"] = list(row_ids)
        self.update()

    def deselect(self, row_id: str) -> None:
        """Take back a selection that was refused: the browser shows it, and no property has changed."""
        self.run_method("deselect", row_id)

    def on_sort(self, handler: Callable[[str], Any]) -> None:
        """`handler` gets the key of the column whose header was pressed."""
        self.on("sort", lambda event: handler(_arguments(event)[0]))

    def on_select(self, handler: Callable[[str, bool], Any]) -> None:
        self.on("select", lambda event: handler(*_arguments(event)))

    def on_press(self, handler: Callable[[str, str], Any]) -> None:
        """`handler` gets the id of the row and the name of the button."""
        self.on("press", lambda event: handler(*_arguments(event)))


def _arguments(event: GenericEventArguments) -> list[Any]:
    return list(event.args) if isinstance(event.args, list) else [event.args]


def sparkline(values: Sequence[float], title: str) -> Row:
    """A cell with the curve of `values` in a box of 100 by 24."""
    if len(values) < 2:
        return {"text": "–"}
    lowest, highest = min(values), max(values)
    span = (highest - lowest) or 1.0
    points = (
        f"{100 * index / (len(values) - 1):.1f},{22 - 20 * (value - lowest) / span:.1f}"
        for index, value in enumerate(values)
    )
    return {"points": " ".join(points), "title": title}
