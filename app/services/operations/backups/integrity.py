"""Compare every row that names an object with the object's bytes, and repair what can be repaired."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.db.operations.stored_objects import PREFIXES, NamedObject, keys_without_row, named_objects
from app.domain.operations.backups import BackupError, ObjectDigest
from app.services.operations.backups.repository import BackupRepository, copy
from app.services.operations.backups.restore import restore_object
from app.storage import Storage, StorageError

BATCH_SIZE = 500
MIN_ORPHAN_AGE_SECONDS = 24 * 3600  # the row of a younger object may not be committed yet


@dataclass(frozen=True)
class IntegrityFinding:
    key: str
    problem: str  # "missing", "wrong size", "wrong content", "cannot be read: REASON", "no row"
    owner: str | None = None
    repaired: str | None = None  # how; None: it was not
    failure: str | None = None  # why a repair failed


def check(
    engine: Engine, storage: Storage, read_content: bool, is_repairing: bool, backups: BackupRepository | None
) -> Iterator[IntegrityFinding]:
    """The findings. With `read_content` objects are read and hashed, else only their sizes are compared.

    Repairs: an object without a row is deleted; a missing or damaged one is restored from `backups` if it is there with
    the digest of its row. Raises BackupError, StorageError.
    """
    with engine.connect() as connection:
        rows = list(named_objects(connection))
    problems = {row: problem for row in rows if (problem := _problem(storage, row, read_content)) is not None}
    named = _still_named(engine, problems)
    with nullcontext() if backups is None else backups.locked_for_reading(wait=True):
        digests = {} if backups is None else backups.digests()
        for row in named:
            finding = IntegrityFinding(row.key, problems[row], row.owner)
            is_restorable = is_repairing and row.key in digests and row.has(digests[row.key])
            if backups is not None and is_restorable:
                finding = _restore(storage, backups, digests[row.key], finding)
            yield finding
    is_storage_of_database = any(problems.get(row) != "missing" for row in rows)
    for key in _orphans(engine, storage):
        if is_repairing and not is_storage_of_database:
            raise BackupError(
                f"Nothing was deleted: the storage has objects such as {key}, but none of the {len(rows)} objects that "
                "the database names. Check that DATABASE_URL, TUNERY_STORAGE_URL and --data-dir are of one service."
            )
        yield _delete(storage, key) if is_repairing else IntegrityFinding(key, "no row")


def _problem(storage: Storage, row: NamedObject, read_content: bool) -> str | None:
    try:
        size_bytes = storage.stat(row.key).size_bytes
        if row.size_bytes not in (None, size_bytes):
            return "wrong size"
        if read_content:
            with storage.open(row.key) as file:
                if row.sha256 not in (None, copy(file).sha256):
                    return "wrong content"
    except FileNotFoundError:
        return "missing"
    except StorageError:
        raise  # of the whole bucket, not of this object
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _still_named(engine: Engine, objects: Collection[NamedObject]) -> list[NamedObject]:
    """Those that a row names now: an object may have been deleted with its row during the check."""
    if not objects:
        return []
    with engine.connect() as connection:
        keys = {row.key for row in named_objects(connection)}
    return [each for each in objects if each.key in keys]


def _restore(
    storage: Storage, backups: BackupRepository, digest: ObjectDigest, finding: IntegrityFinding
) -> IntegrityFinding:
    try:
        restore_object(storage, backups, finding.key, digest, is_replacing=True)
    except BackupError as error:
        return replace(finding, failure=str(error))
    except OSError as error:
        return replace(finding, failure=error.strerror)
    return replace(finding, repaired="restored from the backup")


def _delete(storage: Storage, key: str) -> IntegrityFinding:
    try:
        storage.delete(key)
    except StorageError:
        raise
    except OSError as error:
        return IntegrityFinding(key, "no row", failure=error.strerror)
    return IntegrityFinding(key, "no row", repaired="deleted")


def _orphans(engine: Engine, storage: Storage) -> Iterator[str]:
    """Old objects without a row. The rows are read for each batch, as the check may have taken longer than a day."""
    for prefix in PREFIXES:
        keys = storage.older_than(prefix, time.time() - MIN_ORPHAN_AGE_SECONDS)
        while batch := list(islice(keys, BATCH_SIZE)):
            with Session(engine) as session:
                orphans = keys_without_row(session, batch)
            yield from orphans
