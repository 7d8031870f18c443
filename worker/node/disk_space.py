"""Reserve disk space for the last snapshot of an attempt before the trainer starts, and report full disks.

The last snapshot is written in the work directory and moved into storage. Within one file system the move takes no
space. With two file systems, space is reserved on both, so that the snapshot reaches storage, where every worker can
read it, even when other programs have filled the disks.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.artifacts.full_disk import RESERVED_SPACE_FILE, DiskSpace, estimate_disk_space, size_text
from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import Reason
from app.log import get_logger
from app.storage import StorageError
from app.system import model_files
from app.system.host import free_space
from worker.jobs.exit_classification import AttemptOutcome
from worker.jobs.lease import JobAttempt
from worker.node.resources import Resources

DIRECTORY_ENTRIES_BYTES = 256 << 10  # for new directories in storage when a snapshot is moved: a few blocks each
ADVICE = "Delete files, checkpoints and exports that are not needed, or enlarge the disk."
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "added_tokens.json",
    "special_tokens_map.json",
)

log = get_logger(__name__)


@dataclass(frozen=True)
class Disk:
    """A file system that an attempt writes to; `name` appears in messages for users."""

    name: str
    path: Path

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free


def describe_data_disk(directory: Path, low_percent: float) -> dict[str, Any]:
    """The disk of this host's data directory, for the workers' row."""
    try:
        space, is_low = free_space(directory, low_percent)
    except OSError as error:
        return {"directory": str(directory), "problem": f"it cannot be read: {error.strerror}"}
    return {"directory": str(directory), "problem": f"only {space}" if is_low else None}


def disks(resources: Resources, directory: Path) -> list[Disk]:
    """The file systems of an attempt: one, or two if work directories and storage are on different ones."""
    staging = resources.storage.staging
    directory = next(path for path in (directory, *directory.parents) if path.exists())
    if directory.stat().st_dev == staging.stat().st_dev:
        return [Disk("the data directory's disk", staging)]
    return [Disk("the worker's disk", directory), Disk("the storage disk", staging)]


def required_space(entry: CatalogEntry, base: Path, spec: JobSpec) -> DiskSpace:
    """The disk space that a job needs. Raises RefusedModel, OSError for a base whose directory cannot be read."""
    if not entry.decoder_layers:  # registered before entries had this field
        entry = model_files.read_catalog_entry(base)
    tokenizer = {path for pattern in TOKENIZER_PATTERNS for path in base.glob(pattern)}
    return estimate_disk_space(entry, spec, sum(path.stat().st_size for path in tokenizer))


def reserve(attempt: JobAttempt, space: DiskSpace) -> None:
    """Allocate the space of the last snapshot: a file of its planned size on each disk. Raises OSError."""
    on_worker, for_storing, on_storage = _reserve_paths(attempt)
    allocate(on_worker, space.snapshot_bytes)
    if len(disks(attempt.resources, attempt.directory)) == 1:
        allocate(for_storing, DIRECTORY_ENTRIES_BYTES)
    else:
        allocate(on_storage, space.snapshot_bytes + DIRECTORY_ENTRIES_BYTES)


def release(attempt: JobAttempt) -> None:
    """Delete the reserved files that still exist."""
    for path in _reserve_paths(attempt):
        path.unlink(missing_ok=True)


def storage_reserve_path(resources: Resources, job_id: str, attempt: int) -> Path:
    return resources.storage.staging / f"{RESERVED_SPACE_FILE}-{job_id}-{attempt}"


def allocate(path: Path, size_bytes: int) -> None:
    """Create a file with allocated blocks. Raises OSError and then leaves no file."""
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def shortage_outcome(resources: Resources, directory: Path, required_bytes: int) -> AttemptOutcome | None:
    """The outcome of an attempt if a disk has fewer than `required_bytes` free, else None."""
    full_disks = [disk for disk in disks(resources, directory) if disk.free_bytes < required_bytes]
    return _outcome(full_disks, required_bytes, is_measured=True) if full_disks else None


def disk_full_outcome(
    resources: Resources, directory: Path, required_bytes: int | None, error: OSError | None = None
) -> AttemptOutcome:
    """The outcome of an attempt that found a disk or the bucket full. The free space of a bucket, or under a quota
    (EDQUOT), is unknown."""
    if isinstance(error, StorageError):
        data = {"reason": Reason.STORAGE_FULL.value, "needed_bytes": required_bytes, "free_bytes": None}
        return AttemptOutcome(Reason.STORAGE_FULL, f"Files cannot be stored: {error.strerror}.", data=data)
    all_disks = disks(resources, directory)
    full_disks = [disk for disk in all_disks if required_bytes is not None and disk.free_bytes < required_bytes]
    is_measured = error is None or error.errno != errno.EDQUOT
    return _outcome(full_disks or all_disks, required_bytes, is_measured)


def _outcome(full_disks: Sequence[Disk], required_bytes: int | None, is_measured: bool) -> AttemptOutcome:
    """`data` has the sizes in bytes; of two disks those of the fuller one."""
    free_bytes = min(disk.free_bytes for disk in full_disks) if is_measured else None
    text = f"{' or '.join(disk.name for disk in full_disks)} is full"
    text = text[0].upper() + text[1:]
    sizes = [] if required_bytes is None else [f"an attempt needs about {size_text(required_bytes)}"]
    sizes += [] if free_bytes is None else [f"{size_text(free_bytes)} are free"]
    data = {"reason": Reason.STORAGE_FULL.value, "needed_bytes": required_bytes, "free_bytes": free_bytes}
    message = f"{text}{': ' if sizes else ''}{', '.join(sizes)}. {ADVICE}"
    return AttemptOutcome(Reason.STORAGE_FULL, message, data=data)


def _reserve_paths(attempt: JobAttempt) -> tuple[Path, Path, Path]:
    """On the worker's disk, for directory entries in storage when a snapshot is moved, and on another storage disk."""
    reserved = attempt.directory / RESERVED_SPACE_FILE
    on_storage = storage_reserve_path(attempt.resources, attempt.row.id, attempt.row.attempt)
    return reserved, reserved.with_name(f"{RESERVED_SPACE_FILE}-for-storing"), on_storage
