"""Bytes between storage and a work directory. What a trainer wrote is copied, never moved: it may still be reading it.

Everything that is copied is hashed on the way and held against the manifest, so what lands in storage is what the
manifest says, whatever happens to the original meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from app.log import get_logger
from app.storage import Storage
from app.system.artifact_directory import (
    MANIFEST,
    ManifestMismatch,
    read_manifest,
    sha256_file,
    write_archive,
)
from worker.jobs.lease import OutOfTouch

ARCHIVE = "adapter.tar"
CHUNK_BYTES = 1 << 20

log = get_logger(__name__)


@dataclass(frozen=True)
class StoredFile:
    filename: str
    key: str
    size_bytes: int
    sha256: str


def fetch(storage: Storage, key: str, destination: Path) -> str:
    """Copy an object to a new file; its SHA-256. Raises FileNotFoundError, OSError."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with storage.open(key) as source, destination.open("xb") as target:
        return _copy(source, target)


def take_copy(directory: Path, destination: Path) -> dict[str, Any]:
    """Copy a directory of files and its manifest, verifying each on the way; the manifest.

    Raises ManifestMismatch for a directory that is not what its manifest says, or not flat.
    """
    shutil.rmtree(destination, ignore_errors=True)  # of a try that failed
    destination.mkdir(parents=True)
    manifest = read_manifest(directory)
    for name, want in manifest["files"].items():
        if Path(name).name != name:
            raise ManifestMismatch(f"{directory.name}: {name!r} is not a bare file name")
        sha256 = _copy_file(directory / name, destination / name)
        if not isinstance(want, dict) or sha256 != want.get("sha256"):
            raise ManifestMismatch(f"{directory.name}: {name} is not the file that the manifest names")
    _copy_file(directory / MANIFEST, destination / MANIFEST)
    if read_manifest(destination) != manifest:
        raise ManifestMismatch(f"{directory.name}: the manifest changed while it was read")
    return manifest


def check_in_place(directory: Path) -> None:
    """Verify a directory of files where it lies, for moving instead of copying: only after its writer has ended.

    Raises ManifestMismatch for a directory that is not what its manifest says, or not flat.
    """
    manifest = read_manifest(directory)
    found = {entry.name: entry for entry in os.scandir(directory)}
    irregular = sorted(name for name, entry in found.items() if not entry.is_file(follow_symlinks=False))
    if irregular or found.keys() != {MANIFEST, *manifest["files"]}:
        raise ManifestMismatch(f"{directory.name}: it does not hold the files that the manifest names, and those alone")
    for name, want in manifest["files"].items():
        if not isinstance(want, dict) or sha256_file(directory / name) != want.get("sha256"):
            raise ManifestMismatch(f"{directory.name}: {name} is not the file that the manifest names")


def put_directory(storage: Storage, directory: Path, prefix: str) -> list[StoredFile]:
    """Move every file of `directory` into storage below `prefix`. On an error, what was put is taken back."""
    stored: list[StoredFile] = []
    try:
        for path in sorted(directory.iterdir()):
            stored.append(put_file(storage, path, f"{prefix}/{path.name}"))  # noqa: PERF401  (kept for the clean-up)
    except BaseException:
        discard(storage, (file.key for file in stored))
        raise
    return stored


def put_file(storage: Storage, path: Path, key: str) -> StoredFile:
    sha256 = sha256_file(path)
    size_bytes = storage.put(key, path).size_bytes
    return StoredFile(path.name, key, size_bytes, sha256)


def pack(directory: Path, destination: Path) -> Path:
    archive = destination / ARCHIVE
    write_archive(directory, archive, prefix="adapter")
    return archive


@contextmanager
def taking_back() -> Iterator[ExitStack]:
    """Undo what was put into storage when the rows that would point at it were certainly not written."""
    with ExitStack() as undo:
        try:
            yield undo
        except OutOfTouch:
            undo.pop_all()
            raise
        undo.pop_all()


def discard(storage: Storage, keys: Iterable[str]) -> bool:
    """Delete objects that nobody needs. False if one could not be deleted, which is not worth failing for."""
    all_gone = True
    for key in keys:
        try:
            storage.delete(key)
        except OSError as error:
            log.warning("object not deleted", key=key, error=str(error))
            all_gone = False
    return all_gone


def inside(directory: Path, relative: str) -> Path:
    """A path that a trainer named, resolved. Raises ManifestMismatch when it leads out of `directory`."""
    path = (directory / relative).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ManifestMismatch(f"{relative!r} leads out of the work directory")
    return path


def _copy_file(source: Path, destination: Path) -> str:
    """Refuses symbolic links: a manifest's hash would not tell whose bytes they are."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise ManifestMismatch(f"{source.parent.name}: {source.name} is missing") from error
    with os.fdopen(descriptor, "rb") as opened, destination.open("xb") as target:
        return _copy(opened, target)


def _copy(source: BinaryIO, target: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
