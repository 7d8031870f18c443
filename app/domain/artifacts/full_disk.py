"""A full disk: how it is recognised, how long a job waits before it is tried again, and how much space a job needs.

A job that meets a full disk loses nothing: its last snapshot goes to space that was reserved when the attempt started.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.planning.memory import trained_parameters, whole_modules

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
WAITING_FOR_STORAGE = "waiting_for_storage"  # the phase of a job
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 1800.0
RESERVED = "reserved-space"  # a file in the work directory; a trainer removes it before it writes its last snapshot
# Directory entries, manifests and the random states of several processes. A tensor takes some 150 bytes of a file's
# header, and a trained parameter up to five tensors: itself, two moments, a step count, its value at the best step.
OVERHEAD_BYTES = 512 << 10
HEADER_BYTES = 1024  # of a trained parameter
TRAINED_BYTES = 4  # float32
COPIES = 3  # of the adapter while it is published: the trainer's, the worker's copy of it, the archive


@dataclass(frozen=True)
class Space:
    """What a job writes, in bytes: an upper bound of a snapshot, an estimate of the rest."""

    snapshot_bytes: int
    result_bytes: int  # everything that is written after the last snapshot, until the job has succeeded

    @property
    def next_try_bytes(self) -> int:
        """Free at the start of an attempt that goes on from a last snapshot: its copy, the space for another one."""
        return 2 * self.snapshot_bytes + self.result_bytes


def is_disk_full(error: BaseException) -> bool:
    """Also of what safetensors raises, which wraps the system's error in one of its own."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    text = str(error).lower()
    return "no space left on device" in text or "quota exceeded" in text


def pause_seconds(waited_seconds: float) -> float:
    """The pause before the next try, where the first full disk was met `waited_seconds` ago.

    30, 60, 120, ... up to 1,800 seconds, without a counter: each pause is as long as all before it and 30 s more.
    """
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS + max(0.0, waited_seconds))


def duration_text(seconds: float) -> str:
    """30 -> "30 s", 1800 -> "30 min", 86400 -> "24 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def size_text(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.2f} GB"


def space_of(entry: CatalogEntry, spec: JobSpec, tokenizer_bytes: int) -> Space:
    """What a job with this spec writes. `tokenizer_bytes` are copied into every adapter directory."""
    parameters = trained_parameters(entry, spec.lora)
    values = 4 if spec.hyperparameters.promote_best else 3  # of a parameter: itself, two moments, and its best
    whole = len(whole_modules(entry, spec.lora)) * (entry.decoder_layers + 1)  # norms: as many as there can be
    layers = max(len(entry.layers), entry.decoder_layers * len(entry.target_modules))
    overhead_bytes = OVERHEAD_BYTES + HEADER_BYTES * (3 * layers + whole)  # A, B and DoRA's magnitudes of each layer
    adapter_bytes = TRAINED_BYTES * (parameters + whole * entry.hidden_size)
    return Space(
        snapshot_bytes=values * adapter_bytes + overhead_bytes,
        result_bytes=COPIES * (adapter_bytes + tokenizer_bytes + OVERHEAD_BYTES),
    )
