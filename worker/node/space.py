"""Disk space for the last snapshot of an attempt, reserved before the trainer starts; and what is said without it.

The last snapshot is written in the work directory and moved into storage. On one file system the move takes no space.
Where they are two, space is reserved on both, so that the snapshot is in storage, for every worker, when others have
filled the disks.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.db.tables import Job
from app.domain.artifacts.full_disk import RESERVED, Space, size_text, space_of
from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import Reason
from app.log import get_logger
from app.system import model_files
from worker.jobs.exit_classification import Outcome
from worker.node.resources import Resources

ENTRIES_BYTES = 256 << 10  # of new directories in storage: a few blocks each, where a snapshot is moved
ADVICE = "Free space there (delete files, checkpoints and exports that nobody needs) or enlarge it."
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
    """A file system that an attempt writes to; `name` is what users read of it."""

    name: str
    path: Path

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free


def disks(resources: Resources, directory: Path) -> list[Disk]:
    """One, or two where work directories and storage lie on different file systems."""
    staging = resources.storage.staging
    directory = next(path for path in (directory, *directory.parents) if path.exists())
    if directory.stat().st_dev == staging.stat().st_dev:
        return [Disk("the data directory's disk", staging)]
    return [Disk("the worker's own disk", directory), Disk("the storage's disk", staging)]


def needed(entry: CatalogEntry, base: Path, spec: JobSpec) -> Space:
    """What a job writes. Raises RefusedModel, OSError for a base whose directory cannot be read."""
    if not entry.decoder_layers:  # registered before entries had it
        entry = model_files.read_catalog_entry(base)
    tokenizer = {path for pattern in TOKENIZER_PATTERNS for path in base.glob(pattern)}
    return space_of(entry, spec, sum(path.stat().st_size for path in tokenizer))


def reserve(resources: Resources, job: Job, directory: Path, space: Space) -> None:
    """Allocate the space of the last snapshot, really: a file of its planned size on each disk. Raises OSError."""
    allocate(directory / RESERVED, space.snapshot_bytes)
    if len(disks(resources, directory)) == 1:
        allocate(_for_storing(directory), ENTRIES_BYTES)
    else:
        allocate(in_storage(resources, job.id, job.attempt), space.snapshot_bytes + ENTRIES_BYTES)


def release(resources: Resources, job: Job, directory: Path) -> None:
    """Give back what is still reserved."""
    for path in (directory / RESERVED, _for_storing(directory), in_storage(resources, job.id, job.attempt)):
        path.unlink(missing_ok=True)


def in_storage(resources: Resources, job_id: str, attempt: int) -> Path:
    return resources.storage.staging / f"{RESERVED}-{job_id}-{attempt}"


def allocate(path: Path, size_bytes: int) -> None:
    """A file whose blocks are allocated. Raises OSError and leaves nothing."""
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def shortage(resources: Resources, directory: Path, wanted_bytes: int) -> Outcome | None:
    """The end of an attempt for which there is too little space; None where there is enough."""
    lacking = [disk for disk in disks(resources, directory) if disk.free_bytes < wanted_bytes]
    return _outcome(lacking, wanted_bytes, is_measured=True) if lacking else None


def full(resources: Resources, directory: Path, wanted_bytes: int | None, error: OSError | None = None) -> Outcome:
    """The end of an attempt that met a full disk. What is free is not known of a quota."""
    everything = disks(resources, directory)
    lacking = [disk for disk in everything if wanted_bytes is not None and disk.free_bytes < wanted_bytes]
    is_measured = error is None or error.errno != errno.EDQUOT
    return _outcome(lacking or everything, wanted_bytes, is_measured)


def _outcome(lacking: Sequence[Disk], wanted_bytes: int | None, is_measured: bool) -> Outcome:
    """`data` has bytes; of two disks those of the fuller one."""
    free_bytes = min(disk.free_bytes for disk in lacking) if is_measured else None
    text = f"{' or '.join(disk.name for disk in lacking)} is full"
    text = text[0].upper() + text[1:]
    parts = [] if wanted_bytes is None else [f"an attempt needs about {size_text(wanted_bytes)}"]
    parts += [] if free_bytes is None else [f"{size_text(free_bytes)} are free"]
    data = {"reason": Reason.STORAGE_FULL.value, "needed_bytes": wanted_bytes, "free_bytes": free_bytes}
    return Outcome(Reason.STORAGE_FULL, f"{text}{': ' if parts else ''}{', '.join(parts)}. {ADVICE}", data=data)


def _for_storing(directory: Path) -> Path:
    return directory / f"{RESERVED}-for-storing"
