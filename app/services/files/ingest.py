"""A file on its way in: bytes go to disk while they are counted and hashed; it becomes a file whole, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.files import files
from app.db.ids import new_id
from app.db.tables import File
from app.errors import TooLarge
from app.services.access import quotas
from app.services.datasets.check_process import Check
from app.services.datasets.line_check import count_lines
from app.storage import Storage
from app.storage.writeback import begin_writeback

if TYPE_CHECKING:
    from app.services.files.rolling_digest import Digest

STAGED_PREFIX = "upload-"
WRITEBACK_BYTES = (
    8 << 20
)  # handed to the disk at a time: eight clients flush at the same moment otherwise, and all wait
STALE_AFTER_SECONDS = 24 * 3600  # a staged file of that age belongs to a process that was killed


@dataclass(frozen=True)
class NewFile:
    purpose: str
    filename: str
    expires_after: timedelta | None = None


@dataclass(frozen=True)
class StoredContent:
    """What is known of a file's bytes; `line_count` of a data set's."""

    key: str
    size_bytes: int
    sha256: str
    line_count: int | None


def file_too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"The file is larger than {max_bytes:,} bytes, the limit for one file; nothing was stored. "
        "A larger one goes up in parts: POST /v1/uploads.",
        "file",
    )


class StagedFile:
    """Written by one thread at a time, taken over by the storage or discarded.

    Every one of `digests` takes in what is written; `sha256` is that of the first.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        refusal: Callable[[int], TooLarge] = file_too_large,
        digests: Sequence[Digest] = (),
    ) -> None:
        self._descriptor, path = tempfile.mkstemp(dir=directory, prefix=STAGED_PREFIX)
        self.digests = tuple(digests) or (hashlib.sha256(),)
        self._max_bytes = max_bytes
        self._refusal = refusal
        self._is_open = True
        self.path = Path(path)
        self.size_bytes = 0
        self._handed_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Raises TooLarge as soon as the limit is passed, OSError (ENOSPC) when the disk is full."""
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise self._refusal(self._max_bytes)
        for digest in self.digests:
            digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._hand_over()

    @property
    def sha256(self) -> str:
        return self.digests[0].hexdigest()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)

    def discard(self) -> None:
        """Nothing is left; after the storage took the file over, nothing is there to discard."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _hand_over(self) -> None:
        more_bytes = self.size_bytes - self._handed_bytes
        if more_bytes >= WRITEBACK_BYTES:
            begin_writeback(self._descriptor, self._handed_bytes, more_bytes)
            self._handed_bytes = self.size_bytes


def ingest_file(
    sessions: Sessions,
    storage: Storage,
    project_id: str,
    new: NewFile,
    staged: StagedFile,
    max_line_bytes: int,
    check: Check,
    begin: Callable[[Session], None] = lambda _session: None,
    end: Callable[[Session, File], None] = lambda _session, _file: None,
) -> File:
    """Check, store, and only then let a row tell of it.

    Raises InvalidDataset with up to ten findings, and what `count_lines` raises.

    `begin` and `end` belong to the transaction of that row; what `begin` raises comes through, and nothing was stored.
    """
    staged.close()
    line_count = _count_lines(staged, max_line_bytes, check) if new.purpose == "fine-tune" else None
    file_id = new_id("file")
    content = StoredContent(f"files/{file_id}", staged.size_bytes, staged.sha256, line_count)
    storage.put(content.key, staged.path)
    inserted = False
    try:
        with transaction(sessions) as session:
            begin(session)
            file = insert_file(session, project_id, file_id, new, content)
            end(session, file)
            inserted = True
    except BaseException:
        # A commit whose answer was lost may have happened: then the bytes must stay. Without a row nobody sees them.
        if not inserted:
            storage.delete(content.key)
        raise
    return file


def insert_file(session: Session, project_id: str, file_id: str, new: NewFile, content: StoredContent) -> File:
    quotas.require_storage(session, project_id, content.size_bytes)
    file = files.insert(
        session, project_id, new.purpose, new.filename, content.size_bytes, content.sha256, content.key,
        file_id=file_id, line_count=content.line_count,
    )  # fmt: skip
    if new.expires_after is not None:  # reckoned from the row's own moment: exactly so many seconds after `created_at`
        file.expires_at = file.created_at + new.expires_after
        session.flush()
    return file


def delete_stale_staged_files(storage: Storage) -> None:
    """Remove what a killed process left; a file of that age is nobody's any more."""
    for path in storage.staging.glob(f"{STAGED_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_AFTER_SECONDS:
                path.unlink()


def _count_lines(staged: StagedFile, max_line_bytes: int, check: Check) -> int:
    with staged.path.open("rb") as file:
        return count_lines(file, staged.size_bytes, max_line_bytes, check)
