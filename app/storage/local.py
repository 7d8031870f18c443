"""Storage in a local directory: files are staged beside the objects, flushed to disk and renamed into place.

An object of segments is a directory of hard links to the parts of an upload, read as one file: gigabytes that were
uploaded in parts are neither copied nor stored twice. The name of a segment is a dot and six digits, and no key begins
with a dot, so that such a directory is distinct from one that contains other objects.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from app.storage.base import DownloadHeaders, PartsReader, StoredObject, check_key, object_not_found
from app.system.files import sync

BUFFER_BYTES = 1 << 20
SEGMENT = re.compile(r"\.\d{6}")


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
        sync(staged)
        size_bytes = staged.stat().st_size
        os.replace(staged, destination)
        sync(destination.parent)
        return StoredObject(key, size_bytes)

    def compose(self, key: str, parts: Sequence[str]) -> StoredObject:
        destination = self._path(key)
        destination.parent.mkdir(parents=True, exist_ok=True)
        staged = self.staging / f"compose-{secrets.token_hex(8)}"
        try:
            size_bytes = self._compose(staged, parts)
            os.replace(staged, destination)
        except FileNotFoundError as error:
            raise object_not_found(self._key_of(error.filename)) from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)  # a directory of segments, or one file
            staged.unlink(missing_ok=True)
        sync(destination.parent)
        return StoredObject(key, size_bytes)

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with _naming_key(key):
            return _open_segments(path) if path.is_dir() else path.open("rb")

    def stat(self, key: str) -> StoredObject:
        path = self._path(key)
        with _naming_key(key):
            if not path.is_dir():
                return StoredObject(key, path.stat().st_size)
            sizes = [segment.stat().st_size for segment in _segments_of(path)]
        if not sizes:
            raise object_not_found(key)
        return StoredObject(key, sum(sizes))

    def delete(self, key: str) -> None:
        """Delete an object; one of segments is first renamed, so that readers never see a part of it."""
        path = self._path(key)
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif _segments_of(path):
            renamed = self.staging / f"deleted-{secrets.token_hex(8)}"
            os.replace(path, renamed)
            shutil.rmtree(renamed)

    def older_than(self, prefix: str, moment: float) -> Iterator[str]:
        """By ctime, the time of the rename or link that stored the object: its content may have been written before."""
        for parent, directories, names in os.walk(self._path(prefix)):
            if _segment_names([*directories, *names]):
                directories.clear()
                names = [""]
            for name in names:
                if name.startswith("."):
                    continue  # no key: a file of another program
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ctime < moment:
                        yield path.relative_to(self.objects).as_posix()

    def delete_unfinished(self, moment: float) -> int:
        del moment  # everything unfinished is in `staging`
        return 0

    def check(self, size_bytes: int = 1) -> None:
        with tempfile.TemporaryFile(dir=self.staging) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            file.write(b"x")
            file.flush()

    def download_url(self, key: str, headers: DownloadHeaders) -> str | None:
        del key, headers  # the API sends the files itself
        return None

    def _path(self, key: str) -> Path:
        return self.objects / check_key(key)

    def _key_of(self, path: str) -> str:
        return Path(path).relative_to(self.objects).as_posix() if path.startswith(f"{self.objects}/") else path

    def _compose(self, staged: Path, parts: Sequence[str]) -> int:
        """Write the object at `staged`; of one part or none as a plain file, which is faster to open."""
        sources = [self._path(part) for part in parts]
        if len(sources) > 1:
            size_bytes = _link_segments(staged, sources)
        elif sources:
            os.link(sources[0], staged)
            size_bytes = staged.stat().st_size
        else:
            staged.touch()
            size_bytes = 0
        sync(staged)
        return size_bytes

    def _on_this_filesystem(self, source: Path) -> Path:
        """Copy a file of another filesystem into staging first, as a rename is atomic only within one filesystem."""
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


@contextlib.contextmanager
def _naming_key(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise object_not_found(key) from None


def _link_segments(directory: Path, sources: Sequence[Path]) -> int:
    """Create `directory` as an object of `sources` in this order; its size in bytes. Raises FileNotFoundError."""
    directory.mkdir()
    for number, source in enumerate(sources):
        os.link(source, directory / f".{number:06d}")
    return sum(path.stat().st_size for path in _segments_of(directory))


def _segments_of(directory: Path) -> list[Path]:
    """The segments in order; none if `directory` is no object."""
    return [directory / name for name in _segment_names(os.listdir(directory))]


def _segment_names(entries: Sequence[str]) -> list[str]:
    """The segments among the entries of a directory, in order; none if an entry is a key, so the directory no object.

    Other names that begin with a dot are files of other programs: rsync, NFS and editors leave some.
    """
    if not all(name.startswith(".") for name in entries):
        return []
    return sorted(name for name in entries if SEGMENT.fullmatch(name))


def _open_segments(directory: Path) -> BinaryIO:
    """A buffered, seekable reader of the segments. Raises FileNotFoundError if `directory` has none."""
    paths = _segments_of(directory)
    if not paths:
        raise FileNotFoundError(directory)
    return io.BufferedReader(_SegmentReader(paths), BUFFER_BYTES)


class _SegmentReader(PartsReader):
    """Reads segments as one file, with only one of them open at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__([path.stat().st_size for path in paths])
        self._paths = paths
        self._index = -1
        self._file: io.FileIO | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _read_part(self, index: int, offset: int, buffer: memoryview) -> int:
        if self._file is None or index != self._index:
            if self._file is not None:
                self._file.close()
            self._file, self._index = io.FileIO(self._paths[index]), index
        self._file.seek(offset)
        return self._file.readinto(buffer) or 0
