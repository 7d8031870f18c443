"""Tables and JSON lines that clients send, read in a process of their own with limits of memory, time, cells and
unpacked size: a preview, and the lines of a training file and its held-out file.

calamine reads workbooks and arro3 Parquet: both are small (2 and 33 MB installed, pyarrow 171 MB), and what exceeds the
memory of the process ends only that.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
import zipfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, BinaryIO

from app.domain.datasets.held_out import CannotSplit, RowKeys
from app.domain.datasets.jsonl import (
    OTHER_FORMAT,
    PARQUET,
    SAMPLE_BYTES,
    UTF8_BOM,
    WHITESPACE,
    ZIP,
    Finding,
    delimiter_of,
    read_lines,
)
from app.domain.datasets.preparation import Preparation, PreparedRows
from app.domain.datasets.tables import (
    HEADER_ROWS,
    MAX_CELLS,
    MAX_FIELD_CHARACTERS,
    MAX_ROWS,
    ColumnError,
    Columns,
    RowProblems,
    TableError,
    column_names,
    examples,
    guess_columns,
    json_line,
    looks_like_header,
)
from app.domain.error_text.json_text import counted
from app.system.limited_process import LimitedProcess, ProcessEnded

MAX_UNPACKED_BYTES = 1 << 30  # of all members of a workbook
MAX_PREPARED_BYTES = 2 << 30  # of all lines: a workbook may refer to one long text from every row
MAX_PROBLEMS = 20
PREVIEW_EXAMPLES = 3
CHUNK_BYTES = 1 << 20
MEMORY_BYTES = 2 << 30
TOO_LARGE = (
    f"Reading the file takes more than {MEMORY_BYTES >> 30} GiB of memory. Save the columns that are needed as CSV or "
    "JSONL, or split the file."
)


def read_seconds(size_bytes: int) -> float:
    """How long the process of a file may take."""
    return 60 + size_bytes / 2e6


@dataclass(frozen=True)
class Preview:
    """The columns of a table, and what a preparation of it makes."""

    names: list[str]
    has_header: bool
    preparation: Preparation  # with the guessed columns; without any if none could be guessed
    prepared: PreparedRows | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    @property
    def columns(self) -> Columns | None:
        return self.preparation.columns


def preview_file(
    file: BinaryIO, preparation: Preparation | None, has_header: bool | None, max_line_bytes: int
) -> Preview:
    """A preview, made in a process; without a preparation only the columns are read, and those of messages guessed.

    `has_header` None: as the first rows look. Raises TableError.
    """
    size_bytes = file.seek(0, io.SEEK_END)
    try:
        with LimitedProcess([file], memory_bytes=MEMORY_BYTES) as process:
            check = _deadline(read_seconds(size_bytes))
            found: Preview = process.call(preview, preparation, has_header, max_line_bytes, check=check)
    except ProcessEnded as error:
        raise TableError(TOO_LARGE) from error
    except TimeoutError as error:
        raise TableError(too_slow(size_bytes)) from error
    return found


def preview(preparation: Preparation | None, has_header: bool | None, max_line_bytes: int, file: BinaryIO) -> Preview:
    """As `preview_file`; to be called in a LimitedProcess. Columns that are not given are guessed."""
    columns, names = preparation.columns if preparation else None, []
    if not is_jsonl(file):
        first_rows = list(islice(_rows(file), HEADER_ROWS))
        if columns is not None:
            has_header = columns.has_header
        elif has_header is None:
            has_header = is_parquet(file) or looks_like_header(first_rows)
        names = column_names(first_rows[0] if first_rows else [], has_header)
        columns = columns or guess_columns(names)
    found = Preview(names, bool(has_header), replace(preparation or Preparation(), columns=columns))
    if preparation is None or (names and columns is None):
        return found
    shown: list[dict[str, Any]] = []
    try:
        _, prepared = _read(found.preparation, max_line_bytes, file, shown)
    except (RowProblems, CannotSplit) as error:
        return replace(found, examples=shown, problem=str(error))
    return replace(found, prepared=prepared, examples=shown)


def prepare(
    preparation: Preparation, max_line_bytes: int, file: BinaryIO
) -> Iterator[PreparedRows | tuple[bool, bytes]]:
    """Yield what was made, then (whether they are held out, lines) in pieces; to be called in a LimitedProcess.

    Reads the file twice. Raises TableError, with all problems of its rows, and CannotSplit.
    """
    held_out, prepared = _read(preparation, max_line_bytes, file, [])
    yield prepared
    pieces = bytearray(), bytearray()
    for is_held_out, line in zip(held_out, _lines(preparation.columns, file), strict=True):
        pieces[is_held_out].extend(line)
        if len(pieces[is_held_out]) >= CHUNK_BYTES:
            yield bool(is_held_out), bytes(pieces[is_held_out])
            pieces[is_held_out].clear()
    for is_held_out, piece in enumerate(pieces):
        if piece:
            yield bool(is_held_out), bytes(piece)


def is_jsonl(file: BinaryIO) -> bool:
    """Whether the file begins like JSON lines; any other file is read as a table."""
    file.seek(0)
    return file.read(SAMPLE_BYTES).removeprefix(UTF8_BOM).lstrip()[:1] == b"{"


def is_parquet(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(len(PARQUET)) == PARQUET


def too_slow(size_bytes: int) -> str:
    return f"Reading the file takes longer than {read_seconds(size_bytes):.0f} s. Split it, or send JSONL."


def _deadline(seconds: float) -> Callable[[], None]:
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    return check


def _read(
    preparation: Preparation, max_line_bytes: int, file: BinaryIO, shown: list[dict[str, Any]]
) -> tuple[bytearray, PreparedRows]:
    """Read all rows: whether each is held out, and what was made; the first examples are added to `shown`.

    Raises TableError, with all problems of rows, and CannotSplit.
    """
    keys, sizes_bytes = RowKeys(), array("q")
    problems: list[Finding] = []
    skipped = problem_count = total_bytes = 0
    for row in _examples(preparation.columns, max_line_bytes, file):
        if row is None:
            skipped += 1
        elif isinstance(row, Finding):
            problem_count += 1
            problems += [row] if len(problems) < MAX_PROBLEMS else []
        else:
            example, size_bytes = row
            shown += [example] if len(shown) < PREVIEW_EXAMPLES else []
            keys.add(example)
            sizes_bytes.append(size_bytes)
            total_bytes += size_bytes
        if len(sizes_bytes) + skipped > MAX_ROWS:
            raise TableError(f"The file has more than {MAX_ROWS:,} rows; split it.")
        if total_bytes > MAX_PREPARED_BYTES:
            raise TableError(f"The examples of the file have more than {MAX_PREPARED_BYTES:,} bytes; split it.")
    if problem_count:
        raise RowProblems(_problems_text(problems, problem_count, "Row" if preparation.columns else "Line"))
    if not sizes_bytes:
        raise RowProblems("No row has both an input and an output." if preparation.columns else "The file is empty.")
    held_out = bytearray(len(sizes_bytes))
    if preparation.held_out_percent is not None:
        held_out = keys.held_out(preparation.held_out_percent, preparation.seed)
    longest = max((size for size, is_held_out in zip(sizes_bytes, held_out, strict=True) if is_held_out), default=0)
    counts = len(sizes_bytes), sum(held_out), skipped, longest
    return held_out, PreparedRows(*counts, keys.label_counts(held_out), keys.grader)


def _problems_text(problems: list[Finding], count: int, unit: str) -> str:
    text = " ".join(f"{unit} {each.line:,}: {each.message}." for each in problems)
    more = f" And {count - len(problems):,} more." if count > len(problems) else ""
    return f"The file has {counted(count, 'row')} that cannot be used. {text}{more}"


def _examples(
    columns: Columns | None, max_line_bytes: int, file: BinaryIO
) -> Iterator[tuple[dict[str, Any], int] | Finding | None]:
    """(example, bytes of its line), a problem, or None for a row that is left out."""
    if columns is None:
        file.seek(0)
        for line in read_lines(file, max_line_bytes):
            if isinstance(line, Finding) and line.code == OTHER_FORMAT:
                raise TableError(f"The file is {line.message}.")
            yield line if isinstance(line, Finding) else (line.value, line.size_bytes)
        return
    if is_jsonl(file):
        raise ColumnError("the file has JSON lines, which have no columns; leave this field out")
    for number, row in enumerate(examples(_rows(file), columns), start=1 + columns.has_header):
        if not isinstance(row, dict):
            yield row
        elif (size_bytes := len(json_line(row))) > max_line_bytes:
            yield Finding(number, f"its example has {size_bytes:,} bytes; at most {max_line_bytes:,} are allowed")
        else:
            yield row, size_bytes


def _lines(columns: Columns | None, file: BinaryIO) -> Iterator[bytes]:
    """The lines of the examples: those of JSON lines as they are, without a byte order mark and blank lines."""
    if columns is not None:
        yield from (json_line(row) for row in examples(_rows(file), columns) if isinstance(row, dict))
        return
    file.seek(0)
    for number, line in enumerate(file):
        line = (line.removeprefix(UTF8_BOM) if number == 0 else line).rstrip(b"\r\n")
        if line.strip(WHITESPACE):
            yield line + b"\n"


def _rows(file: BinaryIO) -> Iterator[list[str]]:
    """The rows of a table as texts. Raises TableError."""
    file.seek(0)
    sample = file.read(SAMPLE_BYTES)
    read = _workbook_rows if sample.startswith(ZIP) else _parquet_rows if sample.startswith(PARQUET) else _csv_rows
    cells = 0
    for row in read(file):
        cells += len(row)
        if cells > MAX_CELLS:
            raise TableError(f"The table has more than {MAX_CELLS:,} cells; split it, or leave out columns.")
        yield row


def _csv_rows(file: BinaryIO) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    file.seek(0)
    sample = file.read(SAMPLE_BYTES)
    if b"\0" in sample:
        raise TableError(
            "The file is binary, but neither an Excel workbook (.xlsx) nor Parquet. Save it as CSV (UTF-8)."
        )
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        with open(file.fileno(), encoding="utf-8-sig", newline="", closefd=False) as text:
            yield from csv.reader(text, delimiter=delimiter_of(sample.decode("utf-8", "replace")))
    except UnicodeDecodeError as error:
        raise TableError(
            f"The file is not UTF-8 text ({error.reason} at byte {error.start:,}). Save it as CSV UTF-8."
        ) from None
    except csv.Error as error:
        raise TableError(f"The file is not a valid CSV: {error}.") from None


def _workbook_rows(file: BinaryIO) -> Iterator[list[str]]:
    """The rows of the first visible sheet. A workbook with another unpacked size than it states ends the process."""
    import python_calamine

    file.seek(0)
    try:
        with zipfile.ZipFile(file) as members:
            unpacked_bytes = sum(member.file_size for member in members.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise TableError(f"The workbook cannot be read ({error}). Save it again as .xlsx, or as CSV (UTF-8).") from None
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise TableError(
            f"The workbook unpacks to {unpacked_bytes:,} bytes; at most {MAX_UNPACKED_BYTES:,} are allowed. Save the "
            "sheet as CSV."
        )
    file.seek(0)
    try:
        workbook = python_calamine.load_workbook(file)
        visible = python_calamine.SheetVisibleEnum.Visible
        names = [each.name for each in workbook.sheets_metadata if each.visible == visible]
        sheet = workbook.get_sheet_by_name((names or workbook.sheet_names)[0])
        if sheet.total_height * sheet.total_width > MAX_CELLS:
            raise TableError(f"The sheet has more than {MAX_CELLS:,} cells; save the needed ones as CSV.")
        yield from ([_cell_text(cell) for cell in row] for row in sheet.iter_rows())
    except (python_calamine.CalamineError, IndexError) as error:
        raise TableError(f"The workbook cannot be read ({error}). Save it again as .xlsx, or as CSV (UTF-8).") from None


def _parquet_rows(file: BinaryIO) -> Iterator[list[str]]:
    import arro3.io

    file.seek(0)
    try:
        batches = arro3.io.read_parquet(file)
        yield list(batches.schema.names)
        for batch in batches:
            columns = [column.to_pylist() for column in batch.columns]
            yield from ([_cell_text(cell) for cell in row] for row in zip(*columns, strict=True))
    except (GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library is no Exception; broken files have no class of their own
        reason = error if isinstance(error, Exception) else "it is broken"
        raise TableError(f"The Parquet file cannot be read ({reason}).") from None


def _cell_text(cell: Any) -> str:
    """A cell as people see it: a whole number without a fraction, a date as ISO 8601, no text for nothing."""
    if cell is None or cell != cell:  # NaN, which Parquet files have for nothing
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, dict | list):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)
