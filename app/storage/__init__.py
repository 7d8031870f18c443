"""Files and artifacts by key: staging, atomic publication, ranged reads; in a local directory or a bucket."""

from app.domain.storage_location import S3Location
from app.storage.archive import ArchiveMember, open_archive
from app.storage.base import DownloadHeaders, Storage, StorageError, StoredObject
from app.storage.factory import open_storage
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
