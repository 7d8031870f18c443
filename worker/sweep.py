"""Housekeeping: bytes that no row needs any more, files whose time is over, directories of attempts that have ended.

Bytes go first and rows after: a crash between leaves work for the next sweep, never an object that nobody knows.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from app.db import checkpoints, exports, files, workers
from app.db.engine import transaction
from app.db.tables import Job
from app.domain.states import TERMINAL
from app.log import get_logger
from worker import snapshots, workdir
from worker.resources import Resources

STAGED_SECONDS = 3600  # an upload that has not been written to for so long was cut off

log = get_logger(__name__)


def sweep(resources: Resources) -> None:
    """Raises what DATABASE_AWAY names, OSError."""
    expire_files(resources)
    purge_files(resources)
    drop_snapshots(resources)
    sweep_staging(resources.storage.staging)
    sweep_work_directories(resources)
    with transaction(resources.sessions) as session:
        workers.forget_old(session)


def expire_files(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        if expired := files.expire(session):
            log.info("files expired", count=expired)


def purge_files(resources: Resources) -> None:
    """The bytes of deleted files that no unfinished job reads. A deleted file is never needed again, so no lock is."""
    with transaction(resources.sessions) as session:
        doomed = files.purgeable(session)
    for file in doomed:
        resources.storage.delete(file.storage_key)
    with transaction(resources.sessions) as session:
        for file in doomed:
            files.mark_purged(session, session.merge(file))


def drop_snapshots(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        rows = checkpoints.left_over_snapshots(session)
    snapshots.drop(resources, rows)


def sweep_staging(staging: Path) -> None:
    for path in staging.iterdir():
        with suppress(FileNotFoundError, IsADirectoryError):
            if time.time() - path.stat().st_mtime > STAGED_SECONDS:
                path.unlink()
                log.info("staged file removed", name=path.name)


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
