"""Copies of weights to a GPU: the next part is read from the file while the part before it is copied.

A copy from pageable memory, such as a mapped file, blocks until it is complete, and is staged by the driver. Here the
parts of a tensor are read, by all threads of the CPU, into two buffers in pinned memory in turn; from these the GPU
copies, and quantizes, on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch

PART_BYTES = 64 << 20  # of pinned memory for each of the two buffers, whatever the size of a tensor


class StagedCopy:
    """Copies tensors to a device through two buffers of `part_bytes`, each with the event of its last copy."""

    def __init__(
        self,
        device: torch.device,
        part_bytes: int = PART_BYTES,
        *,
        pin: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.pin_memory,
        event: Callable[[], Any] = torch.cuda.Event,
    ) -> None:
        self._device, self._part_bytes = device, part_bytes
        self._buffers = cycle([(pin(torch.empty(part_bytes, dtype=torch.uint8)), event()) for _ in range(2)])

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor on the device; the copy may still be under way on its current stream."""
        copied = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        source_N, target_N = (each.reshape(-1).view(torch.uint8) for each in (tensor.contiguous(), copied))
        parts = (torch.split(each, self._part_bytes) for each in (source_N, target_N))
        for source_P, target_P in zip(*parts, strict=True):
            buffer, last_copy = next(self._buffers)
            last_copy.synchronize()
            part_P = buffer[: len(source_P)].copy_(source_P)
            target_P.copy_(part_P, non_blocking=True)
            last_copy.record()
        return copied


def copier(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that copies tensors of the CPU to a device; to the CPU it copies nothing."""
    return StagedCopy(device) if device.type == "cuda" else lambda tensor: tensor.to(device)
