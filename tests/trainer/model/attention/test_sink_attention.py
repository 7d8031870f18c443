"""Sinks by the log-sum-exp of a kernel equal the explicit softmax, in value and gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.trainer.helpers import CPU
from worker.trainer.kernels.comparison import difference, random_tensors, run_with_gradients
from worker.trainer.model.attention import attention
from worker.trainer.model.attention.attention import Heads
from worker.trainer.model.attention.sink_attention import FlashAttention, attention_with_sinks

HEADS, GROUPS, WIDTH = 4, 2, 16
LENGTHS = (5, 1, 18)
COPIES = HEADS // GROUPS


@dataclass
class CpuFlashAttention:
    """torch's flash attention of CPUs, which is called with the mask of the whole batch."""

    window: int | None

    def forward(self, *heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*_batched(heads), attn_mask=self._mask)
        return out[0].transpose(0, 1), lse[0]

    def backward(self, dout: torch.Tensor, *heads_out_lse: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *heads, out, lse = heads_out_lse
        tensors = dout.transpose(0, 1)[None], *_batched(heads), out.transpose(0, 1)[None], lse[None]
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *tensors, 0.0, False, attn_mask=self._mask
        )
        dquery, *others = (each[0].transpose(0, 1) for each in found)
        return dquery, *(each.reshape(len(each), GROUPS, COPIES, -1).sum(2) for each in others)

    @property
    def _mask(self) -> torch.Tensor:
        owner, at = torch.repeat_interleave(torch.tensor(LENGTHS)), torch.arange(sum(LENGTHS))
        distance = at[:, None] - at[None, :]
        sees = (owner[:, None] == owner[None, :]) & (distance >= 0) & (distance < (self.window or len(at)))
        return torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))


@pytest.mark.parametrize("window", [None, 3])
def test_equals_the_explicit_softmax(window: int | None) -> None:
    sinks_H = torch.tensor([-3.0, 0.5, 2.0, 6.0])

    def explicit(*heads: torch.Tensor) -> torch.Tensor:
        return attention._explicit(Heads(*heads, LENGTHS, None, window, sinks_H=sinks_H))

    def by_kernel(*heads: torch.Tensor) -> torch.Tensor:
        query, key, value = (each[0].transpose(0, 1) for each in heads)
        return attention_with_sinks(query, key, value, sinks_H, CpuFlashAttention(window))

    heads = random_tensors([(1, count, sum(LENGTHS), WIDTH) for count in (HEADS, GROUPS, GROUPS)], CPU, torch.float32)
    assert difference(run_with_gradients(by_kernel, heads), run_with_gradients(explicit, heads)) < 1e-6


@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_is_called_as_torch_defines_it(window: int | None) -> None:
    """On the device `meta`, whose results have shapes alone; a GPU compares the values before a job trains."""
    shapes = [(sum(LENGTHS), count, WIDTH) for count in (HEADS, GROUPS, GROUPS)]
    tensors = [torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True) for shape in shapes]
    starts = torch.empty(len(LENGTHS) + 1, dtype=torch.int32, device="meta")
    sinks_H = torch.empty(HEADS, dtype=torch.bfloat16, device="meta")
    kernel = FlashAttention(starts, max(LENGTHS), None, window)
    attention_with_sinks(tensors[0], tensors[1], tensors[2], sinks_H, kernel).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.bfloat16 for tensor in tensors)


def _batched(heads: Any) -> list[torch.Tensor]:
    """Return queries, keys and values as 1 x H x T x D."""
    copies = (1, COPIES, COPIES)
    return [each.transpose(0, 1)[None].repeat_interleave(n, dim=1) for each, n in zip(heads, copies, strict=True)]
