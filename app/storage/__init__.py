"""Files and artifacts by key: staging, atomic publication, ranged reads; in a local directory or a bucket."""

from __future__ import annotations

from pathlib import Path

from app.domain.storage_location import S3Location
from app.storage.archive import ArchiveMember, open_archive
from app.storage.base import DownloadHeaders, Storage, StorageError, StoredObject
from app.storage.local import LocalStorage

__all__ = [
    "ArchiveMember",
    "DownloadHeaders",
    "LocalStorage",
    "S3Location",
    "Storage",
    "StorageError",
    "StoredObject",
    "open_archive",
    "open_storage",
]


def open_storage(directory: Path, location: S3Location | None) -> Storage:
    """Storage in `directory`, or in a bucket with its staging area in `directory`. Connects to nothing."""
    if location is None:
        return LocalStorage(directory)
    from app.storage.s3 import S3Storage  # here, as boto3 takes a third of a second and 20 MB

    return S3Storage(location, directory / "staging")
