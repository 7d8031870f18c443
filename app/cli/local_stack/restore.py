"""Restore a backup into a new data directory of `tunery up`.

The data directory is made beside its place, under the name DATA_DIR.restoring, and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence

from app.cli.local_stack.checks.preflight import local_postgres_account
from app.cli.local_stack.data_directory import LOCK_NAME, Layout, write_secret
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.processes import exclusive_lock
from app.cli.local_stack.servers.postgres import LocalPostgres
from app.domain.operations.backups import BackupManifest
from app.services.operations.backups.repository import BackupRepository
from app.services.operations.backups.restore import restore
from app.storage import LocalStorage


def restore_data_directory(
    layout: Layout,
    repository: BackupRepository,
    manifest: BackupManifest,
    files: Sequence[str],
    report: Callable[[str], None],
) -> None:
    """Raises CannotStart if the directory is in use or not empty, BackupError."""
    if layout.root.exists() and (not layout.root.is_dir() or any(layout.root.iterdir())):
        raise CannotStart(f"{layout.root} is not empty. A backup is restored into a new directory: choose another one.")
    unfinished = Layout(layout.root.with_name(layout.root.name + ".restoring"))
    is_traversable = local_postgres_account() is not None
    umask = os.umask(0o077)
    try:
        shutil.rmtree(unfinished.root, ignore_errors=True)
        unfinished.create_root(is_traversable)
        with exclusive_lock(unfinished.root / LOCK_NAME, f"Another restore uses {unfinished.root}."):
            unfinished.create_directories(is_traversable)
            _restore(unfinished, repository, manifest, report)
            for name in files:
                source = repository.backups / manifest.name / name
                if source.exists():
                    write_secret(unfinished.root / name, source.read_text(encoding="utf-8"))
            unfinished.root.replace(layout.root)
    finally:
        os.umask(umask)
        shutil.rmtree(unfinished.root, ignore_errors=True)


def _restore(
    layout: Layout, repository: BackupRepository, manifest: BackupManifest, report: Callable[[str], None]
) -> None:
    postgres = LocalPostgres(layout.postgres)
    try:
        restore(postgres.start(), LocalStorage(layout.root / "storage"), repository, manifest, report)
    finally:
        postgres.stop()
