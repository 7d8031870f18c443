"""The stored objects that rows name: of files, of upload parts, and of the snapshots and tokens of jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from app.db import files
from app.db.jobs import checkpoints
from app.db.tables import Export, File, Job, JobTokens, Snapshot, UploadPart
from app.system.files import ObjectDigest

PREFIXES = ("files", "jobs", "uploads", "exports")  # of all keys that rows name
MANIFEST = "MANIFEST.json"  # the file of a snapshot whose digest is in its row


@dataclass(frozen=True)
class NamedObject:
    """An object that a row names. `size_bytes` and `sha256` are None where the row does not have them."""

    key: str
    owner: str  # "file file-abc (train.jsonl)", for messages
    size_bytes: int | None = None
    sha256: str | None = None

    def difference(self, digest: ObjectDigest) -> str | None:
        """How content with this digest differs from what the row says, as far as the row has it."""
        if self.size_bytes not in (None, digest.size_bytes):
            return "wrong size"
        return None if self.sha256 in (None, digest.sha256) else "wrong content"


def named_objects(connection: Connection) -> Iterator[NamedObject]:
    stored = select(File.id, File.filename, File.storage_key, File.bytes, File.sha256).where(File.purged_at.is_(None))
    for row in connection.execute(stored):
        yield NamedObject(row.storage_key, f"file {row.id} ({row.filename})", row.bytes, row.sha256)
    parts = select(UploadPart.upload_id, UploadPart.storage_key, UploadPart.bytes, UploadPart.sha256, UploadPart.start)
    for part in connection.execute(parts):
        # the digest of a later piece of a stream may be that of the content up to its end
        sha256 = None if part.start else part.sha256
        yield NamedObject(part.storage_key, f"upload {part.upload_id}", part.bytes, sha256)
    snapshots = select(Snapshot.job_id, Snapshot.step, Snapshot.storage_keys, Snapshot.manifest_sha256)
    for snapshot in connection.execute(snapshots):
        owner = f"snapshot of job {snapshot.job_id} at step {snapshot.step}"
        for name, key in snapshot.storage_keys.items():
            yield NamedObject(key, owner, sha256=snapshot.manifest_sha256 if name == MANIFEST else None)
    for tokens in connection.execute(select(JobTokens.job_id, JobTokens.storage_keys, JobTokens.sha256)):
        for role, key in tokens.storage_keys.items():
            yield NamedObject(key, f"{role} tokens of job {tokens.job_id}", sha256=tokens.sha256[role])


def keys_without_row(session: Session, keys: Sequence[str]) -> list[str]:
    """Those that no row names and no running attempt writes."""
    unnamed = set(keys) - files.keys_in_use(session, keys) - checkpoints.storage_keys(session)
    return abandoned(session, unnamed)


def abandoned(session: Session, unnamed: Collection[str]) -> list[str]:
    """Those of the keys without a row that no running attempt writes."""
    running: set[tuple[str, ...]] = set()  # the first components of the keys that running attempts write
    for prefix, table in (("jobs", Job), ("exports", Export)):
        held = session.execute(select(table.id, table.attempt).where(table.lease_owner.is_not(None)))
        running |= {(prefix, row.id, "attempts", str(row.attempt)) for row in held}
    return sorted(key for key in unnamed if tuple(key.split("/")[:4]) not in running)
