"""Compare every row that names an object with the object's bytes, and repair what can be repaired."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.db.operations.stored_objects import PREFIXES, NamedObject, abandoned, named_objects
from app.services.operations.backup_repository import BackupError, BackupRepository
from app.services.operations.restore import restore_object
from app.storage import Storage, StorageError
from app.system.files import ObjectDigest, ReadableFile, copy_and_hash

MIN_ORPHAN_AGE_SECONDS = 24 * 3600  # the row of a younger object may not be committed yet


@dataclass(frozen=True)
class IntegrityFinding:
    key: str
    problem: str  # "missing", "wrong size", "wrong content", "cannot be read: REASON", "no row"
    owner: str | None = None
    repaired: str | None = None  # how; None: it was not
    failure: str | None = None  # why a repair failed


def examine(
    storage: Storage, row: NamedObject, consume: Callable[[ReadableFile], ObjectDigest] = copy_and_hash
) -> tuple[ObjectDigest | None, str | None]:
    """Read an object by `consume`: its digest, if it can be read, and what is wrong with it.

    Raises StorageError if the whole storage fails, and OSError of `consume`.
    """
    try:
        with _as_unreadable():
            source = storage.open(row.key)
        with source:
            digest = consume(_ObjectReader(source))
    except _UnreadableObject as error:
        return None, str(error)
    return digest, row.difference(digest)


def check(
    engine: Engine, storage: Storage, read_content: bool, is_repairing: bool, backups: BackupRepository | None
) -> Iterator[IntegrityFinding]:
    """The findings. Sizes are compared; with `read_content` objects of the right size are also read and hashed.

    Repairs: an object without a row is deleted; a missing or damaged one is restored from `backups` if it is there with
    the digest of its row. Raises BackupError, StorageError.
    """
    with engine.connect() as connection:
        rows = list(named_objects(connection))
    problems = {row: problem for row in rows if (problem := _problem(storage, row, read_content))}
    moment = time.time() - MIN_ORPHAN_AGE_SECONDS
    old = {key for prefix in PREFIXES for key in storage.older_than(prefix, moment)}
    with Session(engine) as session:  # objects were stored meanwhile, or deleted with their rows
        named = {row.key for row in named_objects(session.connection())}
        orphans = abandoned(session, old - named)
    with nullcontext() if backups is None else backups.locked_for_reading(wait=True):
        digests = {} if backups is None else backups.digests()
        for row, problem in problems.items():
            finding = IntegrityFinding(row.key, problem, row.owner)
            digest = digests.get(row.key) if is_repairing else None
            if row.key not in named:
                continue
            if backups is not None and digest is not None and not row.difference(digest):
                restore_this = partial(restore_object, storage, backups, row.key, digest, is_replacing=True)
                finding = _repair(finding, "restored from the backup", restore_this)
            yield finding
    if orphans and is_repairing and all(problems.get(row) == "missing" for row in rows):
        raise BackupError(
            f"Nothing was deleted: the storage has objects such as {orphans[0]}, but none of the {len(rows)} objects "
            "that the database names. Check that DATABASE_URL, TUNERY_STORAGE_URL and --data-dir are of one service."
        )
    for key in orphans:
        finding = IntegrityFinding(key, "no row")
        yield _repair(finding, "deleted", partial(storage.delete, key), StorageError) if is_repairing else finding


def _problem(storage: Storage, row: NamedObject, read_content: bool) -> str | None:
    """What is wrong with an object. One of another size is not read. Raises StorageError."""
    try:
        with _as_unreadable():
            size_bytes = storage.stat(row.key).size_bytes
    except _UnreadableObject as error:
        return str(error)
    if row.size_bytes not in (None, size_bytes):
        return "wrong size"
    return examine(storage, row)[1] if read_content else None


def _repair(
    finding: IntegrityFinding, how: str, repair: Callable[[], None], fatal: type[OSError] | tuple[()] = ()
) -> IntegrityFinding:
    """`fatal` is an error of the whole storage, not of this object; it is raised."""
    try:
        repair()
    except fatal:
        raise
    except BackupError as error:
        return replace(finding, failure=str(error))
    except OSError as error:
        return replace(finding, failure=error.strerror)
    return replace(finding, repaired=how)


class _UnreadableObject(Exception):
    """An object in storage cannot be read; the message is the problem. It is no error of the backups' disk."""


class _ObjectReader:
    """Reads an object of storage, so that an error of its disk is distinct from one of the backups' disk."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        with _as_unreadable():
            return self._source.read(size)


@contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise _UnreadableObject("missing") from None
    except OSError as error:
        raise _UnreadableObject(f"cannot be read: {error.strerror}") from None
