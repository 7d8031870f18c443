"""Results are printed to standard output, as plain text in a pipe; notes and progress bars to standard error.

A table fits a terminal of any width: ids stay complete, other cells are shortened or wrapped, and columns that do not
fit are hidden. If not even the first column without ids fits, each row is printed as several lines, with its id on
the first.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from app.domain.operations.checks import Check

GAP = "  "
PRINT_INTERVAL_SECONDS = 10.0  # where each update is a new line, which a log or an agent keeps
MIN_WIDTH = 12  # a cell shortened further is not readable
MIN_WRAPPED_WIDTH = 24
WRAPPED_COLUMNS = ("message", "reason")  # sentences
ID = re.compile(r"[a-z]{2,}[-_][0-9a-f]{12,}\S*|ft:\S+")
UNBREAKABLE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|[\d.,:/]+( [kMG]?B)?")  # times, numbers, sizes


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def print_json_line(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_line(text: str) -> None:
    """Print a result on one line, such as an id that a script captures."""
    print(text, flush=True)


def print_note(text: str) -> None:
    """Print a message for people to standard error, so that scripts do not read it as a result."""
    stderr_console().print(text, markup=False, highlight=False, soft_wrap=True)


def print_checks(checks: Iterable[Check], print_line: Callable[[str], None] = print_line, as_json: bool = False) -> int:
    """Print each check, with its remedy below. Returns the exit code: 1 if there is a problem, else 0."""
    printed: list[Check] = []
    for check in checks:
        printed.append(check)
        if as_json:
            continue
        print_line(f"{check.level:<8} {check.name:<20} {check.observed}")
        if check.remedy:
            print_line(f"{'':<8} {'':<20} -> {check.remedy}")
    if as_json:
        print_json([asdict(check) for check in printed])
    return int(any(check.level == "problem" for check in printed))


def print_error(text: str) -> None:
    console = stderr_console()
    console.print("Error: ", style="bold red", end="")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def stderr_console() -> Console:
    """A new console for each call, because standard error may have been redirected in between.

    Without emoji, as `:x:` is a part of some names of models.
    """
    return Console(stderr=True, emoji=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print a table, fitted to a terminal; in a pipe no cell is shortened, so that `awk` reads full ids."""
    if not rows:
        print_note(empty)
    elif sys.stdout.isatty():
        console = Console()
        table = fit_table(columns, rows, console.width)
        _print_lines(console, table.lines)
        if table.hidden_titles:
            print_note(f"Hidden columns: {', '.join(table.hidden_titles)}. Use a wider terminal or --json.")
    else:
        _print_plain([[column.upper() for column in columns], *rows])


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    shown = [(name, value) for name, value in fields if value]
    if sys.stdout.isatty():
        console = Console()
        _print_lines(console, fit_fields(shown, console.width))
    else:
        _print_plain([[name, value.replace("\n", " ")] for name, value in shown])


