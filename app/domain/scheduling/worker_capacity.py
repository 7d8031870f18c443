"""The capacity of a worker, the requirements of a job, and a sentence that names what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.domain.error_text.json_text import as_json
from app.domain.planning.duration import DEFAULT_CORE_FLOPS
from app.domain.planning.estimate import USABLE_MEMORY_SHARE, Device
from app.domain.planning.memory import DeviceKind

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=/:-]{0,62}")
LABEL_RULE = "1 to 63 letters, digits and . _ - = / :, the first a letter or a digit"
MAX_LABELS = 8
# Of the memory that nvidia-smi reports; the driver keeps the rest (an H100 reports 85.5 GB and offers 85.0, an L4 24.2
# and 23.7). The CUDA context of each trainer is a part of its plan, and so of its budget.
SHARED_MEMORY_SHARE = 0.98


@dataclass(frozen=True)
class WorkerCapacity:
    """The capacity of one GPU slot. None: unknown, so it does not limit the jobs.

    Several slots may share a GPU. A job has the budget of one slot, an equal part of the memory, or the whole GPU if it
    needs more; on several GPUs it always has them whole.
    """

    kind: DeviceKind
    memory_bytes: int  # of one GPU
    models: frozenset[str] | None = None
    labels: frozenset[str] | None = frozenset()
    gpus: int = 1
    slots_per_gpu: int = 1
    gpu_uuids: tuple[str, ...] = ()  # of the GPUs of a job; empty: unknown, so nothing is reserved on them

    @property
    def usable_bytes(self) -> int:
        """The memory that a plan may use on the whole GPU."""
        return int(USABLE_MEMORY_SHARE * self.memory_bytes)

    @property
    def shares_gpus(self) -> bool:
        """Whether other slots use the same GPUs, so that each job reserves its memory there."""
        return self.kind == "cuda" and self.slots_per_gpu > 1 and bool(self.gpu_uuids)

    @property
    def slot_bytes(self) -> int:
        """The budget of a slot."""
        if not self.shares_gpus:
            return self.memory_bytes
        return int(SHARED_MEMORY_SHARE * self.memory_bytes) // self.slots_per_gpu

    @property
    def usable_slot_bytes(self) -> int:
        """The memory that a plan may use in one slot."""
        return int(USABLE_MEMORY_SHARE * self.slot_bytes)

    @property
    def as_slot(self) -> WorkerCapacity:
        """The capacity without the other slots of the GPU, for a job that fits one slot."""
        return replace(self, memory_bytes=self.slot_bytes, slots_per_gpu=1)

    def has_room_for_slot(self, reserved_bytes: int) -> bool:
        """Whether a job of one slot may start beside those that reserve so many bytes of the GPU."""
        return not reserved_bytes or (self.gpus == 1 and reserved_bytes + self.slot_bytes <= self.memory_bytes)

    def needs_whole_gpu(self, needed_bytes: int | None) -> bool:
        """Whether a job with this requirement takes all slots of its GPUs. None: unknown."""
        fits_slot = self.gpus == 1 and needed_bytes is not None and needed_bytes <= self.usable_slot_bytes
        return self.shares_gpus and not fits_slot

    def budget_bytes(self, needed_bytes: int | None) -> int:
        """The memory that a job reserves on each of its GPUs."""
        return self.memory_bytes if self.needs_whole_gpu(needed_bytes) else self.slot_bytes

    def gpu_share(self, needed_bytes: int | None) -> float:
        """The share of each GPU that a job has, which counts as its usage."""
        return 1.0 if not self.shares_gpus or self.needs_whole_gpu(needed_bytes) else 1 / self.slots_per_gpu


@dataclass(frozen=True)
class JobRequirements:
    """What a job requires of its worker; the bytes are None until its files are validated."""

    base_model: str
    labels: frozenset[str] = frozenset()
    cpu_bytes: int | None = None
    cuda_bytes: int | None = None

    def memory_bytes(self, kind: DeviceKind) -> int:
        return (self.cpu_bytes if kind == "cpu" else self.cuda_bytes) or 0


def has_model(capacity: WorkerCapacity, requirements: JobRequirements) -> bool:
    return capacity.models is None or requirements.base_model in capacity.models


def has_labels(capacity: WorkerCapacity, requirements: JobRequirements) -> bool:
    return capacity.labels is None or requirements.labels <= capacity.labels


def has_memory(capacity: WorkerCapacity, requirements: JobRequirements) -> bool:
    return requirements.memory_bytes(capacity.kind) <= capacity.usable_bytes


def fits(capacity: WorkerCapacity, requirements: JobRequirements) -> bool:
    return (
        has_model(capacity, requirements) and has_labels(capacity, requirements) and has_memory(capacity, requirements)
    )


def missing_requirements(capacities: Sequence[WorkerCapacity], requirements: JobRequirements) -> str | None:
    """A sentence that names the requirement that no worker meets; None if one worker meets all of them."""
    if not capacities:
        return "No training worker is running."
    if any(fits(capacity, requirements) for capacity in capacities):
        return None
    with_model = [capacity for capacity in capacities if has_model(capacity, requirements)]
    if not with_model:
        return f"No running worker has the model {as_json(requirements.base_model)} with the registered files."
    with_labels = [capacity for capacity in with_model if has_labels(capacity, requirements)]
    if not with_labels:
        labels = ", ".join(sorted(requirements.labels))
        return f"No running worker with the model {as_json(requirements.base_model)} has the labels {labels}."
    largest = max(with_labels, key=lambda each: each.usable_bytes - requirements.memory_bytes(each.kind))
    required_gb, largest_gb = requirements.memory_bytes(largest.kind) / 1e9, largest.memory_bytes / 1e9
    return (
        f"No matching worker has enough memory: the job needs {required_gb:.2f} GB, the largest worker has "
        f"{largest_gb:.2f} GB."
    )


def whole_gpu_reason(capacities: Sequence[WorkerCapacity], requirements: JobRequirements) -> str | None:
    """A sentence for a job that fits no slot and waits for a whole shared GPU; None if a slot fits it."""
    fitting = [capacity for capacity in capacities if fits(capacity, requirements)]
    if not fitting or not all(capacity.needs_whole_gpu(requirements.cuda_bytes) for capacity in fitting):
        return None
    if all(capacity.gpus > 1 for capacity in fitting):
        return "The job runs on several GPUs: it starts when they are free as a whole."
    largest_gb = max(capacity.slot_bytes for capacity in fitting) / 1e9
    needed = (
        "an unknown amount of memory" if requirements.cuda_bytes is None else f"{requirements.cuda_bytes / 1e9:.2f} GB"
    )
    return (
        f"The job needs {needed}, and the largest slot of a GPU has {largest_gb:.2f} GB: it starts when a whole GPU "
        "is free."
    )


def worker_capacity(description: Mapping[str, Any]) -> WorkerCapacity:
    """The capacity in a worker's own description; memory that it does not state counts as unlimited."""
    device = worker_device(description)
    models = description.get("models")
    return WorkerCapacity(
        kind=device.kind if device else "cpu",
        memory_bytes=device.memory_bytes if device else 1 << 60,
        models=None if models is None else frozenset(models),
        labels=frozenset(description.get("labels") or ()),
        gpus=int(description.get("gpus_per_job") or 1),
        slots_per_gpu=int(description.get("slots_per_gpu") or 1),
        gpu_uuids=tuple(description.get("gpu_uuids") or ()),
    )


def worker_device(description: Mapping[str, Any]) -> Device | None:
    """The device in a worker's own description; None for a worker of a release without plans, which states none."""
    if description.get("kind") not in ("cpu", "cuda") or not description.get("memory_bytes"):
        return None
    cores = int(description.get("cpus") or 1)
    core_flops = float(description.get("core_flops") or DEFAULT_CORE_FLOPS)
    memory_bytes, gpus = int(description["memory_bytes"]), int(description.get("gpus_per_job") or 1)
    host_bytes = int(description.get("host_bytes") or 0) // gpus or None  # a worker of an earlier release states none
    return Device(
        description["kind"], str(description["device"]), memory_bytes, cores, core_flops, host_bytes, gpus=gpus
    )
