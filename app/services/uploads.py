"""A file on its way in: bytes go to disk while they are counted and hashed; it becomes a file whole, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.ids import new_id
from app.db.tables import File
from app.domain.dataset import MAX_FINDINGS
from app.domain.jsonl import Finding, read_lines
from app.errors import InvalidDataset, TooLarge
from app.storage import Storage

PREFIX = "upload-"
FORGOTTEN_AFTER_SECONDS = 24 * 3600  # a staged file of that age belongs to a process that was killed


@dataclass(frozen=True)
class NewFile:
    purpose: str
    filename: str
    expires_after: timedelta | None = None


class StagedFile:
    """Written by one thread at a time, taken over by the storage or discarded."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._descriptor, path = tempfile.mkstemp(dir=directory, prefix=PREFIX)
        self._hash = hashlib.sha256()
        self._max_bytes = max_bytes
        self._is_open = True
        self.path = Path(path)
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Raises TooLarge as soon as the limit is passed, OSError (ENOSPC) when the disk is full."""
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)

    def discard(self) -> None:
        """Nothing is left; after the storage took the file over, nothing is there to discard."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def accept(
    sessions: Sessions,
    storage: Storage,
    project_id: str,
    new: NewFile,
    staged: StagedFile,
    max_line_bytes: int,
    begin: Callable[[Session], None] = lambda _session: None,
    end: Callable[[Session, File], None] = lambda _session, _file: None,
) -> File:
    """Check, store, and only then let a row tell of it. Raises InvalidDataset with up to ten findings.

    `begin` and `end` belong to the transaction of that row; what `begin` raises comes through, and nothing was stored.
    """
    staged.close()
    line_count = _count_lines(staged.path, max_line_bytes) if new.purpose == "fine-tune" else None
    file_id = new_id("file")
    key = f"files/{file_id}"
    storage.put(key, staged.path)
    inserted = False
    try:
        with transaction(sessions) as session:
            begin(session)
            file = _insert(session, project_id, file_id, key, new, staged, line_count)
            end(session, file)
            inserted = True
    except BaseException:
        # A commit whose answer was lost may have happened: then the bytes must stay. Without a row nobody sees them.
        if not inserted:
            storage.delete(key)
        raise
    return file


def too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The file is larger than {max_bytes:,} bytes, the limit for one file; nothing was stored.", "file")


def sweep_staging(storage: Storage) -> None:
    """Remove what a killed process left; a file of that age is nobody's any more."""
    for path in storage.staging.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > FORGOTTEN_AFTER_SECONDS:
                path.unlink()


def _insert(
    session: Session, project_id: str, file_id: str, key: str, new: NewFile, staged: StagedFile, line_count: int | None
) -> File:
    size_bytes, sha256 = staged.size_bytes, staged.sha256
    file = files.insert(
        session, project_id, new.purpose, new.filename, size_bytes, sha256, key, file_id=file_id, line_count=line_count
    )
    if new.expires_after is not None:  # reckoned from the row's own moment: exactly so many seconds after `created_at`
        file.expires_at = file.created_at + new.expires_after
        session.flush()
    return file


def _count_lines(path: Path, max_line_bytes: int) -> int:
    """The number of examples in a JSONL file. Raises InvalidDataset."""
    findings: list[Finding] = []
    count = 0
    with path.open("rb") as file:
        for line in read_lines(file, max_line_bytes):
            if isinstance(line, Finding):
                findings.append(line)
            count += 1
            if len(findings) == MAX_FINDINGS:
                break
    if findings:
        raise _not_jsonl(". ".join(str(finding) for finding in findings))
    if count == 0:
        raise _not_jsonl("The file is empty")
    return count


def _not_jsonl(reason: str) -> InvalidDataset:
    text = f"Expected file to have JSONL format, where every line is a valid JSON dictionary. {reason}."
    return InvalidDataset(text, "file")
