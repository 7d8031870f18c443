"""The kernels of a run: what it does otherwise on one device than on another, chosen once from device and plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from app.domain.planning.memory import CUDA_CHUNK_TOKENS, MIN_CHUNK_TOKENS, DeviceKind
from worker.trainer.kernels.compiled import use_compiled_functions
from worker.trainer.kernels.cpu.memory import CpuMemory
from worker.trainer.kernels.cuda.memory import CudaMemory
from worker.trainer.kernels.replacement import MEMORY_EFFICIENT, replace_functions
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.records import Keepalive

Memory = CpuMemory | CudaMemory
FUSED_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16


@dataclass(frozen=True)
class Kernels:
    device: torch.device
    kind: DeviceKind
    memory: Memory
    # left^T right in float32 of two float16 matrices, whose sum over tokens may exceed the largest number, 65,504.
    sum_of_float16_products: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
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

    def replace_functions(
        self, model: Any, dtype: torch.dtype, patches: Patches, keepalive: Keepalive
    ) -> tuple[dict[str, int], str]:
        """Replace functions of `model` that have an equal one here.

        Returns the number of fused ones by kind, and why there is none.
        """
        replace_functions(model, dtype, MEMORY_EFFICIENT, patches, keepalive)
        return use_compiled_functions(model, dtype, patches, keepalive) if self.is_fused else ({}, "")


def choose_kernels(device: torch.device, wants_fused: bool = False) -> Kernels:
    """Return the kernels of a device. `wants_fused` is the setting, then the plan's; it needs CUDA and sm80."""
    if device.type == "cuda":
        return Kernels(
            device=device,
            kind="cuda",
            memory=CudaMemory(device),
            sum_of_float16_products=lambda left_T_M, right_T_N: torch.mm(
                left_T_M.t(), right_T_N, out_dtype=torch.float32
            ),
            synchronize=lambda: torch.cuda.synchronize(device),
            answers_at_once=64,
            processes_share_memory=False,
            is_fused=wants_fused and torch.cuda.get_device_capability(device) >= FUSED_CAPABILITY,
        )
    return Kernels(
        device=device,
        kind="cpu",
        memory=CpuMemory(),
        sum_of_float16_products=lambda left_T_M, right_T_N: left_T_M.float().t() @ right_T_N.float(),
        synchronize=lambda: None,
        answers_at_once=16,
        processes_share_memory=True,
    )
