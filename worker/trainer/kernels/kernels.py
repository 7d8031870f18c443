"""The kernels of a run: what it does otherwise on one device than on another, chosen once from device and plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.domain.planning.memory import CUDA_CHUNK_TOKENS, MIN_CHUNK_TOKENS, DeviceKind
from worker.trainer.kernels.cpu.memory import CpuMemory
from worker.trainer.kernels.cuda.memory import CudaMemory

Memory = CpuMemory | CudaMemory
FUSED_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16


@dataclass(frozen=True)
class Kernels:
    device: torch.device
    kind: DeviceKind
    memory: Memory
    synchronize: Callable[[], None]
    answers_at_once: int  # prompts of an evaluation, halved when memory runs out
    processes_share_memory: bool  # those of one job
    # TUNERY_CUDA_KERNELS: compiled norms, gated products and rotary embeddings; flash attention 3 and 4; longer chunks
    # of the loss; dropout masks that are drawn again in the backward, instead of a byte kept per input; batches made
    # ahead, in pinned memory.
    is_fused: bool = False

    @property
    def min_loss_chunk_tokens(self) -> int:
        return CUDA_CHUNK_TOKENS if self.is_fused else MIN_CHUNK_TOKENS


def choose_kernels(device: torch.device, wants_fused: bool = False) -> Kernels:
    """Return the kernels of a device. `wants_fused` is the setting, then the plan's; it needs CUDA and sm80."""
    if device.type == "cuda":
        return Kernels(
            device=device,
            kind="cuda",
            memory=CudaMemory(device),
            synchronize=lambda: torch.cuda.synchronize(device),
            answers_at_once=64,
            processes_share_memory=False,
            is_fused=wants_fused and torch.cuda.get_device_capability(device) >= FUSED_CAPABILITY,
        )
    return Kernels(
        device=device,
        kind="cpu",
        memory=CpuMemory(),
        synchronize=lambda: None,
        answers_at_once=16,
        processes_share_memory=True,
    )
