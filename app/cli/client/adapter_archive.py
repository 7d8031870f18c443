"""An adapter's archive on its way here: fetched with resume, checked, unpacked by its manifest, renamed into place.

Nothing in the archive is trusted: names come from the manifest alone and must stay inside the directory, bytes count
only with the SHA-256 that the manifest gives, and the archive itself only with the one that the server gave.
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

from app.cli.errors import CliError, Unreachable
from app.system.artifact_directory import MANIFEST, ManifestMismatch, publish, sha256_file, verify

if TYPE_CHECKING:
    from app.cli.client.http import Client

BLOCK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 16 << 20
ATTEMPTS = 5  # a connection that breaks off is taken up again where it broke
ATTEMPT_PAUSE_SECONDS = 1.0


class Refused(CliError):
    """What arrived is not what the server promised."""


def fetch(client: Client, path: str, part: Path, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
    """Bring `part` to its full size, going on from what is already there."""
    for attempt in range(1, ATTEMPTS + 1):
        if _size(part) >= size_bytes:
            return
        try:
            _fetch_rest(client, path, part, on_bytes)
        except Unreachable:
            if attempt == ATTEMPTS:
                raise
            time.sleep(attempt * ATTEMPT_PAUSE_SECONDS)


def check(archive: Path, size_bytes: int, sha256: str) -> None:
    """Raises Refused and removes the file, so that the next download begins anew."""
    found_bytes, found = archive.stat().st_size, sha256_file(archive)
    if (found_bytes, found) == (size_bytes, sha256):
        return
    archive.unlink()
    raise Refused(
        f"The download is not the archive that the server promised: {found_bytes} bytes with SHA-256 {found} "
        f"instead of {size_bytes} bytes with {sha256}. It was thrown away; run the command again."
    )


def unpack(archive: Path, destination: Path) -> dict[str, Any]:
    """Unpack beside `destination`, verify every file, rename into place, return the manifest."""
    aside = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.new")
    aside.mkdir(parents=True)  # with the user's own permissions, which `tempfile` would narrow
    try:
        _extract(archive, aside)
        manifest = verify(aside)
        publish(aside, destination)
    except (tarfile.TarError, ManifestMismatch) as error:
        raise Refused(f"{archive.name} is not an adapter's archive: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _fetch_rest(client: Client, path: str, part: Path, on_bytes: Callable[[int], None]) -> None:
    have = _size(part)
    with client.download(path, have) as response:
        starts_over = have and response.status_code != 206
        if starts_over:
            on_bytes(-have)
        with part.open("wb" if starts_over else "ab") as file:
            for block in response.iter_bytes(BLOCK_BYTES):
                file.write(block)
                on_bytes(len(block))


def _extract(archive: Path, directory: Path) -> None:
    with tarfile.open(archive, "r:") as tar:
        members = {member.name: member for member in tar if member.isreg()}
        top = _top(members)
        manifest = _read(tar, members[top + MANIFEST])
        (directory / MANIFEST).write_bytes(manifest)
        for name in _names(manifest):
            if top + name not in members:
                raise ManifestMismatch(f"{name} is missing")
            _write(tar, members[top + name], directory / name)


def _top(members: dict[str, tarfile.TarInfo]) -> str:
    """The folder that everything lies in, with its slash: that of the outermost manifest."""
    manifests = [name for name in members if PurePosixPath(name).name == MANIFEST]
    if not manifests:
        raise ManifestMismatch(f"there is no {MANIFEST} in it")
    return min(manifests, key=lambda name: name.count("/")).removesuffix(MANIFEST)


def _names(manifest: bytes) -> list[str]:
    try:
        names = list(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError):
        raise ManifestMismatch(f"{MANIFEST} is unreadable") from None
    for name in names:
        if not _stays_inside(name):
            raise ManifestMismatch(f"{MANIFEST} names {name!r}, which would lie outside the directory")
    return names


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts) and ":" not in parts[0]


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(member)
    if source is None or member.size > MAX_MANIFEST_BYTES:
        raise ManifestMismatch(f"{MANIFEST} has {member.size} bytes")
    return source.read()


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None, "a regular file"
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file, BLOCK_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
