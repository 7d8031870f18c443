"""Cleanup (garbage collection): objects that no row needs, expired files and uploads, work directories of ended
attempts.

Objects are deleted before their rows: a crash in between leaves rows for the next cleanup, never an object without a
row.
"""

from __future__ import annotations

import shutil
import time
from itertools import islice
from pathlib import Path

from app.db import files
from app.db.access import idempotency
from app.db.engine import transaction
from app.db.jobs import checkpoints, leases
from app.db.operations import retention
from app.db.operations.stored_objects import PREFIXES, keys_without_row
from app.db.scheduling import workers
from app.db.tables import RetentionRule
from app.db.webhooks import deliveries
from app.domain.artifacts.full_disk import RESERVED_SPACE_FILE
from app.log import get_logger
from app.storage import Storage, StorageError
from worker.jobs import stored_files, workdir
from worker.node import disk_space
from worker.node.resources import Resources

STAGED_FILE_MAX_AGE_SECONDS = 3600  # an upload without a write for this long was interrupted
MIN_ORPHAN_AGE_SECONDS = 24 * 3600  # an object's row follows within milliseconds, or within minutes under heavy load
# Prefixes for which `keys_without_row` reads every table with keys; "probes" are never named by one.
ORPHAN_PREFIXES = (*PREFIXES, "probes")
BATCH_SIZE = 500

log = get_logger(__name__)


def clean_up(resources: Resources) -> None:
    """Do everything but `delete_orphans` and `apply_retention`. Raises DATABASE_UNAVAILABLE, OSError."""
    expire_files(resources)
    expire_uploads(resources)
    with transaction(resources.sessions) as session:
        workers.delete_stale(session)
        idempotency.delete_expired(session)
        deliveries.delete_old(session, resources.settings.webhook_keep_seconds)
    delete_staged_files(resources.storage.staging)
    delete_reserved_space(resources)
    clean_work_directories(resources)
    purge_files(resources)  # what needs storage comes last: an unreachable bucket must not stop the rest
    purge_upload_parts(resources)
    drop_leftovers(resources)


def apply_retention(resources: Resources) -> None:
    """Delete what the retention rules of projects name, in batches. Raises DATABASE_UNAVAILABLE."""
    with transaction(resources.sessions) as session:
        rules = [(rule.project_id, rule.kind) for rule in retention.rules(session)]
    for project_id, kind in rules:
        deleted, size_bytes = 0, 0
        while batch := _delete_batch(resources, project_id, kind):
            deleted, size_bytes = deleted + batch.count, size_bytes + batch.size_bytes
        if deleted:
            log.info("retention", project=project_id, kind=kind, deleted=deleted, size_bytes=size_bytes)


def _delete_batch(resources: Resources, project_id: str, kind: str) -> retention.Due | None:
    """Delete a batch, unless the rule was removed meanwhile; None if nothing is due."""
    with transaction(resources.sessions) as session:
        rule = session.get(RetentionRule, (project_id, kind))
        batch = retention.delete_due(session, rule) if rule is not None else None
    return batch if batch is not None and batch.count else None


def expire_files(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        if expired := files.delete_expired(session):
            log.info("files expired", count=expired)


def purge_files(resources: Resources) -> None:
    """Delete the content of deleted files that no unfinished job reads. No job can start to use one, so no lock is
    taken."""
    with transaction(resources.sessions) as session:
        unneeded = files.lock_purgeable(session)
    deleted = [file for file in unneeded if _delete(resources.storage, file.storage_key)]
    with transaction(resources.sessions) as session:
        for file in deleted:
            files.mark_purged(session, session.merge(file))


def expire_uploads(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        if expired := files.mark_expired(session):
            log.info("uploads expired", count=expired)


def purge_upload_parts(resources: Resources) -> None:
    """Delete the parts of uploads that have ended. A file that was composed of parts does not need them."""
    with transaction(resources.sessions) as session:
        unneeded = files.leftover_parts(session)
    deleted = [part for part in unneeded if _delete(resources.storage, part.storage_key)]
    with transaction(resources.sessions) as session:
        files.delete_parts(session, deleted)


def delete_orphans(resources: Resources, older_than_seconds: float = MIN_ORPHAN_AGE_SECONDS) -> int:
    """Delete objects that no row names and return their number: their process was killed between storing and
    committing.

    A row is written right after its object, so an object that has none after a day never gets one. What a running
    attempt has written is kept at any age. Unfinished uploads come last: they need a permission of their own.
    """
    count = 0
    for prefix in ORPHAN_PREFIXES:
        keys = resources.storage.older_than(prefix, time.time() - older_than_seconds)
        while batch := list(islice(keys, BATCH_SIZE)):
            with transaction(resources.sessions) as session:
                orphans = keys_without_row(session, batch)
            for key in orphans:
                if _delete(resources.storage, key):
                    log.warning("orphaned object deleted", key=key)
                    count += 1
    return count + resources.storage.delete_unfinished(time.time() - older_than_seconds)


def _delete(storage: Storage, key: str) -> bool:
    """Delete an object; False if the disk refuses it, which must not keep the others. Raises StorageError, as a
    bucket that does not answer answers for none."""
    try:
        storage.delete(key)
    except StorageError:
        raise
    except OSError as error:
        log.error("object not deleted", key=key, error=str(error))
        return False
    return True


def drop_leftovers(resources: Resources) -> None:
    """Delete the snapshots and the tokens of jobs that have ended."""
    with transaction(resources.sessions) as session:
        rows = checkpoints.leftovers(session)
    stored_files.drop(resources, rows)


def delete_reserved_space(resources: Resources) -> None:
    """Delete space that an attempt reserved in storage and whose worker was killed. The lease precedes the file."""
    reserved = set(resources.storage.staging.glob(f"{RESERVED_SPACE_FILE}-*"))
    if not reserved:
        return
    with transaction(resources.sessions) as session:
        held = [each.lease for each in leases.held(session)]
    for path in reserved - {disk_space.storage_reserve_path(resources, each.row_id, each.attempt) for each in held}:
        path.unlink(missing_ok=True)
        log.info("reserved space released", name=path.name)


def delete_staged_files(staging: Path) -> None:
    for path in staging.iterdir():
        if path.name.startswith(RESERVED_SPACE_FILE):
            continue  # it may be as old as a running attempt: see `delete_reserved_space`
        try:
            if time.time() - path.stat().st_mtime > STAGED_FILE_MAX_AGE_SECONDS:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                log.info("staged file removed", name=path.name)
        except FileNotFoundError:
            continue
        except OSError as error:  # a file that the disk refuses must not keep the others
            log.error("staged file not removed", name=path.name, error=str(error))


def clean_work_directories(resources: Resources, prefix: str = "") -> None:
    """Empty the directories of attempts that are no longer running, in this process's data directory. Logs are kept for
    a week. `prefix` is that of the ids of one kind of work."""
    # before the claims are read: an attempt makes its directory after its claim
    attempts = workdir.attempts(resources.settings.work_dir, prefix)
    with transaction(resources.sessions) as session:
        running = {(each.lease.row_id, each.lease.attempt) for each in leases.held(session)} if attempts else set()
    for row_id, attempt, directory in attempts:
        if (row_id, attempt) not in running:
            workdir.remove_all_but_logs(directory)
            workdir.remove_old_logs(directory)
