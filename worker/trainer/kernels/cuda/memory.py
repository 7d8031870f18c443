"""The memory of a GPU, as torch counts it, with the CUDA context of this process. The methods are those of a CPU."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from app.domain.jobs.states import Reason
from app.domain.planning.memory import PROCESS_BYTES
from worker.trainer.kernels.cpu.memory import CpuMemory, DeviceMemory
from worker.trainer.runtime.failures import Failure

CONTEXT_BYTES = PROCESS_BYTES["cuda"]


@dataclass(frozen=True)
class CudaMemory:
    device: torch.device

    def set_limits(self, budget_bytes: int | None) -> None:
        """Limit this process to a budget, of which its CUDA context is a part. None: no limit but those of the host.

        An allocation above it is an out-of-memory error here, and other processes on the GPU keep their memory. Raises
        Failure(OUT_OF_MEMORY) for a budget without space for anything but the context.
        """
        CpuMemory().set_limits(None)
        if budget_bytes is None:
            return
        allocator_bytes = budget_bytes - CONTEXT_BYTES
        if allocator_bytes <= 0:
            text = (
                f"The slot has {budget_bytes / 1e9:.2f} GB of the GPU, and its CUDA context takes "
                f"{CONTEXT_BYTES / 1e9:.2f} GB. The operator can lower TUNERY_SLOTS_PER_GPU."
            )
            raise Failure(Reason.OUT_OF_MEMORY, text)
        total_bytes = torch.cuda.mem_get_info(self.device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, allocator_bytes / total_bytes), self.device)

    def measure(self) -> DeviceMemory:
        """With a budget it is the budget, whatever other processes on the GPU use at this moment."""
        free, total = torch.cuda.mem_get_info(self.device)
        used = torch.cuda.memory_allocated(self.device)
        fraction = torch.cuda.get_per_process_memory_fraction(self.device)
        cached = torch.cuda.memory_reserved(self.device) - used
        capacity = int(fraction * total) if fraction < 1 else free + cached + used
        return DeviceMemory(capacity + CONTEXT_BYTES, used + CONTEXT_BYTES)

    def used_bytes(self) -> int:
        return torch.cuda.memory_allocated(self.device) + CONTEXT_BYTES

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        return self.peak_bytes_of_process() + CONTEXT_BYTES

    def peak_bytes_of_process(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def trim(self) -> None:
        """Do nothing: a GPU has no heap."""

    trim_if_full = trim

    def free(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
