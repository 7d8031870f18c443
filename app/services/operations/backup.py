"""Make a backup while the service runs: a dump of one moment, and every object that its rows name.

Objects are copied after the dump. One that was deleted in between, because its row has changed since, is named by no
row of a later moment: so the dump is repeated, and what was copied is kept. An object that two moments name and
storage does not have, or that cannot be read, is damaged; the backup says so and is made all the same. A copy of one
that differs from its row is kept, as no better one exists, until storage has the object of the row again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from app.db.migrate import head, is_current, is_newer, revision_of
from app.db.operations import dump
from app.db.operations.stored_objects import NamedObject, named_objects
from app.domain.error_text.json_text import counted
from app.services.operations.backup_repository import DUMP, BackupError, BackupManifest, BackupRepository
from app.services.operations.integrity import examine
from app.storage import Storage, StorageError
from app.system.files import ObjectDigest, copy_and_hash

MAX_ROUNDS = 5
Report = Callable[[str], None]


@dataclass(frozen=True)
class BackupResult:
    manifest: BackupManifest
    copied_count: int
    copied_bytes: int


def back_up(
    database_url: str, storage: Storage, repository: BackupRepository, files: Iterable[Path], report: Report
) -> BackupResult:
    """Add a backup to `repository`, with copies of `files` of the data directory. Raises BackupError."""
    try:
        with repository.locked():
            return _back_up(database_url, storage, repository, list(files), report)
    except dump.DumpError as error:
        raise BackupError(f"{error} The earlier backups are whole.") from None
    except StorageError as error:
        raise BackupError(f"The storage cannot be read: {error.strerror}. The earlier backups are whole.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise
        raise BackupError(
            f"{error.strerror} in {repository.root}. The earlier backups are whole. Free space there, for example with "
            "--keep, or choose another directory, and try again."
        ) from None


def _back_up(
    database_url: str, storage: Storage, repository: BackupRepository, files: list[Path], report: Report
) -> BackupResult:
    staged = repository.unfinished / "backup"
    staged.mkdir(mode=0o700)
    known, copied_bytes = repository.digests(), list[int]()

    def copied(row: NamedObject) -> tuple[ObjectDigest | None, str | None]:
        """As `examine`, but of a copy that is there and good, also one that an interrupted backup made."""
        path = repository.path(row.key)
        if path.exists():
            if row.key not in known:
                with path.open("rb") as file:
                    known[row.key] = copy_and_hash(file)
            if not row.difference(known[row.key]):
                return known[row.key], None
        digest, problem = examine(storage, row, partial(repository.add, row.key))
        if digest is not None:
            known[row.key] = digest
            copied_bytes.append(digest.size_bytes)
        return digest, problem

    damaged: dict[str, str] = {}
    for _ in range(MAX_ROUNDS):
        manifest, rows = _dump(database_url, staged, repository)
        report(f"database: {manifest.dump.size_bytes} bytes; objects: {len(rows)}")
        found = [(row, *copied(row)) for row in rows]
        before, damaged = damaged, {row.key: f"{problem}: {row.owner}" for row, _, problem in found if problem}
        if damaged.keys() <= before.keys():
            break
        report(f"{counted(len(damaged), 'object')} changed since the dump: the dump is repeated")
    for path in files:
        (staged / path.name).write_bytes(_content(path))
    objects = {row.key: digest for row, digest, _ in found if digest is not None}
    manifest = replace(manifest, objects=objects, damaged=damaged)
    repository.publish(staged, manifest)
    return BackupResult(manifest, len(copied_bytes), sum(copied_bytes))


def _content(path: Path) -> bytes:
    """Of a file of the data directory. Raises BackupError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BackupError(
            f"{path} cannot be read: {error.strerror}. The earlier backups are whole. Repair or replace that file, and "
            "try again."
        ) from None


def _dump(database_url: str, staged: Path, repository: BackupRepository) -> tuple[BackupManifest, list[NamedObject]]:
    moment = datetime.now(UTC)
    name = repository.next_name(moment)
    with dump.exported_snapshot(database_url) as (connection, snapshot_id):
        revision = revision_of(connection)
        if revision is None:
            raise BackupError("The database has no tables of Tunery yet, so there is nothing to back up.")
        if not is_current(connection) and not is_newer(connection):
            raise BackupError(
                f"The schema is {revision}, that of an earlier release; this one reads {head()}. Make the backup with "
                "the release that runs, before the migrations."
            )
        rows = list(named_objects(connection))
        dump.dump(database_url, snapshot_id, staged / DUMP)
    with (staged / DUMP).open("rb") as file:
        digest = copy_and_hash(file)
    return BackupManifest(name, moment.isoformat(timespec="seconds"), version("tunery"), revision, digest, {}), rows
