"""CSV files that wait for their conversion: in a temporary directory, deleted after an hour or with their session."""

from __future__ import annotations

import asyncio
import csv
import errno
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.domain.datasets.jsonl import delimiter_of, first_repeated
from app.web.api_client import ApiError

MAX_TABLE_BYTES = 2 << 30
MAX_FIELD_CHARACTERS = 4 << 20  # the limit for one example
MAX_ALL_TABLES_BYTES = 4 << 30  # of all sessions
KEEP_SECONDS = 3_600
CLEANUP_SECONDS = 60.0
SAMPLE_BYTES = 64 << 10
EXPIRED = "The upload of this file has expired. Drop the file again."

csv.field_size_limit(MAX_FIELD_CHARACTERS)


class TableError(ApiError):
    """The file cannot be read as a table; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)


@dataclass(frozen=True)
class Columns:
    """Which columns become which messages."""

    user: str
    assistant: str
    system: str | None = None


@dataclass(eq=False)
class CsvTable:
    """A received or partly received CSV file."""

    id: str
    owner: str  # the session
    filename: str
    size_bytes: int
    path: Path = field(repr=False)
    changed_at: float = field(default_factory=time.monotonic)

    @property
    def offset(self) -> int:
        return self.path.stat().st_size

    def append(self, content: bytes) -> None:
        """Raises OSError, such as for a full disk; what was written before remains."""
        with self.path.open("ab") as file:
            file.write(content)
        self.changed_at = time.monotonic()

    def header(self) -> list[str]:
        """The names of the columns. Raises TableError."""
        names = next(self._rows(), None)
        if not names or not any(name.strip() for name in names):
            raise TableError("The file is empty. Its first line must have the names of the columns.")
        while not names[-1].strip():  # spreadsheets write delimiters behind the last column
            names.pop()
        named = [name for name in names if name.strip()]
        if len(named) < 2:
            raise TableError(
                f"The file has one column, {named[0][:80]!r}. At least two are required, separated by a comma, a "
                "semicolon, a tab or a vertical bar."
            )
        if len(set(named)) < len(named):
            twice = first_repeated(named)
            raise TableError(f"Two columns have the name {twice[:80]!r}. Give each column a name of its own.")
        return names

    def examples(self, columns: Columns) -> Iterator[dict[str, Any]]:
        """The rows as chat examples; rows without question or answer are left out. Raises TableError."""
        names = self.header()
        chosen = {"system": columns.system, "user": columns.user, "assistant": columns.assistant}
        places = {role: names.index(column) for role, column in chosen.items() if column}
        for number, row in enumerate(self._rows(), start=1):
            if number == 1 or not row:
                continue
            if not any(row[len(names) :]):
                del row[len(names) :]
            if len(row) != len(names):
                raise TableError(
                    f"Row {number} has {len(row):,} fields, but the header has {len(names):,} columns. A field with "
                    "the delimiter or a line break in it must be in double quotes."
                )
            texts = {role: row[place] for role, place in places.items() if row[place].strip()}
            if {"user", "assistant"} <= texts.keys():
                yield {"messages": [{"role": role, "content": text} for role, text in texts.items()]}

    def _rows(self) -> Iterator[list[str]]:
        try:
            with self.path.open("rb") as file:
                sample = file.read(SAMPLE_BYTES)
            if b"\0" in sample:
                raise TableError("The file is binary. Save the sheet as CSV (UTF-8) and upload that file.")
            with self.path.open(encoding="utf-8-sig", newline="") as text:
                yield from csv.reader(text, delimiter=delimiter_of(sample.decode("utf-8", "replace")))
        except FileNotFoundError:  # converted in another tab, or older than an hour
            raise TableError(EXPIRED) from None
        except UnicodeDecodeError as error:
            raise TableError(
                f"The file is not UTF-8 text ({error.reason} at byte {error.start:,}). Save it as CSV UTF-8."
            ) from None
        except csv.Error as error:
            raise TableError(f"The file is not a valid CSV: {error}.") from None


class TableStore:
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="tunery-web-")
        self._tables: dict[str, CsvTable] = {}

    def create(self, owner: str, filename: str, size_bytes: int) -> CsvTable:
        """Raises TableError, OSError."""
        total = size_bytes + sum(table.size_bytes for table in self._tables.values() if table.owner == owner)
        if total > MAX_TABLE_BYTES:
            raise TableError(
                f"Your CSV files that wait for their conversion may have at most {MAX_TABLE_BYTES:,} bytes together; "
                f"with this one they have {total:,}. Convert or cancel the others, split this one, or convert it to "
                "JSONL yourself: JSONL files may be larger."
            )
        self._require_space(size_bytes)
        table_id = f"table-{secrets.token_hex(12)}"
        table = CsvTable(table_id, owner, filename, size_bytes, Path(self._directory.name) / table_id)
        table.path.touch()
        self._tables[table_id] = table
        return table

    def get(self, owner: str, table_id: str) -> CsvTable:
        """Raises TableError if the owner has no such table."""
        table = self._tables.get(table_id)
        if table is None or table.owner != owner:
            raise TableError(EXPIRED)
        return table

    def discard(self, table: CsvTable) -> None:
        self._tables.pop(table.id, None)
        table.path.unlink(missing_ok=True)

    def discard_of(self, owner: str) -> None:
        """Delete the tables of a session that has ended."""
        for table in [one for one in self._tables.values() if one.owner == owner]:
            self.discard(table)

    async def forget_old(self) -> None:
        """Delete what was not changed for an hour, until cancelled."""
        while True:
            await asyncio.sleep(CLEANUP_SECONDS)
            for table in list(self._tables.values()):
                if time.monotonic() - table.changed_at > KEEP_SECONDS:
                    self.discard(table)

    def close(self) -> None:
        self._directory.cleanup()

    def _require_space(self, size_bytes: int) -> None:
        """Raises OSError as a full disk does. What other tables are about to receive is not free."""
        stored = sum(table.size_bytes for table in self._tables.values())
        awaited = stored - sum(table.offset for table in self._tables.values())
        free = min(shutil.disk_usage(self._directory.name).free - awaited, MAX_ALL_TABLES_BYTES - stored)
        if size_bytes > free:
            raise OSError(errno.ENOSPC, f"{size_bytes:,} bytes are needed, {max(free, 0):,} are free")


def json_line(example: dict[str, Any]) -> bytes:
    return json.dumps(example, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
