"""Storage in a directory: staged beside the objects, flushed to disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from app.storage.base import StoredObject, check_key


class LocalStorage:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.staging = root / "staging"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.staging.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, source: Path) -> StoredObject:
        destination = self._path(key)
        destination.parent.mkdir(parents=True, exist_ok=True)
        staged = self._on_this_filesystem(source)
        _fsync(staged)
        size_bytes = staged.stat().st_size
        os.replace(staged, destination)
        _fsync(destination.parent)
        return StoredObject(key, size_bytes)

    def open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object", key) from None

    def stat(self, key: str) -> StoredObject:
        try:
            return StoredObject(key, self._path(key).stat().st_size)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object", key) from None

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self.objects / check_key(key)

    def _on_this_filesystem(self, source: Path) -> Path:
        """Rename is atomic only within one filesystem, so a file from another one is copied into staging first."""
        if source.stat().st_dev == self.objects.stat().st_dev:
            return source
        staged = self.staging / f"copy-{os.getpid()}-{source.name}"
        try:
            shutil.copyfile(source, staged)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        source.unlink()
        return staged


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
