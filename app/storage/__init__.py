from app.storage.base import Storage, StoredObject
from app.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage", "StoredObject"]
