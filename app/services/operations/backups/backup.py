"""Make a backup while the service runs: a dump of one moment, and every object that its rows name.

Objects are copied after the dump. One that was deleted in between, because its row has changed since, is named by no
row of a later moment: so the dump is repeated, and what was copied is kept. An object that two moments name and
storage does not have, or that cannot be read, is damaged; the backup says so and is made all the same. A copy of one
that differs from its row is kept, as no better one exists, until storage has the object of the row again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from app.db.migrate import revision_of
from app.db.operations import dump
from app.db.operations.stored_objects import NamedObject, named_objects
from app.domain.operations.backups import BackupError, BackupManifest, ObjectDigest
from app.services.operations.backups.repository import DUMP, BackupRepository, copy
from app.storage import Storage, StorageError

MAX_ROUNDS = 5
Report = Callable[[str], None]


class UnreadableObject(Exception):
    """An object in storage cannot be read; the message is the reason. It is no error of the backups' disk."""


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
    copier = _Copier(storage, repository)
    damaged: dict[str, str] = {}
    for _ in range(MAX_ROUNDS):
        manifest, rows = _dump(database_url, staged, repository)
        report(f"database: {manifest.dump.size_bytes} bytes; objects: {len(rows)}")
        before, (objects, damaged) = damaged, copier.copy(rows)
        if damaged.keys() <= before.keys():
            break
        report(f"{len(damaged)} objects changed since the dump: the dump is repeated")
    for path in files:
        (staged / path.name).write_bytes(_content(path))
    manifest = replace(manifest, objects=objects, damaged=damaged)
    repository.publish(staged, manifest)
    return BackupResult(manifest, copier.count, copier.size_bytes)


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
        rows = list(named_objects(connection))
        dump.dump(database_url, snapshot_id, staged / DUMP)
    with (staged / DUMP).open("rb") as file:
        digest = copy(file)
    return BackupManifest(name, moment.isoformat(timespec="seconds"), version("tunery"), revision, digest, {}), rows


class _Copier:
    """Copies objects that the backups do not have yet; `count` and `size_bytes` are of these."""

    def __init__(self, storage: Storage, repository: BackupRepository) -> None:
        self._storage = storage
        self._repository = repository
        self._known = repository.digests()
        self.count = self.size_bytes = 0

    def copy(self, rows: list[NamedObject]) -> tuple[dict[str, ObjectDigest], dict[str, str]]:
        """The digests of all objects that the rows name, and what is wrong with those that are missing or differ."""
        objects, damaged = {}, {}
        for row in rows:
            try:
                digest = objects[row.key] = self._copied(row) or self._copy(row.key)
            except FileNotFoundError:
                damaged[row.key] = f"missing: {row.owner}"
            except UnreadableObject as error:
                damaged[row.key] = f"cannot be read ({error}): {row.owner}"
            else:
                if not row.has(digest):
                    damaged[row.key] = f"differs from its row: {row.owner}"
        return objects, damaged

    def _copied(self, row: NamedObject) -> ObjectDigest | None:
        """The digest of a copy that is there, also of one that an interrupted backup made; None if it is not good."""
        path = self._repository.path(row.key)
        if not path.exists():
            return None
        if row.key not in self._known:
            with path.open("rb") as file:
                self._known[row.key] = copy(file)
        digest = self._known[row.key]
        return digest if row.has(digest) else None

    def _copy(self, key: str) -> ObjectDigest:
        with _open(self._storage, key) as source:
            digest = self._known[key] = self._repository.add(key, _ObjectReader(source))
        self.count += 1
        self.size_bytes += digest.size_bytes
        return digest


class _ObjectReader:
    """Reads an object of storage, so that an error of its disk is distinct from one of the backups' disk."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        with _as_unreadable():
            return self._source.read(size)


def _open(storage: Storage, key: str) -> BinaryIO:
    with _as_unreadable():
        return storage.open(key)


@contextlib.contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except OSError as error:
        raise UnreadableObject(error.strerror) from None
