"""Rows of a table (CSV, TSV, Excel, Parquet) as chat examples: the user's message from one column, the answer from
another. All problems of a table are found in one reading.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from app.domain.datasets.jsonl import Finding, LineError, check_text, first_repeated
from app.domain.error_text.json_text import as_json, counted, quoted

MAX_ROWS = 5_000_000  # of a table or of JSON lines: the split takes some 200 bytes of memory for each
MAX_CELLS = 100_000_000
MAX_FIELD_CHARACTERS = 4 << 20  # the limit for one example
MAX_NAMED_COLUMNS = 20
HEADER_ROWS = 1_000  # looked at to tell whether the first row is a header
MAX_NAME_CHARACTERS = 64
NUMBER = re.compile(r"[-+]?[\d.,]*\d%?")
POSITION = re.compile(r"#([1-9]\d{0,5})")
ENCODER = json.JSONEncoder(ensure_ascii=False)  # json.dumps would build one for every row
INPUT_NAMES = ("user", "prompt", "question", "input", "text", "instruction", "message")
OUTPUT_NAMES = ("assistant", "completion", "answer", "output", "label", "category", "response", "target")
USUAL_NAMES = {*INPUT_NAMES, *OUTPUT_NAMES}


class TableError(ValueError):
    """The file cannot be used as a table; the message says why and what to do."""


class ColumnError(TableError):
    """The named columns do not fit the file."""


class RowProblems(TableError):
    """Problems of single rows."""


@dataclass(frozen=True)
class Columns:
    """The columns that become messages: names of the header, or #1, #2, ... in a table without one."""

    input: str
    output: str
    system: str | None = None

    @classmethod
    def parse(cls, text: str) -> Columns:
        """Read `input,output` or `input,output,system`; a name with a comma in double quotes. Raises TableError."""
        try:
            names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
        except csv.Error:  # such as for a line break that is not in quotes
            names = []
        if not 2 <= len(names) <= 3 or not all(names):
            seen = as_json(text, 100)
            raise TableError(f"{seen} are not two or three names: input, output and optionally system prompt")
        if len(set(names)) < len(names):
            raise TableError(f"the column {quoted(first_repeated(names))} is named twice; name different columns")
        if len({POSITION.fullmatch(name) is None for name in names}) > 1:
            raise TableError("give either names, or #1, #2, ... for a table without a header, not both")
        return cls(*names)

    @property
    def has_header(self) -> bool:
        return POSITION.fullmatch(self.input) is None

    def __str__(self) -> str:
        text = io.StringIO(newline="")
        csv.writer(text).writerow(filter(None, (self.input, self.output, self.system)))
        return text.getvalue().removesuffix("\r\n")


def looks_like_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row has names: usual ones, or short and different ones, no numbers and none that its column
    has again.
    """
    if not rows:
        return True
    names = [name.strip() for name in rows[0] if name.strip()]
    if len({name.lower() for name in names} & USUAL_NAMES) >= 2:
        return True
    if any(len(name) > MAX_NAME_CHARACTERS or NUMBER.fullmatch(name) for name in names):
        return False
    repeats = any(
        cell.strip() and cell.strip() == name.strip()
        for row in rows[1:]
        for name, cell in zip(rows[0], row, strict=False)
    )
    return len(set(names)) == len(names) and not repeats


def column_names(first_row: Sequence[str], has_header: bool) -> list[str]:
    """The names of the columns; #1, #2, ... without a header. Raises TableError."""
    names = [name.strip() for name in first_row]
    named = [name for name in names if name]
    if not named:
        raise TableError("The table is empty. Its first row must have the names of the columns, or the first example.")
    while not names[-1]:  # spreadsheets write delimiters behind the last column
        names.pop()
    if len(names if not has_header else named) < 2:
        raise TableError(
            f"The table has one column, {named[0][:80]!r}. At least two are required, in a CSV separated by a comma, "
            "a semicolon, a tab or a vertical bar."
        )
    if not has_header:
        return [f"#{number}" for number in range(1, len(names) + 1)]
    if len(set(named)) < len(named):
        twice = first_repeated(named)
        raise TableError(f"Two columns have the name {twice[:80]!r}. Give each column a name of its own.")
    return names


def guess_columns(names: Sequence[str]) -> Columns | None:
    """The columns of input and output: those with usual names, or the two of a table that has no more."""
    first, last = (names[0], names[-1]) if len(names) == 2 else ("", "")
    guessed = Columns(_guess(names, INPUT_NAMES, first), _guess(names, OUTPUT_NAMES, last))
    is_usable = guessed.input and guessed.output and guessed.input != guessed.output
    return guessed if is_usable else None


def examples(rows: Iterable[Sequence[str]], columns: Columns) -> Iterator[dict[str, Any] | Finding | None]:
    """Each row as a chat example, None for a row without input or output, which is left out, or its problem.

    Rows are counted from 1, with the header. Raises TableError.
    """
    numbered = enumerate(rows, start=1)
    first = next(numbered, (1, []))
    names = column_names(first[1], columns.has_header)
    chosen = {"system": columns.system, "user": columns.input, "assistant": columns.output}
    if missing := [name for name in chosen.values() if name is not None and name not in names]:
        seen = ", ".join(quoted(name, 40) for name in names[:MAX_NAMED_COLUMNS] if name)
        more = f" and {len(names) - MAX_NAMED_COLUMNS:,} more" if len(names) > MAX_NAMED_COLUMNS else ""
        raise ColumnError(f"there is no {' and no '.join(map(quoted, missing))}; the columns are {seen}{more}")
    places = {role: names.index(column) for role, column in chosen.items() if column}
    for number, row in numbered if columns.has_header else chain([first], numbered):
        if any(row[len(names) :]) or (len(row) < len(names) and any(row)):
            yield Finding(
                number,
                f"it has {counted(len(row), 'field')}, but the first row has {len(names):,}; a field with the "
                "delimiter or a line break in it must be in double quotes",
            )
            continue
        texts = {role: row[place] for role, place in places.items() if place < len(row) and row[place].strip()}
        if not {"user", "assistant"} <= texts.keys():
            yield None
            continue
        try:
            for text in texts.values():
                check_text(text)
        except LineError as error:
            yield Finding(number, str(error))
            continue
        yield {"messages": [{"role": role, "content": text} for role, text in texts.items()]}


def json_line(example: dict[str, Any]) -> bytes:
    return ENCODER.encode(example).encode() + b"\n"


def _guess(names: Sequence[str], likely: tuple[str, ...], default: str) -> str:
    return next((name for one in likely for name in names if name.lower() == one), default)
