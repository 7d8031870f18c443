"""Copy files between storage and a work directory, verified against their manifests.

What a trainer wrote is copied, not moved, because the trainer may still read it. Every copy is hashed while it is made,
so the stored files are those of the manifest, whatever happens to the originals in the meantime.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.db.tables import File
from app.log import get_logger
from app.storage import Storage
from app.system.artifact_directory import (
    MANIFEST,
    ManifestMismatch,
    read_manifest,
    sha256_file,
)
from app.system.durable_files import copy_and_hash
from worker.jobs.lease import LeaseKeeper, LeaseUncertain
from worker.node.resources import Resources

ARCHIVE = "adapter.tar"
PURPOSE = "fine-tune-results"

log = get_logger(__name__)


@dataclass(frozen=True)
class StoredFile:
    filename: str
    key: str
    size_bytes: int
    sha256: str

    def row(self, project_id: str, job_id: str, **columns: Any) -> File:
        """The row that makes the file visible, as a result of the job."""
        return File(
            project_id=project_id,
            job_id=job_id,
            purpose=PURPOSE,
            filename=self.filename,
            bytes=self.size_bytes,
            sha256=self.sha256,
            storage_key=self.key,
            **columns,
        )


def fetch(storage: Storage, key: str, destination: Path) -> str:
    """Copy an object to a new file and return its SHA-256. Raises FileNotFoundError, OSError."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with storage.open(key) as source, destination.open("xb") as target:
        return copy_and_hash(source, target)[1]


def copy_verified(directory: Path, destination: Path) -> dict[str, Any]:
    """Copy a directory of files and its manifest, verify each file during the copy, and return the manifest.

    Raises ManifestMismatch for a directory that differs from its manifest or has subdirectories.
    """
    shutil.rmtree(destination, ignore_errors=True)  # a copy that failed
    destination.mkdir(parents=True)
    manifest = read_manifest(directory)
    for name, entry in manifest["files"].items():
        if Path(name).name != name:
            raise ManifestMismatch(f"{directory.name}: the manifest names {name!r}; only plain file names are allowed")
        sha256 = _copy_file(directory / name, destination / name)
        if not isinstance(entry, dict) or sha256 != entry.get("sha256"):
            raise ManifestMismatch(f"{directory.name}: the content of {name} differs from the manifest")
    _copy_file(directory / MANIFEST, destination / MANIFEST)
    if read_manifest(destination) != manifest:
        raise ManifestMismatch(f"{directory.name}: the manifest changed while it was read")
    return manifest


def verify_in_place(directory: Path) -> None:
    """Verify a directory without copying it, before it is moved. Its writer must have exited.

    Raises ManifestMismatch for a directory that differs from its manifest or has subdirectories.
    """
    manifest = read_manifest(directory)
    present = {item.name: item for item in os.scandir(directory)}
    has_irregular = any(not item.is_file(follow_symlinks=False) for item in present.values())
    if has_irregular or present.keys() != {MANIFEST, *manifest["files"]}:
        raise ManifestMismatch(f"{directory.name}: it must contain exactly the files that the manifest names")
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or sha256_file(directory / name) != entry.get("sha256"):
            raise ManifestMismatch(f"{directory.name}: the content of {name} differs from the manifest")


def unique(prefix: str) -> str:
    """A prefix for new keys: the deletion of earlier objects of the same name, still under way, cannot reach them."""
    return f"{prefix}/{secrets.token_hex(4)}"


def put_directory(resources: Resources, keeper: LeaseKeeper, directory: Path, prefix: str) -> list[StoredFile]:
    """Move every file of `directory` into storage below `prefix`. On an error, delete what was stored."""
    stored: list[StoredFile] = []
    try:
        for path in sorted(directory.iterdir()):
            stored.append(put_file(resources, keeper, path, f"{prefix}/{path.name}"))  # noqa: PERF401  (for `discard`)
    except BaseException:
        discard(resources.storage, (file.key for file in stored))
        raise
    return stored


def put_file(resources: Resources, keeper: LeaseKeeper, path: Path, key: str) -> StoredFile:
    """Move a file into storage; an event says if the storage is unavailable for some time. Raises FencedError."""
    sha256 = sha256_file(path)
    stored = resources.storage_outage.retry(
        lambda: resources.storage.put(key, path),
        notify=lambda message: keeper.append_event(message, level="warn"),
        check=keeper.check,
    )
    return StoredFile(path.name, key, stored.size_bytes, sha256)


@contextmanager
def delete_unless_committed() -> Iterator[ExitStack]:
    """Run the callbacks, which delete stored objects, if the rows that name the objects were certainly not
    committed."""
    with ExitStack() as undo:
        try:
            yield undo
        except LeaseUncertain:
            undo.pop_all()
            raise
        undo.pop_all()


def discard(storage: Storage, keys: Iterable[str]) -> bool:
    """Delete objects that are no longer needed. Returns False if one could not be deleted; raises nothing."""
    all_deleted = True
    for key in keys:
        try:
            storage.delete(key)
        except OSError as error:
            log.warning("object not deleted", key=key, error=str(error))
            all_deleted = False
    return all_deleted


def resolve_inside(directory: Path, relative: str) -> Path:
    """Resolve a path that a trainer named. Raises ManifestMismatch if it is outside `directory`."""
    path = (directory / relative).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ManifestMismatch(f"{relative!r} is outside the work directory")
    return path


def _copy_file(source: Path, destination: Path) -> str:
    """Copy a regular file. Symbolic links are refused: they could point at files of others. Raises ManifestMismatch."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise ManifestMismatch(f"{source.parent.name}: {source.name} is missing") from error
    with os.fdopen(descriptor, "rb") as opened, destination.open("xb") as target:
        return copy_and_hash(opened, target)[1]
