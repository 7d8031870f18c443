"""Use cases of stored files. The caller owns the transaction."""

from __future__ import annotations

from typing import BinaryIO, Literal

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.tables import File
from app.domain.error_text.json_text import unquoted
from app.domain.files import FileOrigin
from app.errors import NotFound
from app.services import resources
from app.storage import ArchiveMember, Storage, open_archive


def get(session: Session, project_id: str, file_id: str) -> File:
    file = files.get(session, project_id, file_id)
    if file is None:
        raise file_not_found(file_id)
    return file


def page(
    session: Session,
    project_id: str,
    limit: int,
    after: str | None,
    order: Literal["asc", "desc"],
    purpose: str | None,
) -> list[File]:
    """The files in order of creation. `after` may be a deleted one, as clients delete files while they page."""
    only = (File.is_available(), *((File.purpose == purpose,) if purpose is not None else ()))
    is_ascending = order == "asc"
    return resources.page(
        session, File, limit, after, File.project_id == project_id, only=only, is_ascending=is_ascending
    )


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
