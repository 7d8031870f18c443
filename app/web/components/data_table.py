"""The table of all screens: one semantic table, whose rows become cards on narrow screens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from nicegui.element import Element

from app.domain.error_text.json_text import counted
from app.web.api_client import ApiClient, ApiError
from app.web.components.elements import box, error_note, link, tag
from app.web.formatting import age, clean, moment

PAGE_OBJECTS = 100
MAX_CELL_CHARACTERS = 2_000

Cell = dict[str, Any]  # see data_table.js
Show = Callable[[Any], Any]  # the cell of a value: a text or a Cell


def brief(value: str | list[str] | None) -> str:
    """A text; of a list, its items."""
    return (", ".join(value) if isinstance(value, list) else value) or "–"


def ago(unix_seconds: float | None) -> Cell:
    """The time since then, with the moment as its title."""
    return {"text": age(unix_seconds), "title": moment(unix_seconds)}


def state(tones: Mapping[str, str], other: str = "wait") -> Show:
    """Show a state as a pill, in its tone or in the tone `other`."""
    return lambda name: {"text": name, "tone": tones.get(name, other)}


class TableColumn(NamedTuple):
    """What a column shows of an object: the value at a dotted path, or with the path "" the object itself.

    `sub` is the path of a text below it; `sort` is the key of a column that can be sorted.
    """

    kind: str  # text, number, or wide (a whole row on narrow screens)
    is_lead: bool  # it names the row
    label: str
    path: str
    show: Show = brief
    sub: str = ""
    sort: str = ""

    def cell(self, one: Any) -> Any:
        shown = self.show(_value(one, self.path))
        if self.sub:
            shown = {"text": shown, "sub": _value(one, self.sub)}
        return {name: _visible(text) for name, text in shown.items()} if isinstance(shown, dict) else _visible(shown)


lead_column = partial(TableColumn, "text", True)
text_column = partial(TableColumn, "text", False)
number_column = partial(TableColumn, "number", False)
wide_column = partial(TableColumn, "wide", False)


def _visible(text: Any) -> Any:
    return clean(text, MAX_CELL_CHARACTERS) if isinstance(text, str) else text


def _value(one: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        one = (one or {}).get(name)
    return one


CREATED = number_column("Created", "created_at", ago)


class DataTable(Element, component="data_table.js"):
    """Objects as rows with the id at `key`. Screen readers name a row by its leading cell, or by `label`."""

    def __init__(
        self,
        caption: str,
        columns: Sequence[TableColumn],
        objects: Iterable[Any] = (),
        key: str = "id",
        label: Callable[[Any], str] | None = None,
    ) -> None:
        super().__init__()
        self._columns = {column.sort or str(number): column for number, column in enumerate(columns)}
        self._key, self._label = key, label
        self._props["caption"] = clean(caption)
        self._props["columns"] = [
            {"key": name, "label": one.label, "kind": one.kind, "sortable": bool(one.sort), "lead": one.is_lead}
            for name, one in self._columns.items()
        ]
        self._props["rows"] = [self._row(one) for one in objects]

    def show(self, objects: Iterable[Any]) -> None:
        rows = [self._row(one) for one in objects]
        if rows != self._props["rows"]:
            self._props["rows"] = rows
            self.update()

    def _row(self, one: Any) -> Cell:
        row = {name: column.cell(one) for name, column in self._columns.items()}
        (lead,) = (row[name] for name, column in self._columns.items() if column.is_lead)
        label = self._label(one) if self._label else lead["text"] if isinstance(lead, dict) else lead
        return row | {"id": str(one[self._key]), "label": label}

    def show_state(self, sort: str, selected: Sequence[str]) -> None:
        """Show the order of the rows, and which ones are selected."""
        self._props.update(sort=sort, selectable=True, selected=list(selected))
        self.update()

    def deselect(self, row_id: str) -> None:
        """Take back a selection that was refused: the browser shows it, and no property has changed."""
        self.run_method("deselect", row_id)

    def on_event(self, name: str, handler: Callable[..., Any]) -> None:
        """Call the handler for `sort` with the key of a column, after a minus if it descends; for `select` with the id
        of a row and whether it is selected; for `press` with the id of a row and the name of a button.
        """
        self.on(name, lambda event: handler(*(event.args if isinstance(event.args, list) else [event.args])))


def sparkline(values: Sequence[float], title: str) -> Cell:
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


def titled_table(title: str, columns: Sequence[TableColumn], objects: Iterable[Any] = (), key: str = "id") -> DataTable:
    """A table below its title."""
    tag("h2", title)
    return DataTable(title, columns, objects, key)


async def show_section(
    title: str,
    request: Awaitable[Sequence[Any]],
    columns: Sequence[TableColumn] | None,
    show_nothing: Callable[[], object] | None = None,
) -> Sequence[Any]:
    """Show a title, and below it a table of the objects of a list, what `show_nothing` adds in place of none, or why
    the request is refused. Returns the objects; without `columns` the caller shows them.
    """
    tag("h2", title)
    try:
        objects = await request
    except ApiError as error:
        error_note(error, f"{title} cannot be shown")
        return []
    if show_nothing and not objects:
        show_nothing()
    elif columns:
        DataTable(title, columns, objects)
    return objects


async def show_page(
    api: ApiClient,
    path: str,
    after: str,
    title: str,
    columns: Sequence[TableColumn],
    noun: str,
    listed: str,
    merge: Callable[[list[Any]], Sequence[Any]] = list,
    **params: Any,
) -> bool:
    """Show the objects of the API's list `listed` that follow the id `after`, on the page `path` of the dashboard,
    merged by `merge`. Returns whether there are any.
    """
    page = await api.get(listed, limit=PAGE_OBJECTS, after=after or None, **params)
    if not page["data"]:
        return False
    shown = merge(page["data"])
    DataTable(title, columns, shown)
    with box("t-row"):
        tag("span", f"{counted(len(shown), noun)} shown", "t-muted")
        if page["has_more"]:
            link("Next page", f"{path}?after={page['data'][-1]['id']}", "t-button")
        if after:
            link("First page", path, "t-button")
    return True
