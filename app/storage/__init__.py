"""Files and artifacts by key: staging, atomic publication, ranged reads. Today a local directory."""

from app.storage.base import Storage, StoredObject
from app.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage", "StoredObject"]
