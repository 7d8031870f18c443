"""Results are printed to standard output, as plain text in a pipe; notes and progress bars to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from app.cli.output.tables import fit_fields, fit_table


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
