"""Completion of an upload: its parts are composed to a file without a copy, and only content not yet hashed is read.

Three phases: load (a transaction), process (without a transaction, as gigabytes are read), apply (a transaction under
the row's lock). Of two concurrent completions the first one wins; the other returns the file of the first.

The SHA-256 of an upload is extended part by part. These rolling digests exist only in this process, and only for parts
that arrive one after the other; without one, the completion reads the content. An entry never becomes wrong: it maps a
sequence of parts to the digest of their content.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.tables import File, Upload, UploadPart
from app.domain.files import UploadStatus
from app.errors import BadRequest
from app.services.datasets.check_process import CheckProcess
from app.services.files import files, uploads
from app.services.files.files import check_content, discard_object, inserting, new_file
from app.storage import Storage

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

MAX_UPLOADS = 1000  # of some hundred bytes each, plus the ids of their parts


@dataclass(frozen=True)
class RollingDigest:
    """Running SHA-256 and byte count of the contiguous prefix of an upload that has been received so far."""

    part_ids: tuple[str, ...] = ()
    size_bytes: int = 0
    digest: Digest = field(default_factory=hashlib.sha256)

    def extend(self, part_id: str, size_bytes: int, digest: Digest) -> RollingDigest:
        """The rolling digest after another part; `digest` is that of the whole prefix up to its end."""
        return RollingDigest((*self.part_ids, part_id), self.size_bytes + size_bytes, digest)


def part_digests(rolling: RollingDigest | None) -> list[Digest]:
    """The digests to update with a part: its own and that of the prefix up to its end; for a first part only one."""
    own = hashlib.sha256()
    return [own, rolling.digest.copy()] if rolling is not None and rolling.part_ids else [own]


def piece_digests(rolling: RollingDigest | None) -> list[Digest]:
    """The digest to update with a piece of streamed content: that of the prefix, as a piece needs none of its own."""
    return [hashlib.sha256() if rolling is None else rolling.digest.copy()]


class RollingDigestCache:
    """The rolling digests of the most recent uploads of this process."""

    def __init__(self, max_uploads: int = MAX_UPLOADS) -> None:
        self._max_uploads = max_uploads
        self._rolling: OrderedDict[str, RollingDigest] = OrderedDict()
        self._lock = threading.Lock()

    def get_at(self, upload_id: str, size_bytes: int) -> RollingDigest | None:
        """The rolling digest after `size_bytes`; None if it is unknown, as for parts that are sent concurrently."""
        if size_bytes == 0:
            return RollingDigest()
        with self._lock:
            rolling = self._rolling.get(upload_id)
        return rolling if rolling is not None and rolling.size_bytes == size_bytes else None

    def store(self, upload_id: str, rolling: RollingDigest) -> None:
        with self._lock:
            self._rolling[upload_id] = rolling
            self._rolling.move_to_end(upload_id)
            while len(self._rolling) > self._max_uploads:
                self._rolling.popitem(last=False)

    def matching_prefix(self, upload_id: str, part_ids: Sequence[str]) -> RollingDigest:
        """The rolling digest of the longest known prefix of these parts; it may be empty."""
        with self._lock:
            rolling = self._rolling.get(upload_id, RollingDigest())
        return rolling if tuple(part_ids[: len(rolling.part_ids)]) == rolling.part_ids else RollingDigest()

    def remove(self, upload_id: str) -> None:
        with self._lock:
            self._rolling.pop(upload_id, None)


CHUNK_BYTES = 1 << 20
REFUSED_ACTION = "cannot be completed"


def complete(
    sessions: Sessions,
    storage: Storage,
    digests: RollingDigestCache,
    project_id: str,
    upload_id: str,
    part_ids: Sequence[str] | None,
    md5: str | None,
    max_line_bytes: int,
    check: CheckProcess,
) -> Upload:
    """Complete an upload; `part_ids` are in the order of the file, None for content sent as one stream.

    A repeated call with the same parts returns the same file. Raises BadRequest, InvalidDataset and
    CheckCancelledError, after which the upload is still pending.
    """
    with transaction(sessions) as session:
        upload = uploads.get(session, project_id, upload_id)
        if _is_completed_with(upload, part_ids):
            return upload
        uploads.require_pending(upload, REFUSED_ACTION)
        parts = _select_parts(session, upload, part_ids)
    _require_total(upload, parts)
    ids = [part.id for part in parts]
    rolling = digests.matching_prefix(upload_id, ids)
    file = _compose(sessions, storage, upload, parts, rolling, md5, max_line_bytes, check)
    completed = _apply(sessions, storage, upload, file, ids)
    digests.remove(upload_id)
    return completed


def _is_completed_with(upload: Upload, part_ids: Sequence[str] | None) -> bool:
    return upload.status == UploadStatus.COMPLETED and (part_ids is None or list(part_ids) == upload.part_ids)


def _select_parts(session: Session, upload: Upload, part_ids: Sequence[str] | None) -> list[UploadPart]:
    if part_ids is None:
        pieces = uploads.stream_pieces(session, upload)
        if not pieces and upload.bytes:
            text = "you must provide part_ids: the ids of the parts, in the order of the file"
            raise BadRequest(text, "part_ids", "missing_required_parameter")
        return pieces
    of_upload = select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.start.is_(None))
    parts_by_id = {part.id: part for part in session.scalars(of_upload.where(UploadPart.id.in_(part_ids)))}
    unknown = [part_id for part_id in dict.fromkeys(part_ids) if part_id not in parts_by_id]
    if unknown:
        raise BadRequest(f"part_ids: not a part of {upload.id}: {', '.join(unknown[:10])}", "part_ids")
    if len(parts_by_id) < len(part_ids):
        duplicate = next(part_id for part_id, count in Counter(part_ids).items() if count > 1)
        raise BadRequest(f"part_ids: {duplicate} is in the list twice; name each part once", "part_ids")
    return [parts_by_id[part_id] for part_id in part_ids]


def _require_total(upload: Upload, parts: Sequence[UploadPart]) -> None:
    total_bytes = sum(part.bytes for part in parts)
    if total_bytes != upload.bytes:
        text = f"The parts have {total_bytes:,} bytes together, but the upload was declared with {upload.bytes:,}"
        raise BadRequest(f"{text}; name all of its parts, each once.", "part_ids", "upload_size_mismatch")


def _compose(
    sessions: Sessions,
    storage: Storage,
    upload: Upload,
    parts: Sequence[UploadPart],
    rolling: RollingDigest,
    md5: str | None,
    max_line_bytes: int,
    check: CheckProcess,
) -> File:
    file = new_file(upload.project_id, upload.purpose, upload.filename)
    key = file.storage_key
    try:
        stored = storage.compose(key, [part.storage_key for part in parts])
    except FileNotFoundError:  # the parts were deleted meanwhile; the status tells why
        with transaction(sessions) as session:
            uploads.require_pending(uploads.get(session, upload.project_id, upload.id), REFUSED_ACTION)
        raise
    try:
        if stored.size_bytes != upload.bytes:
            raise RuntimeError(f"stored parts of {upload.id} have {stored.size_bytes:,} bytes, not {upload.bytes:,}")
        file.bytes = upload.bytes
        file.sha256 = parts[0].sha256 if len(parts) == 1 and md5 is None else _hash(storage, key, rolling, md5)
        check_content(file, lambda: storage.open(key), max_line_bytes, check)
    except BaseException:
        discard_object(storage, key)
        raise
    return file


def _hash(storage: Storage, key: str, rolling: RollingDigest, md5: str | None) -> str:
    """The SHA-256 of an object whose prefix is hashed already. Raises BadRequest if its MD5 differs."""
    sha256, md5_digest = rolling.digest.copy(), hashlib.md5(usedforsecurity=False)
    with storage.open(key) as file:
        position = file.seek(0 if md5 is not None else rolling.size_bytes)
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(memoryview(chunk)[max(0, rolling.size_bytes - position) :])
            if md5 is not None:
                md5_digest.update(chunk)
            position += len(chunk)
    if md5 is not None and md5_digest.hexdigest() != md5.lower():
        text = f"md5: the file's is {md5_digest.hexdigest()}, not {md5}; a part was altered, left out or misplaced"
        raise BadRequest(text, "md5", "md5_mismatch")
    return sha256.hexdigest()


def _apply(sessions: Sessions, storage: Storage, upload: Upload, file: File, part_ids: list[str]) -> Upload:
    with inserting(sessions, storage, file.storage_key) as session:
        current = uploads.get(session, upload.project_id, upload.id, lock=True)
        is_completed = _is_completed_with(current, part_ids)
        if not is_completed:
            # An upload that expired during its completion still counts as pending.
            if current.status != UploadStatus.PENDING:
                uploads.require_pending(current, REFUSED_ACTION)
            seconds = current.file_expires_after_seconds
            files.insert_file(session, file, None if seconds is None else timedelta(seconds=seconds))
            current.status, current.file_id, current.part_ids = UploadStatus.COMPLETED, file.id, part_ids
            session.flush()
        completed = uploads.get(session, upload.project_id, upload.id)
    if is_completed:
        discard_object(storage, file.storage_key)
    return completed
