"""Copies the objects that rows name from one storage to another, with every digest checked; a copy may be resumed.

A ledger has a line for each object that was read back and verified. Objects of the ledger are not read again.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.db.operations.stored_objects import NamedObject
from app.storage import Storage, StorageError
from app.system.files import copy_and_hash

THREADS = 4


class CopyLedger:
    """The keys of verified objects with their digests, one per line, appended as they are verified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._sha256_by_key = dict(line.split(" ") for line in lines if line.count(" ") == 1)

    def sha256(self, key: str) -> str | None:
        return self._sha256_by_key.get(key)

    def add(self, key: str, sha256: str) -> None:
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(f"{key} {sha256}\n")


def copy_objects(
    source: Storage,
    target: Storage,
    objects: Iterable[NamedObject],
    ledger: CopyLedger,
    on_copied: Callable[[int], None],
) -> Iterator[str]:
    """Copy each object; yields one sentence for each that could not be copied. `on_copied` receives sizes in bytes.

    Raises StorageError for a target that fails: a repeated copy continues there.
    """

    def copy(named: NamedObject) -> str | None:
        try:
            return _copy_object(source, target, named, ledger, on_copied)
        except StorageError:
            raise  # of the whole bucket, not of this object
        except OSError as error:
            return f"{named.key} was not copied: {error.strerror}."

    with ThreadPoolExecutor(THREADS) as pool:
        yield from filter(None, pool.map(copy, objects))


def _copy_object(
    source: Storage, target: Storage, named: NamedObject, ledger: CopyLedger, on_copied: Callable[[int], None]
) -> str | None:
    key = named.key
    try:
        size_bytes = source.stat(key).size_bytes
    except FileNotFoundError:
        return f"{key} is missing in the directory."
    if ledger.sha256(key) is None or not _is_stored(target, key, size_bytes):
        with tempfile.NamedTemporaryFile(dir=target.staging, prefix="copy-", delete=False) as staged:
            try:
                with source.open(key) as file:
                    sha256 = copy_and_hash(file, staged.file).sha256
                if named.sha256 not in (None, sha256) or named.size_bytes not in (None, size_bytes):
                    return f"{key} differs from its row: its SHA-256 is {sha256}, in the database {named.sha256}."
                staged.flush()
                if not (_is_stored(target, key, size_bytes) and _sha256_of(target, key) == sha256):
                    target.put(key, Path(staged.name))
                    if _sha256_of(target, key) != sha256:
                        return f"{key} differs in the target after its copy; repeat the command."
            finally:
                Path(staged.name).unlink(missing_ok=True)
        ledger.add(key, sha256)
    on_copied(size_bytes)
    return None


def _is_stored(storage: Storage, key: str, size_bytes: int) -> bool:
    try:
        return storage.stat(key).size_bytes == size_bytes
    except FileNotFoundError:
        return False


def _sha256_of(storage: Storage, key: str) -> str:
    with storage.open(key) as file:
        return copy_and_hash(file).sha256
