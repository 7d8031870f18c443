"""Housekeeping: bytes that no row needs any more, files whose time is over, directories of attempts that have ended.

Bytes go first and rows after: a crash between leaves work for the next sweep, never an object that nobody knows.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from sqlalchemy import select

from app.db.access import idempotency
from app.db.engine import transaction
from app.db.files import files, uploads
from app.db.jobs import checkpoints, exports
from app.db.scheduling import workers
from app.db.tables import Job
from app.db.webhooks import deliveries
from app.domain.artifacts.full_disk import RESERVED
from app.domain.jobs.states import TERMINAL
from app.log import get_logger
from worker.jobs import snapshots, workdir
from worker.node import space
from worker.node.resources import Resources

STAGED_SECONDS = 3600  # an upload that has not been written to for so long was cut off
ORPHANED_SECONDS = 24 * 3600  # between an object and the row that names it lie milliseconds, in a bad hour minutes
PREFIXES = ("files", "jobs", "uploads")  # where this sweep knows every table that may name an object
BATCH = 500

log = get_logger(__name__)


def sweep(resources: Resources) -> None:
    """Raises what DATABASE_AWAY names, OSError."""
    expire_files(resources)
    purge_files(resources)
    expire_uploads(resources)
    purge_parts(resources)
    drop_snapshots(resources)
    sweep_staging(resources.storage.staging)
    sweep_reserved(resources)
    sweep_work_directories(resources)
    with transaction(resources.sessions) as session:
        workers.delete_stale(session)
        idempotency.delete_expired(session)
        deliveries.delete_old(session, resources.settings.webhook_keep_seconds)


def expire_files(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        if expired := files.delete_expired(session):
            log.info("files expired", count=expired)


def purge_files(resources: Resources) -> None:
    """The bytes of deleted files that no unfinished job reads. A deleted file is never needed again, so no lock is."""
    with transaction(resources.sessions) as session:
        doomed = files.lock_purgeable(session)
    for file in doomed:
        resources.storage.delete(file.storage_key)
    with transaction(resources.sessions) as session:
        for file in doomed:
            files.mark_purged(session, session.merge(file))


def expire_uploads(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        if expired := uploads.mark_expired(session):
            log.info("uploads expired", count=expired)


def purge_parts(resources: Resources) -> None:
    """Parts of uploads that have ended. A file that was composed of them keeps its bytes without them."""
    with transaction(resources.sessions) as session:
        doomed = uploads.leftover_parts(session)
    for part in doomed:
        resources.storage.delete(part.storage_key)
    with transaction(resources.sessions) as session:
        uploads.delete_parts(session, doomed)


def delete_orphans(resources: Resources, older_than_seconds: float = ORPHANED_SECONDS) -> int:
    """Objects that no row names: their process was killed between storing them and the commit. How many there were.

    A row comes right after its object, so what has none after a day never gets one.
    """
    count = 0
    for prefix in PREFIXES:
        keys = resources.storage.older_than(prefix, time.time() - older_than_seconds)
        while batch := list(islice(keys, BATCH)):
            for key in _unnamed(resources, batch):
                resources.storage.delete(key)
                log.warning("orphaned object deleted", key=key)
                count += 1
    return count


def _unnamed(resources: Resources, keys: list[str]) -> Iterable[str]:
    with transaction(resources.sessions) as session:
        named = files.keys_in_use(session, keys) | uploads.keys_in_use(session, keys)
        return sorted(set(keys) - named - checkpoints.snapshot_storage_keys(session))


def drop_snapshots(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        rows = checkpoints.leftover_snapshots(session)
    snapshots.drop(resources, rows)


def sweep_reserved(resources: Resources) -> None:
    """Space that an attempt reserved in storage and whose worker was killed. A lease is older than its file."""
    found = set(resources.storage.staging.glob(f"{RESERVED}-*"))
    if not found:
        return
    with transaction(resources.sessions) as session:
        held = session.execute(select(Job.id, Job.attempt).where(Job.lease_owner.is_not(None))).all()
    for path in found - {space.in_storage(resources, row.id, row.attempt) for row in held}:
        path.unlink(missing_ok=True)
        log.info("reserved space given back", name=path.name)


def sweep_staging(staging: Path) -> None:
    for path in staging.iterdir():
        if path.name.startswith(RESERVED):
            continue  # as old as its attempt
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STAGED_SECONDS:
                _remove(path)
                log.info("staged file removed", name=path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def sweep_work_directories(resources: Resources) -> None:
    """Attempts that are over: their job or export has ended, has gone, or has a later one. Logs stay for a week."""
    found = workdir.attempts(resources.settings.work_dir)
    if not found:
        return
    with transaction(resources.sessions) as session:
        rows = session.execute(
            select(Job.id, Job.attempt, Job.state, Job.lease_owner).where(
                Job.id.in_({job_id for job_id, _, _ in found})
            )
        ).all()
        exported = exports.active_attempts(session, [each for each, _, _ in found])
    running = {row.id: row.attempt for row in rows if row.state not in TERMINAL and row.lease_owner is not None}
    running |= exported
    for job_id, attempt, directory in found:
        if running.get(job_id) != attempt:
            workdir.clear(directory)
            workdir.forget_old_log(directory)
