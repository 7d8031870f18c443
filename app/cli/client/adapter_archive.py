"""Download of an adapter's archive: resume, verify, unpack by the manifest, rename into place.

The archive is not trusted: file names come from the manifest and must stay inside the directory, each file must have
the SHA-256 of the manifest, and the archive the SHA-256 that the server returned.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from app.cli.errors import CliError, ServiceUnreachable
from app.system.artifact_directory import MANIFEST, ManifestMismatch, publish, sha256_file, verify

if TYPE_CHECKING:
    from app.cli.client.http import Client

BLOCK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 16 << 20
MAX_ATTEMPTS = 5  # each continues after the bytes that the last one received
ATTEMPT_PAUSE_SECONDS = 1.0


class CorruptDownload(CliError):
    """The downloaded bytes do not match the size, the SHA-256 or the manifest that the server returned."""


def download_with_resume(
    client: Client, path: str, partial_path: Path, size_bytes: int, on_bytes: Callable[[int], None]
) -> None:
    """Append to `partial_path` until it has `size_bytes`. Raises ServiceUnreachable after MAX_ATTEMPTS."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        if _size(partial_path) >= size_bytes:
            return
        try:
            _download_rest(client, path, partial_path, on_bytes)
        except ServiceUnreachable:
            if attempt == MAX_ATTEMPTS:
                raise
            time.sleep(attempt * ATTEMPT_PAUSE_SECONDS)


def verify_archive(archive: Path, size_bytes: int, sha256: str) -> None:
    """Raises CorruptDownload and deletes the file if its size or SHA-256 is wrong; the next download starts over."""
    actual_bytes, actual_sha256 = archive.stat().st_size, sha256_file(archive)
    if (actual_bytes, actual_sha256) == (size_bytes, sha256):
        return
    archive.unlink()
    raise CorruptDownload(
        f"The download is corrupt: {actual_bytes} bytes with SHA-256 {actual_sha256} "
        f"instead of {size_bytes} bytes with {sha256}. It was deleted; run the command again."
    )


def unpack(archive: Path, destination: Path) -> dict[str, Any]:
    """Unpack into a temporary directory, verify every file, rename it to `destination`, and return the manifest."""
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.new")
    temporary.mkdir(parents=True)  # not by `tempfile`, which would set narrower permissions
    try:
        _extract(archive, temporary)
        manifest = verify(temporary)
        publish(temporary, destination)
    except (tarfile.TarError, ManifestMismatch) as error:
        raise CorruptDownload(f"{archive.name} is not a valid adapter archive: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _download_rest(client: Client, path: str, partial_path: Path, on_bytes: Callable[[int], None]) -> None:
    existing_bytes = _size(partial_path)
    with client.download(path, existing_bytes) as response:
        starts_over = existing_bytes and response.status_code != 206
        if starts_over:
            on_bytes(-existing_bytes)
        with partial_path.open("wb" if starts_over else "ab") as file:
            for block in response.iter_bytes(BLOCK_BYTES):
                file.write(block)
                on_bytes(len(block))


def _extract(archive: Path, directory: Path) -> None:
    with tarfile.open(archive, "r:") as tar:
        members = {member.name: member for member in tar if member.isreg()}
        root = _root_prefix(members)
        manifest = _read_manifest(tar, members[root + MANIFEST])
        (directory / MANIFEST).write_bytes(manifest)
        for name in _manifest_file_names(manifest):
            if root + name not in members:
                raise ManifestMismatch(f"{name} is missing")
            _extract_file(tar, members[root + name], directory / name)


def _root_prefix(members: dict[str, tarfile.TarInfo]) -> str:
    """The directory of the outermost manifest in the archive, with a trailing slash."""
    manifests = [name for name in members if PurePosixPath(name).name == MANIFEST]
    if not manifests:
        raise ManifestMismatch(f"it has no {MANIFEST}")
    return min(manifests, key=lambda name: name.count("/")).removesuffix(MANIFEST)


def _manifest_file_names(manifest: bytes) -> list[str]:
    try:
        names = list(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError):
        raise ManifestMismatch(f"{MANIFEST} is unreadable") from None
    for name in names:
        if not _stays_inside(name):
            raise ManifestMismatch(f"{MANIFEST} names {name!r}, which is outside the directory")
    return names


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts) and ":" not in parts[0]


def _read_manifest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(member)
    if source is None or member.size > MAX_MANIFEST_BYTES:
        raise ManifestMismatch(f"{MANIFEST} has {member.size} bytes")
    return source.read()


def _extract_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None, "a regular file"
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file, BLOCK_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
