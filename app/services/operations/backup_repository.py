"""A directory of backups, which share their objects.

    DIRECTORY/
      tunery-backups            marks the directory; locked while a backup is made
      objects/KEY               the stored objects of all backups
      backups/NAME/             database.dump, manifest.json, and files of the data directory
      unfinished/               what an interrupted backup left; deleted by the next one

A file is written in `unfinished`, flushed to disk and renamed, and a backup becomes visible by the rename of its
directory. So a full disk, or a crash, leaves the earlier backups as they were.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from app.storage.base import check_key
from app.system.files import ObjectDigest, ReadableFile, copy_and_hash, sync

FORMAT = 1  # of the manifest
MARKER = "tunery-backups"
DUMP = "database.dump"
MANIFEST = "manifest.json"
NAME_FORMAT = "%Y-%m-%dT%H-%M-%S.%fZ"
IGNORED_NAMES = frozenset({"lost+found"})  # at the root of a mounted disk


class BackupError(Exception):
    """A backup, a restore or a check cannot go on; the message says what to do."""


class BackupNotFound(BackupError):
    """The repository has no backup of that name."""


class UnsuitableDirectory(BackupError):
    """Another directory must be given."""


@dataclass(frozen=True)
class BackupManifest:
    name: str
    created_at: str  # ISO 8601, UTC
    tunery_version: str
    schema_revision: str
    dump: ObjectDigest
    objects: Mapping[str, ObjectDigest]  # by storage key
    damaged: Mapping[str, str] = field(default_factory=dict)  # storage key -> what was wrong with it in storage

    @property
    def size_bytes(self) -> int:
        return self.dump.size_bytes + sum(digest.size_bytes for digest in self.objects.values())

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> BackupManifest:
        """Raises BackupError for a manifest of another format."""
        body = json.loads(text)
        if body.pop("format", None) != FORMAT:
            raise BackupError("A newer release of Tunery made this backup. Restore it with that release.")
        return TypeAdapter(BackupManifest).validate_python(body)


class BackupRepository:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.marker = root / MARKER
        self.objects = root / "objects"
        self.backups = root / "backups"
        self.unfinished = root / "unfinished"
        self._changed: set[Path] = set()  # directories with new entries that are not flushed yet

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory if it is missing, and lock it. Raises BackupError if it is another's or in use."""
        if self.root.exists() and not self.marker.exists() and set(os.listdir(self.root)) - IGNORED_NAMES:
            raise UnsuitableDirectory(
                f"{self.root} is neither empty nor a directory of backups. Choose another directory."
            )
        for directory in (self.root, self.objects, self.backups):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.marker.open("a") as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BackupError(f"Another backup or restore uses {self.root}. Try again when it has ended.") from None
            shutil.rmtree(self.unfinished, ignore_errors=True)
            self.unfinished.mkdir(mode=0o700)
            try:
                yield
            finally:
                shutil.rmtree(self.unfinished, ignore_errors=True)

    @contextlib.contextmanager
    def locked_for_reading(self, wait: bool) -> Iterator[None]:
        """Keep objects from being deleted. Raises BackupError, unless it is to `wait`, while a backup is made."""
        self._check_marker()
        with self.marker.open("rb") as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise BackupError(f"A backup into {self.root} is being made. Try again when it has ended.") from None
            yield

    def names(self) -> list[str]:
        """The names of the backups, oldest first."""
        self._check_marker()
        return sorted(path.parent.name for path in self.backups.glob(f"*/{MANIFEST}"))

    def next_name(self, now: datetime) -> str:
        """The time, or just after the name of the newest backup if the clock was ahead then: names are their order."""
        names = self.names()
        name = now.astimezone(UTC).strftime(NAME_FORMAT)
        if not names or name > names[-1]:
            return name
        return (datetime.strptime(names[-1], NAME_FORMAT) + timedelta(microseconds=1)).strftime(NAME_FORMAT)

    def manifest(self, name: str | None = None) -> BackupManifest:
        """The manifest of one backup; default: of the newest. Raises BackupError."""
        names = self.names()
        if not names:
            raise BackupError(f"{self.root} contains no complete backup.")
        if name is not None and name not in names:
            raise BackupNotFound(f"{self.root} has no backup {name!r}. It has: {', '.join(names)}.")
        text = (self.backups / (name or names[-1]) / MANIFEST).read_text(encoding="utf-8")
        return BackupManifest.from_json(text)

    def digests(self) -> dict[str, ObjectDigest]:
        """The digests of all objects of all backups, by storage key."""
        digests: dict[str, ObjectDigest] = {}
        for name in self.names():
            digests.update(self.manifest(name).objects)
        return digests

    def path(self, key: str) -> Path:
        return self.objects / check_key(key)

    def add(self, key: str, source: ReadableFile) -> ObjectDigest:
        """Write an object, which `publish` makes durable. Raises OSError, after which nothing is added."""
        partial = self.unfinished / secrets.token_hex(8)
        with partial.open("xb") as target:
            digest = copy_and_hash(source, target)
            target.flush()
            os.fsync(target.fileno())
        destination = self.path(key)
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(destination)
        self._changed |= {path for path in destination.parents if path.is_relative_to(self.objects)}
        return digest

    def publish(self, staged: Path, manifest: BackupManifest) -> None:
        """Make a backup visible: `staged` is a directory below `unfinished` with the dump and the other files."""
        (staged / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        for path in (*self._changed, *staged.iterdir(), staged):
            sync(path)
        self._changed.clear()
        staged.rename(self.backups / manifest.name)
        sync(self.backups)

    def delete_old(self, keep: int) -> list[str]:
        """Delete all but the newest `keep` backups, and objects that none of these names. Returns the deleted names."""
        with self.locked():
            names = self.names()
            deleted = names[: max(0, len(names) - keep)]
            for name in deleted:
                (self.backups / name).rename(self.unfinished / name)  # a reader sees a whole backup or none
            named = self.digests()
            for path in [path for path in self.objects.rglob("*") if path.is_file()]:
                if path.relative_to(self.objects).as_posix() not in named:
                    path.unlink()
            return deleted

    def _check_marker(self) -> None:
        if not self.marker.exists():
            raise UnsuitableDirectory(f"{self.root} is not a directory of backups: it has no file {MARKER}.")
