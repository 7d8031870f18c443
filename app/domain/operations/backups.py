"""The manifest of a backup, and whether this release can restore it.

A backup is a dump of the database and the stored objects that its rows name. Objects are immutable, so backups of one
directory share them: see `app.services.operations.backups.repository`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

FORMAT = 1


class BackupError(Exception):
    """A backup, a restore or a check cannot go on; the message says what to do."""


@dataclass(frozen=True)
class ObjectDigest:
    size_bytes: int
    sha256: str


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
        digests = {key: ObjectDigest(**digest) for key, digest in body.pop("objects").items()}
        return BackupManifest(**{**body, "dump": ObjectDigest(**body["dump"]), "objects": digests})


def check_schema(manifest: BackupManifest, head: str, known: Collection[str], may_migrate: bool) -> None:
    """Raises BackupError if this release cannot use the database of the backup.

    `head` is the newest schema revision of this release, `known` all of them.
    """
    revision, version = manifest.schema_revision, manifest.tunery_version
    if revision == head:
        return
    if revision not in known:
        raise BackupError(
            f"Tunery {version} made the backup {manifest.name} with the schema {revision}, which is newer than this "
            f"release ({head}). Install Tunery {version} or newer, and restore it with that."
        )
    if not may_migrate:
        raise BackupError(
            f"Tunery {version} made the backup {manifest.name} with the schema {revision}; this release has {head}. "
            f"Restore it with Tunery {version}, or give --migrate to migrate the restored database to this release."
        )
