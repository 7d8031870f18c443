"""Dropped tables that wait for their upload: in a temporary directory, deleted after an hour or with their session."""

from __future__ import annotations

import asyncio
import errno
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from app.settings import MAX_FILE_BYTES
from app.web.api_client import ApiError

MAX_SESSION_BYTES = 2 << 30
MAX_ALL_TABLES_BYTES = 4 << 30  # of all sessions
MAX_SHOWN_CHARACTERS = 80  # of a name
KEEP_SECONDS = 3_600
CLEANUP_SECONDS = 60.0
EXPIRED = "The upload of this file has expired. Drop the file again."


class DroppedTableError(ApiError):
    """The file is refused; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)


@dataclass(eq=False)
class DroppedTable:
    """A received or partly received file."""

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


class TableStore:
    def __init__(self, max_table_bytes: int = MAX_FILE_BYTES) -> None:
        """A table is uploaded by one request, of which `max_table_bytes` is the API's limit."""
        self._max_table_bytes = max_table_bytes
        self._directory = tempfile.TemporaryDirectory(prefix="tunery-web-")
        self._tables: dict[str, DroppedTable] = {}

    def create(self, owner: str, filename: str, size_bytes: int) -> DroppedTable:
        """Raises DroppedTableError, OSError."""
        if size_bytes > self._max_table_bytes:
            raise DroppedTableError(
                f"{filename[:MAX_SHOWN_CHARACTERS]} has {size_bytes:,} bytes, and a table may have at most "
                f"{self._max_table_bytes:,}. Split it, or convert it to JSONL yourself: JSONL files may be larger."
            )
        total = size_bytes + sum(table.size_bytes for table in self._tables.values() if table.owner == owner)
        if total > MAX_SESSION_BYTES:
            raise DroppedTableError(
                f"Your tables that wait for their upload may have at most {MAX_SESSION_BYTES:,} bytes together; with "
                f"this one they have {total:,}. Upload or cancel the others first."
            )
        self._require_space(size_bytes)
        table_id = f"table-{secrets.token_hex(12)}"
        table = DroppedTable(table_id, owner, filename, size_bytes, Path(self._directory.name) / table_id)
        table.path.touch()
        self._tables[table_id] = table
        return table

    def get(self, owner: str, table_id: str) -> DroppedTable:
        """Raises DroppedTableError if the owner has no such table."""
        table = self._tables.get(table_id)
        if table is None or table.owner != owner:
            raise DroppedTableError(EXPIRED)
        return table

    def discard(self, table: DroppedTable) -> None:
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