def time_text(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration_text(seconds: float | None) -> str:
    """80 -> 1:20, 3725 -> 1:02:05."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size_text(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def _print_lines(console: Console, lines: Iterable[Text]) -> None:
    """Print without wrapping: the terminal wraps long lines itself, and copies each as one line."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Column(NamedTuple):
    title: str
    min_width: int  # in terminal columns
    full_width: int
    has_ids: bool
    wraps: bool


class Table(NamedTuple):
    lines: list[Text]
    hidden_titles: list[str]  # of the hidden columns that are not empty


def fit_table(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Table:
    """Lay a table out for a terminal of `width` columns."""
    columns = [_measure(title, [row[number] for row in rows]) for number, title in enumerate(titles)]
    shown = _select_columns(columns, width)
    others = [number for number, column in enumerate(columns) if not column.has_ids]
    if _min_table_width(columns, shown) > width or (others and others[0] not in shown):
        return Table([line for row in rows for line in _row_as_lines(columns, row, width)], [])
    widths = _widths([columns[number] for number in shown], width)
    header = [Text(_padded([titles[number] for number in shown], widths), style="bold")]
    body = [line for row in rows for line in _lines([(columns[number], row[number]) for number in shown], widths)]
    hidden = [number for number in range(len(columns)) if number not in shown and any(row[number] for row in rows)]
    return Table(header + body, [titles[number] for number in hidden])


def fit_fields(fields: Sequence[tuple[str, str]], width: int) -> Iterator[Text]:
    """Lay out names and values; a value is below its name if a word of it does not fit beside the name."""
    indent = max(cell_len(name) for name, _ in fields) + len(GAP)
    for name, value in fields:
        longest = max((cell_len(word) for word in value.split()), default=0)
        below = indent + longest > width
        lines = [part for line in value.split("\n") for part in _wrapped(line, width - (len(GAP) if below else indent))]
        if below:
            yield Text(name, style="dim")
            yield from (Text(GAP + line) for line in lines)
        else:
            yield Text.assemble((set_cell_size(name, indent), "dim"), lines[0])
            yield from (Text(" " * indent + line) for line in lines[1:])


def _measure(title: str, cells: Sequence[str]) -> Column:
    ids = [cell_len(word) for cell in cells for word in cell.replace(",", " ").split() if ID.fullmatch(word)]
    wraps = title in WRAPPED_COLUMNS or (bool(ids) and any(" " in cell for cell in cells))
    shortest = MIN_WRAPPED_WIDTH if wraps else MIN_WIDTH
    min_widths = [cell_len(cell) if UNBREAKABLE.fullmatch(cell) else min(cell_len(cell), shortest) for cell in cells]
    # The name of a fine-tuned model is an id in the column "id"; in other columns it may be shortened.
    has_ids = bool(ids) and (title == "id" or not all(cell.startswith("ft:") for cell in cells if cell))
    if has_ids:
        min_widths += ids
    full_width = max(cell_len(text) for text in (title, *cells))
    return Column(title, max(cell_len(title), *min_widths), full_width, has_ids, wraps)


def _select_columns(columns: Sequence[Column], width: int) -> list[int]:
    """The numbers of all columns with ids and, from the left, of each other column that still fits."""
    shown = [number for number, column in enumerate(columns) if column.has_ids]
    for number, column in enumerate(columns):
        if not column.has_ids and _min_table_width(columns, [*shown, number]) <= width:
            shown.append(number)
    return sorted(shown)


def _min_table_width(columns: Sequence[Column], shown: Sequence[int]) -> int:
    return sum(columns[number].min_width for number in shown) + len(GAP) * (len(shown) - 1)


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """Distribute the remaining width evenly among the columns that are narrower than their content."""
    widths = [column.min_width for column in columns]
    room = width - sum(widths) - len(GAP) * (len(columns) - 1)
    while room > 0:
        growing = [n for n, column in enumerate(columns) if widths[n] < column.full_width]
        if not growing:
            break
        for number in growing[:room]:
            widths[number] += 1
            room -= 1
    return widths


def _lines(cells: Sequence[tuple[Column, str]], widths: Sequence[int]) -> Iterator[Text]:
    parts = [
        _wrapped(cell, size) if column.wraps else [shortened(cell, size)]
        for (column, cell), size in zip(cells, widths, strict=True)
    ]
    for number in range(max(len(part) for part in parts)):
        line = _padded([part[number] if number < len(part) else "" for part in parts], widths)
        text = Text(line)
        text.stylize("cyan", 0, len(parts[0][number]) if number < len(parts[0]) else 0)
        yield text


def _row_as_lines(columns: Sequence[Column], row: Sequence[str], width: int) -> Iterator[Text]:
    """The first cell on one line, then the other cells, as many on each line as fit."""
    yield Text(row[0], style="cyan")
    line = ""
    for column, cell in list(zip(columns, row, strict=True))[1:]:
        room = width - len(GAP)
        for part in _wrapped(cell, room) if column.wraps else [cell if ID.search(cell) else shortened(cell, room)]:
            if line and cell_len(line) + len(GAP) + cell_len(part) > width:
                yield Text(line)
                line = ""
            line += GAP + part if part else ""
    if line:
        yield Text(line)


def shortened(text: str, width: int) -> str:
    """Shorten a sentence at its end, and a name in its middle, because names often differ at their ends."""
    if cell_len(text) <= width:
        return text
    if " " in text:
        return set_cell_size(text, width - 1).rstrip() + "…"
    tail = text[-((width - 1) // 2) :] if width > 2 else ""
    while cell_len(tail) > (width - 1) // 2:  # characters of two columns
        tail = tail[1:]
    return set_cell_size(text, width - 1 - cell_len(tail)).rstrip() + "…" + tail


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    return GAP.join(padded).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 1), break_long_words=False, break_on_hyphens=False) or [""]
