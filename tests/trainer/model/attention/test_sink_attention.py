"""Sinks by the log-sum-exp of a kernel equal the explicit softmax, in value and gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from worker.trainer.model.attention import attention
from worker.trainer.model.attention.attention import Heads
from worker.trainer.model.attention.sink_attention import FlashAttention, attention_with_sinks

HEADS, GROUPS, WIDTH = 4, 2, 16
LENGTHS = (5, 1, 18)
COPIES = HEADS // GROUPS


@dataclass
class ByFormula:
    """Softmax over all tokens with a mask; the backward as flash attention computes it."""

    lengths: tuple[int, ...]
    scale: float
    window: int | None

    def forward(self, *heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = _by_head(heads)
        scores = self._scores(query, key)
        return (scores.softmax(-1) @ value).transpose(0, 1), scores.logsumexp(-1)

    def backward(self, dout: torch.Tensor, *heads_out_lse: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *heads, out, lse = heads_out_lse
        query, key, value = _by_head(heads)
        weights = (self._scores(query, key) - lse.unsqueeze(2)).exp()
        dout, out = dout.transpose(0, 1), out.transpose(0, 1)
        dscores = weights * (dout @ value.transpose(1, 2) - (dout * out).sum(-1, keepdim=True)) * self.scale
        return _by_token(dscores @ key, dscores.transpose(1, 2) @ query, weights.transpose(1, 2) @ dout)

    def _scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        owner, at = torch.repeat_interleave(torch.tensor(self.lengths)), torch.arange(sum(self.lengths))
        distance = at[:, None] - at[None, :]
        sees = (owner[:, None] == owner[None, :]) & (distance >= 0) & (distance < (self.window or len(at)))
        return (query @ key.transpose(1, 2) * self.scale).masked_fill(~sees, float("-inf"))


@dataclass
class OnTheCpu(ByFormula):
    """torch's flash attention of CPUs, which is called with the mask of the whole batch."""

    def forward(self, *heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*_batched(heads), **self._options)
        return out[0].transpose(0, 1), lse[0]

    def backward(self, dout: torch.Tensor, *heads_out_lse: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *heads, out, lse = heads_out_lse
        tensors = dout.transpose(0, 1)[None], *_batched(heads), out.transpose(0, 1)[None], lse[None], 0.0, False
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, **self._options)
        return _by_token(*(each[0] for each in found))

    @property
    def _options(self) -> dict[str, Any]:
        nothing = torch.zeros(1, sum(self.lengths), 1)
        return {"attn_mask": self._scores(nothing, nothing)[0], "scale": self.scale}


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kernel", [ByFormula, OnTheCpu])
def test_equals_the_explicit_softmax(kernel: type[ByFormula], window: int | None) -> None:
    sinks_H = torch.tensor([-3.0, 0.5, 2.0, 6.0])
    results = []
    for explicit in (True, False):
        generator = torch.Generator().manual_seed(0)
        tensors = [
            torch.randn(1, count, sum(LENGTHS), WIDTH, generator=generator).requires_grad_()
            for count in (HEADS, GROUPS, GROUPS)
        ]
        if explicit:
            out_T_H_D = attention._explicit(Heads(*tensors, LENGTHS, None, window, sinks_H=sinks_H))
        else:
            heads = (tensor[0].transpose(0, 1) for tensor in tensors)
            out_T_H_D = attention_with_sinks(*heads, sinks_H, kernel(LENGTHS, WIDTH**-0.5, window))  # type: ignore[misc]
        (out_T_H_D * torch.randn(out_T_H_D.shape, generator=generator)).sum().backward()
        results.append([out_T_H_D.detach(), *(tensor.grad for tensor in tensors)])
    for expected, found in zip(*results, strict=True):
        assert expected is not None
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


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


def _by_head(heads: Any) -> list[torch.Tensor]:
    """Return queries, keys and values as H x T x D."""
    copies = (1, COPIES, COPIES)
    return [each.transpose(0, 1).repeat_interleave(count, dim=0) for each, count in zip(heads, copies, strict=True)]


def _batched(heads: Any) -> list[torch.Tensor]:
    return [each[None] for each in _by_head(heads)]


def _by_token(*gradients_H_T_D: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the gradients as T x H x D and twice T x G x D: a key head has the sum of its query heads."""
    dquery, *others = (gradient.transpose(0, 1) for gradient in gradients_H_T_D)
    return dquery, *(each.reshape(len(each), GROUPS, COPIES, -1).sum(2) for each in others)
