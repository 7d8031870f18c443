"""Files, and the uploads that become files; a deleted file is invisible at once, and its content is purged when no job
needs it. Never commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.db.jobs.jobs import ACTIVE_STATES
from app.db.tables import Checkpoint, Evaluation, Export, File, Job, Upload, UploadPart
from app.db.tables.base import core_table
from app.domain.files import UploadStatus
from app.domain.jobs.states import UNFINISHED_WORK


def insert(session: Session, file: File) -> File:
    session.add(file)
    session.flush()
    session.refresh(file)
    return file


def get(session: Session, project_id: str, file_id: str) -> File | None:
    return session.scalar(_visible(project_id).where(File.id == file_id))


def is_visible_to(project_id: str | SQLColumnExpression[str], file: type[File] = File) -> ColumnElement[bool]:
    """SQL condition: the file belongs to the project and is neither deleted nor expired."""
    return and_(file.project_id == project_id, file.is_available())


def insert_archive(session: Session, archive: File, members: Iterable[File]) -> File:
    """Insert the archive of stored files, which is assembled when it is read."""
    in_order = sorted(members, key=lambda file: file.filename)
    archive.archive_members = [
        {"name": file.filename, "key": file.storage_key, "bytes": file.bytes} for file in in_order
    ]
    archive.purged_at = func.clock_timestamp()
    return insert(session, archive)


def get_visible(session: Session, file_ids: Sequence[str], is_locking: bool = False) -> dict[str, File]:
    """The files among `file_ids` that are neither deleted nor expired, by id.

    `is_locking`: until this transaction ends, no other one deletes them.
    """
    if not file_ids:
        return {}
    query = select(File).where(File.id.in_(file_ids), File.is_available())
    if is_locking:
        query = query.with_for_update(key_share=True)  # others may still insert rows that refer to them
    return {file.id: file for file in session.scalars(query)}


def get_even_deleted(session: Session, file_id: str) -> File | None:
    """A file, also a deleted one: an accepted job still reads its files."""
    return session.get(File, file_id)


def delete(session: Session, file: File) -> None:
    file.deleted_at = func.clock_timestamp()
    session.flush()


def delete_all(session: Session, file_ids: Iterable[str]) -> None:
    """Delete files; those that are deleted already stay as they are."""
    session.execute(
        update(File)
        .where(File.id.in_(list(file_ids)), File.deleted_at.is_(None))
        .values(deleted_at=func.clock_timestamp())
    )


def delete_expired(session: Session) -> int:
    """Delete all expired files; the number of them."""
    expired = session.execute(
        update(File)
        .where(File.expires_at < func.clock_timestamp(), File.deleted_at.is_(None))
        .values(deleted_at=func.clock_timestamp())
        .returning(File.id)
    )
    return len(expired.all())


def lock_content(session: Session, project_id: str, file_ids: Sequence[str]) -> int:
    """Lock visible files until this transaction ends, so that `lock_purgeable` skips them; the number of them."""
    query = _visible(project_id).where(File.id.in_(file_ids)).with_for_update(read=True, key_share=True)
    return len(session.scalars(query).all())


def unneeded_by_work() -> list[ColumnElement[bool]]:
    """SQL conditions: no unfinished job, export or evaluation needs the content of the file."""
    in_use = select(Job.id).where(
        or_(Job.training_file_id == File.id, Job.validation_file_id == File.id), Job.state.in_(ACTIVE_STATES)
    )
    continued = (
        select(Job.id)
        .join(Checkpoint, Checkpoint.name == Job.spec["continued_from"].astext)
        .where(Checkpoint.job_id == File.job_id, Checkpoint.file_ids.has_key(File.id), Job.state.in_(ACTIVE_STATES))
    )
    exported = select(Export.id).where(
        Export.job_id == File.job_id,
        Export.adapter_file_ids.has_key(File.id),
        Export.state.in_(UNFINISHED_WORK),
    )
    evaluated = select(Evaluation.id).where(
        or_(Evaluation.file_id == File.id, Evaluation.adapter_file_ids.has_key(File.id)),
        Evaluation.state.in_(UNFINISHED_WORK),
    )
    requested = select(Job.id).where(
        Job.spec["evaluation"]["file"].astext == File.id,
        Job.project_id == File.project_id,
        Job.state.in_(ACTIVE_STATES),
    )
    return [~user.exists() for user in (in_use, continued, exported, evaluated, requested)]


def lock_purgeable(session: Session, limit: int = 100) -> list[File]:
    """Lock and return deleted files whose content no unfinished job, export or evaluation, and no archive, needs any
    more."""
    archive = aliased(File)
    archived = (
        select(Checkpoint.id)
        .join(archive, archive.id == Checkpoint.archive_file_id)
        .where(
            Checkpoint.job_id == File.job_id,
            or_(Checkpoint.file_ids.has_key(File.id), Checkpoint.evaluated_file_ids.has_key(File.id)),
            archive.archive_members.is_not(None),
            archive.deleted_at.is_(None),
        )
    )
    query = (
        select(File)
        .where(File.deleted_at.is_not(None), File.purged_at.is_(None), ~archived.exists(), *unneeded_by_work())
        .limit(limit)
        .with_for_update(skip_locked=True, of=File)
    )
    return list(session.scalars(query))


def mark_purged(session: Session, file: File) -> None:
    file.purged_at = func.clock_timestamp()
    session.flush()


def keys_in_use(session: Session, keys: Sequence[str]) -> set[str]:
    """The storage keys among `keys` of a file whose content is not purged, or of a part of an upload."""
    of_files = select(File.storage_key).where(File.storage_key.in_(keys), File.purged_at.is_(None))
    return set(
        session.scalars(of_files.union_all(select(UploadPart.storage_key).where(UploadPart.storage_key.in_(keys))))
    )


def _visible(project_id: str) -> Select[File]:
    return select(File).where(is_visible_to(project_id))


COMPLETION_GRACE_SECONDS = 1800  # a completion that runs when its upload expires may take so much longer


def mark_expired(session: Session) -> int:
    """Mark pending uploads as expired, after a grace for running completions; the number of them."""
    is_over = Upload.expires_at + timedelta(seconds=COMPLETION_GRACE_SECONDS) < func.clock_timestamp()
    query = select(Upload).where(Upload.status == UploadStatus.PENDING, is_over).with_for_update(skip_locked=True)
    expired = list(session.scalars(query))
    for upload in expired:
        upload.status = UploadStatus.EXPIRED
    session.flush()
    return len(expired)


def leftover_parts(session: Session, limit: int = 100) -> list[UploadPart]:
    """Parts of uploads that have ended: their content is in a file, or not needed."""
    ended: ColumnElement[bool] = Upload.status != UploadStatus.PENDING
    query = select(UploadPart).join(Upload, Upload.id == UploadPart.upload_id).where(ended)
    return list(session.scalars(query.limit(limit)))


def delete_parts(session: Session, parts: Sequence[UploadPart]) -> None:
    session.execute(core_table(UploadPart).delete().where(UploadPart.id.in_([part.id for part in parts])))
