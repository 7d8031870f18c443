"""The memory of a process's device: capacity, use, and peak. CPU: cpu/memory.py, CUDA: cuda/memory.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class DeviceMemory:
    """The bytes that this process may use in total, and those that it uses."""

    capacity_bytes: int
    used_bytes: int
    counts_mapped_memory: bool = False  # mapped pages count even if they were never touched

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes


class Memory(Protocol):
    def set_limits(self, budget_bytes: int | None, /) -> None:
        """Prepare the allocators for the limits of this process, and for a budget of a GPU's memory.

        Raises Failure(OUT_OF_MEMORY) for a budget without space for anything but the CUDA context.
        """

    def measure(self) -> DeviceMemory: ...

    def used_bytes(self) -> int: ...

    def reset_peak(self) -> None:
        """Measure the peak from now on."""

    def peak_bytes(self) -> int: ...

    def peak_bytes_of_process(self) -> int:
        """Return the peak that metrics show: since the start of the process, on CUDA of all tensors."""

    def trim(self) -> bool:
        """Return freed memory of the heap to the system. Returns whether there is such a heap."""

    def trim_if_full(self) -> None:
        """Trim if the memory is almost full."""

    def free(self) -> None:
        """Free memory after an out-of-memory error: garbage, and the caches of the allocators."""
