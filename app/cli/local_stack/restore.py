"""Restore a backup into a new data directory of `tunery up`.

It is made in DATA_DIR/.restoring, and moved up when it is complete: DATA_DIR may be a mount point, which nothing can be
renamed to. The file that identifies a data directory is moved last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from app.cli.errors import UsageError
from app.cli.local_stack.data_directory import IGNORED_NAMES, LOCK_NAME, RESTORE_LOCK, Layout, root_mode, write_secret
from app.cli.local_stack.machine import CannotStart, local_postgres_account
from app.cli.local_stack.processes import exclusive_lock, private_files
from app.cli.local_stack.servers import LocalPostgres
from app.services.operations.backup_repository import BackupManifest, BackupRepository
from app.services.operations.restore import restore
from app.storage import open_storage

UNFINISHED = ".restoring"


def restore_data_directory(
    layout: Layout,
    repository: BackupRepository,
    manifest: BackupManifest,
    files: Sequence[str],
    report: Callable[[str], None],
    is_copy: bool,
) -> None:
    """Raises UsageError if the directory is not empty, CannotStart if it is in use, BackupError."""
    _check_unused(layout.root)
    unfinished = Layout(layout.root / UNFINISHED)
    is_traversable = local_postgres_account() is not None
    with private_files():
        layout.create_root(is_traversable)
        with exclusive_lock(layout.root / RESTORE_LOCK, f"Another restore uses {layout.root}."):
            _check_unused(layout.root)  # that another restore has not ended meanwhile
            layout.root.chmod(root_mode(is_traversable))
            try:
                shutil.rmtree(unfinished.root, ignore_errors=True)
                unfinished.create_root(is_traversable)
                unfinished.create_directories(is_traversable)
                _restore(unfinished, repository, manifest, report, is_copy)
                for source in (repository.backups / manifest.name / name for name in files):
                    if source.exists():
                        write_secret(unfinished.root / source.name, source.read_text(encoding="utf-8"))
                _move_up(unfinished)
            finally:
                shutil.rmtree(unfinished.root, ignore_errors=True)


def _check_unused(root: Path) -> None:
    names = set(os.listdir(root)) if root.is_dir() else set()
    if RESTORE_LOCK in names and LOCK_NAME not in names and names - IGNORED_NAMES - {UNFINISHED}:
        raise CannotStart(
            f"A restore into {root} was interrupted while it moved its files there. Delete everything in {root}, also "
            "the hidden files, and restore again."
        )
    if names - IGNORED_NAMES - {UNFINISHED} or (root.exists() and not root.is_dir()):
        raise UsageError(f"{root} is not empty. A backup is restored into a new directory: choose another one.")


def _restore(
    layout: Layout,
    repository: BackupRepository,
    manifest: BackupManifest,
    report: Callable[[str], None],
    is_copy: bool,
) -> None:
    postgres = LocalPostgres(layout.postgres)
    settings = layout.storage_settings()
    storage = open_storage(settings.storage_dir, settings.s3_location)
    try:
        postgres.start()
        restore(postgres.url, storage, repository, manifest, report, is_copy)
    finally:
        postgres.stop()


def _move_up(unfinished: Layout) -> None:
    for path in unfinished.root.iterdir():
        path.rename(unfinished.root.parent / path.name)
    (unfinished.root.parent / LOCK_NAME).touch()
