"""What a command returns: the value that `--json` prints, and what people see instead.

    return line(job, job["id"])                                         one line, for scripts
    return table(rows, {"id": "id", "size": ("bytes", size_text)}, "No files.")
    return fields(job, {"id": "id", "status": status_text})             one object, a line for each field

Columns are data: {title: the key of the API's object; or the key and the function that writes its value; or a function
of the object}. A value that is null or absent is an empty cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.cli.output.console import print_fields, print_json, print_line, print_note, print_table

Json = dict[str, Any]
Column = str | tuple[str, Callable[[Any], str]] | Callable[[Any], str]
Columns = Mapping[str, Column]


@dataclass(frozen=True)
class Result:
    value: Any
    show: Callable[[], None]
    error: Exception | None = None  # raised after the value was printed

    def print(self, as_json: bool) -> None:
        if as_json:
            print_json(self.value)
        else:
            self.show()
        if self.error is not None:
            raise self.error


def line(value: Any, text: str, note: str = "") -> Result:
    """One line on standard output, and a note on standard error."""

    def show() -> None:
        print_line(text)
        if note:
            print_note(note)

    return Result(value, show)


def table(rows: Iterable[Json], columns: Columns, empty: str, note: str = "") -> Result:
    """The rows with a cell for each column; `empty` is the note without any row."""
    found = list(rows)

    def show() -> None:
        print_rows(found, columns, empty)
        if note:
            print_note(note)

    return Result(found, show)


def fields(value: Json, columns: Columns) -> Result:
    """One object, without its empty fields."""
    return Result(value, lambda: print_fields([(title, _cell(value, column)) for title, column in columns.items()]))


def print_rows(rows: Iterable[Json], columns: Columns, empty: str = "") -> None:
    print_table(list(columns), [[_cell(row, column) for column in columns.values()] for row in rows], empty)


def _cell(row: Json, column: Column) -> str:
    if callable(column):
        return column(row)
    key, text = column if isinstance(column, tuple) else (column, str)
    value = row.get(key)
    return "" if value is None else text(value)
