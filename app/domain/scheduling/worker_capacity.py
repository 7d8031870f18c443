"""The capacity of a worker, the requirements of a job, and a sentence that names what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.error_text.json_text import as_json
from app.domain.planning.duration import DEFAULT_CORE_FLOPS
from app.domain.planning.estimate import USABLE_MEMORY_SHARE, Device
from app.domain.planning.memory import DeviceKind

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=/:-]{0,62}")
LABEL_RULE = "1 to 63 letters, digits and . _ - = / :, the first a letter or a digit"
MAX_LABELS = 8


@dataclass(frozen=True)
class WorkerCapacity:
    """The capacity of one GPU slot. None: unknown, so it does not limit the jobs."""

    kind: DeviceKind
    memory_bytes: int
    models: frozenset[str] | None = None
    labels: frozenset[str] | None = frozenset()
    gpus: int = 1

    @property
    def usable_bytes(self) -> int:
        return int(USABLE_MEMORY_SHARE * self.memory_bytes)


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
    )


def worker_device(description: Mapping[str, Any]) -> Device | None:
    """The device in a worker's own description; None for a worker of a release without plans, which states none."""
    if description.get("kind") not in ("cpu", "cuda") or not description.get("memory_bytes"):
        return None
    cores = int(description.get("cpus") or 1)
    core_flops = float(description.get("core_flops") or DEFAULT_CORE_FLOPS)
    return Device(description["kind"], str(description["device"]), int(description["memory_bytes"]), cores, core_flops)
