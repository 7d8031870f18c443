"""Full disks: how they are detected, the pause before the next attempt, and the disk space that a job needs.

A job loses no step when the disk fills up: its last snapshot is written to space reserved at the start of the attempt.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.planning.adapter_size import fully_trained_modules, trained_parameters

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
WAITING_FOR_STORAGE = "waiting_for_storage"  # the phase of a job
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 30.0, 1800.0
RESERVED_SPACE_FILE = "reserved-space"  # in the work directory; the trainer removes it before its last snapshot
# Directory entries, manifests and the random states of several processes. A tensor takes some 150 bytes of a file's
# header, and a trained parameter has up to five tensors: itself, two moments, a step count, its value at the best step.
OVERHEAD_BYTES = 512 << 10
HEADER_BYTES = 1024  # per trained parameter
TRAINED_BYTES = 4  # float32
COPIES = 2  # of the adapter during its publication: the trainer's and the worker's


@dataclass(frozen=True)
class DiskSpace:
    """The bytes that a job writes: an upper bound for a snapshot, an estimate for the rest."""

    snapshot_bytes: int
    result_bytes: int  # written after the last snapshot until the job has succeeded

    @property
    def next_attempt_bytes(self) -> int:
        """Required at the start of an attempt that resumes: the copy of the snapshot, and space for the next one."""
        return 2 * self.snapshot_bytes + self.result_bytes


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk is full; also true for safetensors' own error, which has only the text of the system's."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    text = str(error).lower()
    return "no space left on device" in text or "quota exceeded" in text


def pause_seconds(waited_seconds: float) -> float:
    """The pause before the next attempt, `waited_seconds` after the disk was first found full.

    30, 60, 120, ... up to 1,800 seconds, without a counter: each pause is the sum of all earlier ones plus 30 s.
    """
    return min(MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS + max(0.0, waited_seconds))


def size_text(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.2f} GB"


def estimate_disk_space(entry: CatalogEntry, spec: JobSpec, tokenizer_bytes: int) -> DiskSpace:
    """The disk space of a job with this spec. `tokenizer_bytes` are copied into every adapter directory."""
    parameters = trained_parameters(entry, spec.lora)
    values = 4 if spec.hyperparameters.promote_best else 3  # per parameter: itself, two moments, its best value
    whole = len(fully_trained_modules(entry, spec.lora)) * (entry.decoder_layers + 1)  # the maximum number of norms
    layers = max(len(entry.layers), entry.decoder_layers * len(entry.target_modules))
    overhead_bytes = OVERHEAD_BYTES + HEADER_BYTES * (3 * layers + whole)  # A, B and DoRA's magnitudes per layer
    adapter_bytes = TRAINED_BYTES * (parameters + whole * entry.hidden_size)
    return DiskSpace(
        snapshot_bytes=values * adapter_bytes + overhead_bytes,
        result_bytes=COPIES * (adapter_bytes + tokenizer_bytes + OVERHEAD_BYTES),
    )
