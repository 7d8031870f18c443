"""What a worker offers, what a job needs of one, and what is lacking, in a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.error_text.json_text import shown
from app.domain.planning.duration import DEFAULT_CORE_FLOPS
from app.domain.planning.estimate import HEADROOM, Device
from app.domain.planning.memory import DeviceKind

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=/:-]{0,62}")
LABEL_RULE = "1 to 63 letters, digits and . _ - = / :, the first a letter or a digit"
MAX_LABELS = 8


@dataclass(frozen=True)
class Offer:
    """What one GPU slot has for a job. None: it does not say, so it is asked for nothing."""

    kind: DeviceKind
    memory_bytes: int
    models: frozenset[str] | None = None
    labels: frozenset[str] | None = frozenset()
    gpus: int = 1

    @property
    def usable_bytes(self) -> int:
        return int(HEADROOM * self.memory_bytes)


@dataclass(frozen=True)
class Need:
    """What a job asks of its worker; bytes are None until its files are validated."""

    base_model: str
    labels: frozenset[str] = frozenset()
    cpu_bytes: int | None = None
    cuda_bytes: int | None = None

    def bytes_on(self, kind: DeviceKind) -> int:
        return (self.cpu_bytes if kind == "cpu" else self.cuda_bytes) or 0


def has_model(offer: Offer, need: Need) -> bool:
    return offer.models is None or need.base_model in offer.models


def has_labels(offer: Offer, need: Need) -> bool:
    return offer.labels is None or need.labels <= offer.labels


def has_memory(offer: Offer, need: Need) -> bool:
    return need.bytes_on(offer.kind) <= offer.usable_bytes


def fits(offer: Offer, need: Need) -> bool:
    return has_model(offer, need) and has_labels(offer, need) and has_memory(offer, need)


def what_lacks(offers: Sequence[Offer], need: Need) -> str | None:
    """None when one of the offers fits; else what to wait for, or to ask the operator about."""
    if not offers:
        return "No worker that trains is alive."
    if any(fits(offer, need) for offer in offers):
        return None
    with_model = [offer for offer in offers if has_model(offer, need)]
    if not with_model:
        return f"No living worker has the model {shown(need.base_model)} with the files that were registered."
    labelled = [offer for offer in with_model if has_labels(offer, need)]
    if not labelled:
        asked = ", ".join(sorted(need.labels))
        return f"No living worker that has the model {shown(need.base_model)} has the labels {asked}."
    largest = max(labelled, key=lambda offer: offer.usable_bytes - need.bytes_on(offer.kind))
    needed, there = need.bytes_on(largest.kind) / 1e9, largest.memory_bytes / 1e9
    return (
        f"No living worker that may take the job has the memory: it needs {needed:.2f} GB, the largest has {there:.2f}."
    )


def offer_of(about: Mapping[str, Any]) -> Offer:
    """From what a worker says of itself; one that says nothing is taken to have room for everything."""
    device = device_of(about)
    models = about.get("models")
    return Offer(
        kind=device.kind if device else "cpu",
        memory_bytes=device.memory_bytes if device else 1 << 60,
        models=None if models is None else frozenset(models),
        labels=frozenset(about.get("labels") or ()),
        gpus=int(about.get("gpus_per_job") or 1),
    )


def device_of(about: Mapping[str, Any]) -> Device | None:
    """A worker of before there were plans does not say what it has."""
    if about.get("kind") not in ("cpu", "cuda") or not about.get("memory_bytes"):
        return None
    cores, core_flops = int(about.get("cpus") or 1), float(about.get("core_flops") or DEFAULT_CORE_FLOPS)
    return Device(about["kind"], str(about["device"]), int(about["memory_bytes"]), cores, core_flops)
