"""Compare every row that names an object with the object's bytes, and repair what can be repaired."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy import Engine

from app.db.operations.stored_objects import PREFIXES, NamedObject, named_objects
from app.domain.operations.backups import ObjectDigest
from app.services.operations.backups.repository import BackupRepository, copy
from app.services.operations.backups.restore import restore_object
from app.storage import Storage

MIN_ORPHAN_AGE_SECONDS = 24 * 3600  # the row of a younger object may not be committed yet


@dataclass(frozen=True)
class IntegrityFinding:
    key: str
    problem: str  # "missing", "wrong size", "wrong content", "no row"
    owner: str | None = None
    repaired: str | None = None  # how; None: it was not


def check(
    engine: Engine, storage: Storage, read_content: bool, is_repairing: bool, backups: BackupRepository | None
) -> Iterator[IntegrityFinding]:
    """The findings. With `read_content` objects are read and hashed, else only their sizes are compared.

    Repairs: an object without a row is deleted; a missing or damaged one is restored from `backups` if it is there with
    the digest of its row.
    """
    with engine.connect() as connection:
        rows = list(named_objects(connection))
    digests = backups.digests() if backups is not None else {}
    problems = {row: problem for row in rows if (problem := _problem(storage, row, read_content)) is not None}
    for row in _still_named(engine, problems):
        is_restored = is_repairing and backups is not None and _restore(storage, row, backups, digests)
        yield IntegrityFinding(row.key, problems[row], row.owner, "restored from the backup" if is_restored else None)
    named = {row.key for row in rows}
    for prefix in PREFIXES:
        for key in storage.older_than(prefix, time.time() - MIN_ORPHAN_AGE_SECONDS):
            if key not in named:
                if is_repairing:
                    storage.delete(key)
                yield IntegrityFinding(key, "no row", repaired="deleted" if is_repairing else None)


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
    return None


def _still_named(engine: Engine, objects: Collection[NamedObject]) -> list[NamedObject]:
    """Those that a row names now: an object may have been deleted with its row during the check."""
    if not objects:
        return []
    with engine.connect() as connection:
        keys = {row.key for row in named_objects(connection)}
    return [each for each in objects if each.key in keys]


def _restore(storage: Storage, row: NamedObject, backups: BackupRepository, digests: dict[str, ObjectDigest]) -> bool:
    digest = digests.get(row.key)
    if digest is None or row.sha256 not in (None, digest.sha256) or row.size_bytes not in (None, digest.size_bytes):
        return False
    storage.delete(row.key)
    restore_object(storage, backups, row.key, digest)
    return True
