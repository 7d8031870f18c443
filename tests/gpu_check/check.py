"""What a check of `make gpu-check` gets, returns and raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.trainer.runtime.device import choose_threads

REPORT = "report it, with gpu-check.json"
Seen = str | Mapping[str, float | str]  # what was measured: a text, or values by name


@dataclass(frozen=True)
class Site:
    """Where a check runs: the device, an empty directory, and the base model to check."""

    device: torch.device
    directory: Path
    model: Path

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[Site], Seen]
    limit_seconds: float
    needs_gpus: int = 0


class CheckFailed(Exception):
    """A check's finding: what was seen, what is allowed, what to do."""

    def __init__(self, seen: str, allowed: str, remedy: str) -> None:
        super().__init__(f"seen: {seen}; allowed: {allowed}; to do: {remedy}")


def threads_of(device: torch.device) -> int:
    """Return one thread for the tiny models of a CPU: several wait for each other on cores that others use."""
    return choose_threads() if device.type == "cuda" else 1


def shown(seen: Seen) -> str:
    """Return what was measured as one line."""
    if isinstance(seen, str):
        return " ".join(seen.split())
    return "; ".join(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in seen.items())
