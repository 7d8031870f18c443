"""Stored files: reads and deletes. New ones are staged on disk while they are hashed, checked, stored and inserted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy.orm import Session

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.ids import new_id
from app.db.tables import File
from app.domain.error_text.json_text import unquoted
from app.domain.files import FileOrigin
from app.errors import NotFound, TooLarge
from app.log import get_logger
from app.services import resources
from app.services.access import quotas
from app.services.datasets.check_process import Check
from app.services.datasets.line_check import check_content
from app.services.resources import Page
from app.storage import ArchiveMember, Storage, open_archive
from app.storage.writeback import begin_writeback

if TYPE_CHECKING:
    from hashlib import _Hash as Digest


def get(session: Session, project_id: str, file_id: str) -> File:
    file = files.get(session, project_id, file_id)
    if file is None:
        raise file_not_found(file_id)
    return file


def page(session: Session, project_id: str, page: Page, is_ascending: bool, purpose: str | None) -> list[File]:
    """The files in order of creation. `after` may be a deleted one, as clients delete files while they page."""
    only = (File.is_available(), *((File.purpose == purpose,) if purpose is not None else ()))
    of_project = File.project_id == project_id
    return resources.page(session, File, *page, of_project, only=only, is_ascending=is_ascending)


def set_origin(session: Session, project_id: str, file_id: str, origin: FileOrigin | None) -> File:
    """Set where the file comes from; None removes it. Raises NotFound."""
    file = get(session, project_id, file_id)
    file.origin = origin.model_dump(exclude_none=True) if origin is not None else None
    session.flush()
    return file


def delete(session: Session, project_id: str, file_id: str) -> File:
    """Delete a file: it is invisible at once, and its content stays until no job needs it. Raises NotFound."""
    file = get(session, project_id, file_id)
    files.delete(session, file)
    return file


def open_content(storage: Storage, file: File) -> BinaryIO:
    """A reader of the content. Raises NotFound if it was purged since the row was read."""
    try:
        if file.archive_members is None:
            return storage.open(file.storage_key)
        members = [ArchiveMember(each["name"], each["key"], each["bytes"]) for each in file.archive_members]
        return open_archive(storage, members)
    except FileNotFoundError as error:
        raise file_not_found(file.id) from error


def file_not_found(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {unquoted(file_id)}", "id")


log = get_logger(__name__)

STAGED_PREFIX = "upload-"
# Without early writeback, concurrent uploads flush at the same moment and wait for each other.
WRITEBACK_BYTES = 8 << 20
STALE_AFTER_SECONDS = 24 * 3600  # so old a staged file belongs to a process that was killed


@dataclass(frozen=True)
class NewFile:
    purpose: str
    filename: str
    expires_after: timedelta | None = None


def file_too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"The file is larger than {max_bytes:,} bytes, the limit for one file; nothing was stored. "
        "A larger one goes up in parts: POST /v1/uploads.",
        "file",
    )


class StagedFile:
    """A file in staging, which is written by one thread at a time, and then moved into storage or discarded.

    All `digests` are updated with the written data; `sha256` is the value of the first one.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        too_large_error: Callable[[int], TooLarge] = file_too_large,
        digests: Sequence[Digest] = (),
    ) -> None:
        self._descriptor, path = tempfile.mkstemp(dir=directory, prefix=STAGED_PREFIX)
        self.digests = tuple(digests) or (hashlib.sha256(),)
        self._max_bytes = max_bytes
        self._too_large_error = too_large_error
        self._is_open = True
        self.path = Path(path)
        self.size_bytes = 0
        self._writeback_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append data. Raises TooLarge beyond the limit, OSError (ENOSPC) on a full disk."""
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise self._too_large_error(self._max_bytes)
        for digest in self.digests:
            digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        pending_bytes = self.size_bytes - self._writeback_bytes
        if pending_bytes >= WRITEBACK_BYTES:
            begin_writeback(self._descriptor, self._writeback_bytes, pending_bytes)
            self._writeback_bytes = self.size_bytes

    @property
    def sha256(self) -> str:
        return self.digests[0].hexdigest()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)

    def discard(self) -> None:
        """Delete the file, unless it has been moved into storage."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def ingest_file(
    sessions: Sessions,
    storage: Storage,
    project_id: str,
    new: NewFile,
    staged: StagedFile,
    max_line_bytes: int,
    check: Check,
    before_insert: Callable[[Session], None] = lambda _session: None,
    after_insert: Callable[[Session, File], None] = lambda _session, _file: None,
) -> File:
    """Validate and store a staged file, then insert its row.

    `before_insert` and `after_insert` run in the transaction of the row; if one of them raises, nothing is stored.
    Raises InvalidDataset with up to ten findings, and what `check_content` raises.
    """
    staged.close()
    file_id = new_id("file")
    file = File(
        id=file_id,
        project_id=project_id,
        purpose=new.purpose,
        filename=new.filename,
        bytes=staged.size_bytes,
        sha256=staged.sha256,
        storage_key=f"files/{file_id}",
        line_count=check_content(new.purpose, lambda: staged.path.open("rb"), staged.size_bytes, max_line_bytes, check),
    )
    storage.put(file.storage_key, staged.path)
    with inserting(sessions, storage, file.storage_key) as session:
        before_insert(session)
        insert_file(session, file, new.expires_after)
        after_insert(session, file)
    return file


@contextlib.contextmanager
def inserting(sessions: Sessions, storage: Storage, key: str) -> Iterator[Session]:
    """The transaction that inserts the row of a stored object, which is deleted if the row is not inserted.

    After the insert, the commit may have succeeded without a response, so the object must stay. Without a row it is
    invisible, and the cleanup deletes it.
    """
    is_inserted = False
    try:
        with transaction(sessions) as session:
            yield session
            is_inserted = True
    except BaseException:
        if not is_inserted:
            discard_object(storage, key)
        raise


def discard_object(storage: Storage, key: str) -> None:
    """Delete an object that no row names. One that cannot be deleted now is deleted by the cleanup."""
    try:
        storage.delete(key)
    except OSError as error:
        log.warning("object not deleted", key=key, error=str(error))


def insert_file(session: Session, file: File, expires_after: timedelta | None) -> None:
    """Insert the row of a stored file. Raises QuotaExceeded."""
    quotas.require_storage(session, file.project_id, file.bytes)
    files.insert(session, file)
    if expires_after is not None:  # relative to the row's `created_at`, as the API promises
        file.expires_at = file.created_at + expires_after
        session.flush()


def delete_stale_staged_files(storage: Storage) -> None:
    """Delete staged files that killed processes have left."""
    for path in storage.staging.glob(f"{STAGED_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_AFTER_SECONDS:
                path.unlink()
