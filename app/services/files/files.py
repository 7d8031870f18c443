"""Stored files: reads and deletes. New ones are staged on disk while they are hashed, checked, stored and inserted.

A small file is checked in the API's process, a large one in a child process. A gigabyte of short lines takes half a
minute, one of long lines a few seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sqlalchemy.orm import Session

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.ids import new_id
from app.db.tables import File
from app.domain.datasets.jsonl import OTHER_FORMAT, Finding, read_lines
from app.domain.error_text.json_text import unquoted
from app.domain.files import clean_filename
from app.errors import BadRequest, InvalidDataset, NotFound, TooLarge, Unavailable
from app.log import get_logger
from app.services import resources
from app.services.access import quotas
from app.services.datasets.check_process import CheckProcess
from app.services.resources import Page
from app.storage import ArchiveMember, Storage, open_archive
from app.system.files import begin_writeback
from app.system.limited_process import ProcessEnded, memory_bytes

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

log = get_logger(__name__)

STAGED_PREFIX = "upload-"
# Without early writeback, concurrent uploads flush at the same moment and wait for each other.
WRITEBACK_BYTES = 8 << 20
STALE_AFTER_SECONDS = 24 * 3600  # so old a staged file belongs to a process that was killed


def get(session: Session, project_id: str, file_id: str) -> File:
    file = files.get(session, project_id, file_id)
    if file is None:
        raise file_not_found(file_id)
    return file


def change(session: Session, file: File, given: dict[str, Any]) -> File:
    """Change `filename` and `origin`. Raises BadRequest for the name of a file that a job has made."""
    if "filename" in given:
        if file.job_id is not None:  # downloads and the manifest of an adapter name its files
            raise BadRequest(f"filename: {file.id} was made by job {file.job_id}; its name stays.", "filename")
        given["filename"] = clean_filename(given["filename"])
    return resources.store(session, file, **given)


def page(session: Session, project_id: str, page: Page, is_ascending: bool, purpose: str | None) -> list[File]:
    """The files in order of creation. `after` may be a deleted one, as clients delete files while they page."""
    only = (File.is_available(), *((File.purpose == purpose,) if purpose is not None else ()))
    of_project = File.project_id == project_id
    return resources.page(session, File, *page, of_project, only=only, is_ascending=is_ascending)


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


def new_file(project_id: str, purpose: str, filename: str) -> File:
    """The row of a file that is not stored yet, with the key of its object."""
    file_id = new_id("file")
    return File(id=file_id, storage_key=f"files/{file_id}", project_id=project_id, purpose=purpose, filename=filename)


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
    file: File,
    expires_after: timedelta | None,
    staged: StagedFile,
    max_line_bytes: int,
    check: CheckProcess,
    before_insert: Callable[[Session], None] = lambda _session: None,
    after_insert: Callable[[Session, File], None] = lambda _session, _file: None,
) -> File:
    """Validate and store a staged file, then insert its row.

    `before_insert` and `after_insert` run in the transaction of the row; if one of them raises, nothing is stored.
    Raises InvalidDataset with up to ten findings, and what `check_content` raises.
    """
    staged.close()
    file.bytes, file.sha256 = staged.size_bytes, staged.sha256
    check_content(file, lambda: staged.path.open("rb"), max_line_bytes, check)
    storage.put(file.storage_key, staged.path)
    with inserting(sessions, storage, file.storage_key) as session:
        before_insert(session)
        insert_file(session, file, expires_after)
        after_insert(session, file)
    return file


@contextlib.contextmanager
def inserting(sessions: Sessions, storage: Storage, *keys: str) -> Iterator[Session]:
    """The transaction that inserts the rows of stored objects, which are deleted if the rows are not inserted.

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
            for key in keys:
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


MAX_IN_PROCESS_BYTES = 256 << 10  # at most some 10 ms
MAX_FINDINGS = 10


def is_long(purpose: str, size_bytes: int) -> bool:
    """Whether a file's lines are checked in a process of their own."""
    return purpose == "fine-tune" and size_bytes > MAX_IN_PROCESS_BYTES


def check_content(file: File, open_reader: Callable[[], BinaryIO], max_line_bytes: int, check: CheckProcess) -> None:
    """Check a new file by its purpose, and count the lines of one for fine-tuning.

    Raises what `count_lines` raises, and BadRequest for an evaluation file of another format than JSON lines.
    """
    if file.purpose == "fine-tune":
        with open_reader() as reader:
            file.line_count = count_lines(reader, file.bytes, max_line_bytes, check)
    elif file.purpose == "evals":
        with open_reader() as reader:
            first = next(read_lines(reader, max_line_bytes), None)
        if isinstance(first, Finding) and first.code == OTHER_FORMAT:
            raise BadRequest(f"The file is {first.message}.", "file")


def count_lines(file: BinaryIO, size_bytes: int, max_line_bytes: int, check: CheckProcess) -> int:
    """Return the number of examples in `file`, which is read from its start.

    Raises InvalidDataset, Unavailable, CheckCancelledError.
    """
    if size_bytes <= MAX_IN_PROCESS_BYTES:
        count, findings = check_lines(max_line_bytes, file)
    else:
        try:
            count, findings = check.run(
                check_lines, max_line_bytes, files=[file], memory_bytes=memory_bytes(max_line_bytes)
            )
        except ProcessEnded as error:
            raise Unavailable("The check of the file's lines was interrupted; send the request again.") from error
    if findings and findings[0].code == OTHER_FORMAT:
        raise InvalidDataset(f"The file is {findings[0].message}.", "file")
    if findings:
        raise _not_jsonl(". ".join(map(str, findings)))
    if count == 0:
        raise _not_jsonl("The file is empty")
    return count


def check_lines(max_line_bytes: int, file: BinaryIO) -> tuple[int, list[Finding]]:
    """Return the number of lines and the first MAX_FINDINGS findings; reading stops at the last of these."""
    findings: list[Finding] = []
    count = 0
    for line in read_lines(file, max_line_bytes):
        if isinstance(line, Finding):
            findings.append(line)
        count += 1
        if len(findings) == MAX_FINDINGS:
            break
    return count, findings


def _not_jsonl(reason: str) -> InvalidDataset:
    text = f"Expected file to have JSONL format, where every line is a valid JSON dictionary. {reason}."
    return InvalidDataset(text, "file")
