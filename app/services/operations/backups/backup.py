"""Make a backup while the service runs: a dump of one moment, and every object that its rows name.

Objects are copied after the dump. One that was deleted in between, because its row has changed since, is named by no
row of a later moment: so the dump is repeated, and what was copied is kept. An object that two moments name and
storage does not have is damaged; the backup says so and is made all the same.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from app.db.migrate import revision_of
from app.db.operations import dump
from app.db.operations.stored_objects import NamedObject, named_objects
from app.domain.operations.backups import BackupError, BackupManifest, ObjectDigest
from app.services.operations.backups.repository import DUMP, BackupRepository, copy
from app.storage import Storage

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
        manifest, rows = _dump(database_url, staged)
        report(f"database: {manifest.dump.size_bytes} bytes; objects: {len(rows)}")
        before, (objects, damaged) = damaged, copier.copy(rows)
        if damaged.keys() <= before.keys():
            break
        report(f"{len(damaged)} objects changed since the dump: the dump is repeated")
    for path in files:
        (staged / path.name).write_bytes(path.read_bytes())
    manifest = replace(manifest, objects=objects, damaged=damaged)
    repository.publish(staged, manifest)
    return BackupResult(manifest, copier.count, copier.size_bytes)


def _dump(database_url: str, staged: Path) -> tuple[BackupManifest, list[NamedObject]]:
    moment = datetime.now(UTC)
    name = moment.strftime("%Y-%m-%dT%H-%M-%S.%fZ")
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
        known = repository.digests()
        self._known = {key: digest for key, digest in known.items() if repository.path(key).exists()}
        self.count = self.size_bytes = 0

    def copy(self, rows: list[NamedObject]) -> tuple[dict[str, ObjectDigest], dict[str, str]]:
        """The digests of all objects that the rows name, and what is wrong with those that are missing or differ."""
        objects, damaged = {}, {}
        for row in rows:
            try:
                digest = objects[row.key] = self._digest(row.key)
            except FileNotFoundError:
                damaged[row.key] = f"missing: {row.owner}"
                continue
            if row.sha256 not in (None, digest.sha256) or row.size_bytes not in (None, digest.size_bytes):
                damaged[row.key] = f"differs from its row: {row.owner}"
        return objects, damaged

    def _digest(self, key: str) -> ObjectDigest:
        if key not in self._known:
            with self._storage.open(key) as source:
                self._known[key] = self._repository.add(key, source)
            self.count += 1
            self.size_bytes += self._known[key].size_bytes
        return self._known[key]
