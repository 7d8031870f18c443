"""A directory of adapters by the SHA-256 of their archives, and the digest of every name that was resolved.

    <cache>/adapters/<sha256>/     the files of an adapter, complete or absent
    <cache>/names/<sha256 of the name>.json     {"name", "sha256"}
    <cache>/bases/<sha256 of the path>.json     {"signature", "manifest_sha256"} of a served base model

Every entry is written under a temporary name and renamed, so several processes may use one directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
CHUNK_BYTES = 1 << 20


class DamagedAdapter(Exception):
    """An archive whose content differs from its manifest."""


class AdapterCache:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def directory_of(self, sha256: str, download: Callable[[Path], None]) -> Path:
        """The adapter's directory. `download` writes the archive to a new file if the adapter is not in the cache.

        Raises DamagedAdapter, OSError, and what `download` raises.
        """
        destination = self._directory / "adapters" / sha256
        if not destination.is_dir():
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=destination.parent) as temporary:
                download(Path(temporary) / "adapter.tar")
                _publish(_unpack(Path(temporary) / "adapter.tar"), destination)
        return destination

    def remember(self, name: str, sha256: str) -> None:
        _write_json(self._name_path(name), {"name": name, "sha256": sha256})

    def forget(self, name: str) -> None:
        self._name_path(name).unlink(missing_ok=True)

    def remembered(self, name: str) -> Path | None:
        """The directory of an adapter that was resolved before; None if there is none."""
        entry = _read_json(self._name_path(name))
        directory = self._directory / "adapters" / str(entry.get("sha256"))
        return directory if entry and directory.is_dir() else None

    def base_manifest_sha256(self, base: Path) -> str:
        """The SHA-256 of a base model's directory as Tunery computes it; hashed again only after a change.

        Raises OSError.
        """
        path = self._directory / "bases" / f"{_sha256_text(str(base.resolve()))}.json"
        signature = [[file.name, *_stat(file)] for file in _files(base)]
        entry = _read_json(path)
        if entry.get("signature") != signature:
            entry = {"signature": signature, "manifest_sha256": hash_base(base)}
            _write_json(path, entry)
        return str(entry["manifest_sha256"])

    def _name_path(self, name: str) -> Path:
        return self._directory / "names" / f"{_sha256_text(name)}.json"


def read_manifest(directory: Path) -> dict[str, Any]:
    return _read_json(directory / MANIFEST)


def hash_base(directory: Path) -> str:
    """The SHA-256 of {name: {"bytes", "sha256"}} of a directory's files, as canonical JSON. Raises OSError."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256_file(path)} for path in _files(directory)}
    return _sha256_text(json.dumps(files, sort_keys=True, separators=(",", ":")))


def _unpack(archive: Path) -> Path:
    """Unpack beside the archive, verify each file with the manifest, return the directory. Raises DamagedAdapter."""
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(archive.parent, filter="data")
    except tarfile.TarError as error:
        raise DamagedAdapter(f"the archive cannot be unpacked: {error}") from error
    directory = archive.parent / "adapter"
    expected = read_manifest(directory).get("files", {})
    actual = {path.name: _sha256_file(path) for path in _files(directory) if path.name != MANIFEST}
    if not expected or actual != {name: entry.get("sha256") for name, entry in expected.items()}:
        raise DamagedAdapter(f"the files of the archive differ from its {MANIFEST}")
    return directory


def _publish(directory: Path, destination: Path) -> None:
    try:
        directory.rename(destination)
    except OSError:  # another process was faster
        if not destination.is_dir():
            raise
        shutil.rmtree(directory, ignore_errors=True)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))


def _stat(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is missing or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(temporary, path)
