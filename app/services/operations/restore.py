"""Restore a backup into an empty database and an empty storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from app.db import migrate
from app.db.engine import make_engine, make_sessions, transaction
from app.db.jobs import lost_workers
from app.db.operations import dump, status
from app.db.operations.stored_objects import PREFIXES
from app.db.scheduling import workers
from app.services.operations.backup_repository import DUMP, BackupError, BackupManifest, BackupRepository
from app.storage import Storage
from app.system.files import ObjectDigest, copy_and_hash

Report = Callable[[str], None]


def check_restorable(repository: BackupRepository, name: str | None, may_migrate: bool) -> BackupManifest:
    """The manifest of the backup `name` (default: the newest). Raises BackupError if this release can't restore it."""
    manifest = repository.manifest(name)
    if migrate.is_too_old(manifest.schema_revision):
        raise BackupError(migrate.too_old_text(manifest.schema_revision))
    check_schema(manifest, str(migrate.head()), migrate.revisions(), may_migrate)
    with (repository.backups / manifest.name / DUMP).open("rb") as file:
        if copy_and_hash(file) != manifest.dump:
            raise BackupError(f"The dump of the backup {manifest.name} has changed on disk. Restore another backup.")
    return manifest


def check_schema(manifest: BackupManifest, head: str, known: Collection[str], may_migrate: bool) -> None:
    """Raises BackupError if this release cannot use the database of the backup.

    `head` is the newest schema revision of this release, `known` all of them.
    """
    revision, version = manifest.schema_revision, manifest.tunery_version
    if revision == head:
        return
    if revision not in known:
        raise BackupError(
            f"Tunery {version} made the backup {manifest.name} with the schema {revision}, which is newer than this "
            f"release ({head}). Install Tunery {version} or newer, and restore it with that."
        )
    if not may_migrate:
        raise BackupError(
            f"Tunery {version} made the backup {manifest.name} with the schema {revision}; this release has {head}. "
            f"Restore it with Tunery {version}, or give --migrate to migrate the restored database to this release."
        )


def restore(
    database_url: str,
    storage: Storage,
    repository: BackupRepository,
    manifest: BackupManifest,
    report: Report,
    is_copy: bool = False,
) -> None:
    """Restore objects, then the database, in one transaction. After an error, the same command continues.

    A service that `is_copy` sends no webhook event and delivers and withdraws no adapter.

    Raises BackupError if the target has data of its own, or an object of the backup has changed on disk.
    """
    engine = make_engine(database_url)
    try:
        with engine.connect() as connection:
            if not dump.is_empty(connection):
                raise BackupError(
                    "The database is not empty. A backup is restored into an empty database: create one, and set "
                    "DATABASE_URL to it."
                )
        _restore_objects(storage, repository, manifest, report)
        dump.restore(database_url, repository.backups / manifest.name / DUMP)
        migrate.upgrade(engine)
        with transaction(make_sessions(engine)) as session:
            status.forget(session, status.COPY)  # of the service that was backed up
            if is_copy:
                status.report(session, status.COPY, {"backup": manifest.name})
            lost_workers.end_all(session)
            workers.delete_all(session)
    except dump.DumpError as error:
        raise BackupError(str(error)) from None
    finally:
        engine.dispose()


def _restore_objects(storage: Storage, repository: BackupRepository, manifest: BackupManifest, report: Report) -> None:
    stored = {key for prefix in PREFIXES for key in storage.older_than(prefix, time.time() + 1)}
    if foreign := stored - manifest.objects.keys():
        raise BackupError(
            f"The storage has objects that are not in the backup, such as {min(foreign)}. A backup is restored into an "
            "empty storage."
        )
    missing = {key: digest for key, digest in manifest.objects.items() if key not in stored}
    report(f"objects: {len(missing)} to copy, {len(stored)} in storage already")
    for key, digest in missing.items():
        restore_object(storage, repository, key, None if key in manifest.damaged else digest)


def restore_object(
    storage: Storage, repository: BackupRepository, key: str, digest: ObjectDigest | None, is_replacing: bool = False
) -> None:
    """Copy an object from the backup to storage; with `is_replacing` a damaged one is deleted when the copy is known
    to be good.

    Raises BackupError if it does not have `digest`. With None, any copy is good: of an object that was damaged at the
    time of the backup, a later backup may have replaced the copy by a better one.
    """
    staged = storage.staging / f"restore-{key.replace('/', '-')}"[:200]
    try:
        with repository.path(key).open("rb") as source, staged.open("wb") as target:
            actual = copy_and_hash(source, target)
        if digest not in (None, actual):
            raise BackupError(f"{repository.path(key)} has changed on disk: it is not the object of the backup.")
        if is_replacing:
            storage.delete(key)
        storage.put(key, staged)
    except FileNotFoundError:
        raise BackupError(f"{repository.path(key)} is missing. Restore another backup.") from None
    finally:
        staged.unlink(missing_ok=True)
