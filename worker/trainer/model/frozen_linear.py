"""A linear layer that never changes: 16 bits wide, in blocks of 4 bits (QLoRA, arXiv 2305.14314), or in rows of 8.

PEFT knows all kinds as what they inherit from, so a saved adapter can be put onto these very layers to be checked.
Unlike bitsandbytes' own forward, ours never repacks the weight for faster inference: W stays as it is, to the bit.

Letters: T tokens, K inputs and D outputs of a layer.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.model.bitsandbytes_import import bitsandbytes
from worker.trainer.model.quantize import BLOCK, quantize

dequantize_4bit = bitsandbytes.functional.dequantize_4bit
int8_vectorwise_dequant = bitsandbytes.functional.int8_vectorwise_dequant
int8_vectorwise_quant = bitsandbytes.functional.int8_vectorwise_quant


class FrozenLinear(Protocol):
    in_features: int
    out_features: int
    weight: Any  # a Parameter; for 4 bits one that also carries the state of its quantisation
    bias: Any

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        """W as D x K, made for this use and dropped after it; the stored or kept weight where it has that dtype."""

    def bias_in(self, dtype: torch.dtype) -> torch.Tensor | None: ...


class Frozen16(torch.nn.Linear):
    """Not quantised: the weight is in the compute dtype, which is float32 where that was chosen."""

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        return self.weight.to(dtype)

    def bias_in(self, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def forward(self, x_T_K: torch.Tensor) -> torch.Tensor:
        return F.linear(x_T_K, self.weight_in(x_T_K.dtype), self.bias_in(x_T_K.dtype))


class Frozen4(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]  # untyped library
    """NF4 or FP4 codes with a scale for each block of 64 weights (QLoRA)."""

    cached: torch.Tensor | None = None

    def cache_weight(self, is_cached: bool) -> None:
        """Dequantise once and for all: 2 bytes a weight instead of a pass over it in each forward and backward.

        The same numbers to the bit. Seen: 3 % of a step at 1,519 tokens on two cores; expected: 11 % at 2,048 on an
        H100.
        """
        if is_cached != (self.cached is not None):
            self.cached = self._dequantised() if is_cached else None

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        return (self._dequantised() if self.cached is None else self.cached).to(dtype)

    def _dequantised(self) -> torch.Tensor:
        weight: torch.Tensor = dequantize_4bit(self.weight.data, self.weight.quant_state)
        return weight

    def bias_in(self, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def forward(self, x_T_K: torch.Tensor) -> torch.Tensor:
        return F.linear(x_T_K, self.weight_in(x_T_K.dtype), self.bias_in(x_T_K.dtype))


class Frozen8(bitsandbytes.nn.Linear8bitLt):  # type: ignore[misc]  # untyped library
    """Rows of int8 with one scale each (LLM.int8, arXiv 2208.07339). Only the weight: x is not rounded to int8."""

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        weight: torch.Tensor = int8_vectorwise_dequant(self.weight.data, self.state.SCB)
        return weight.to(dtype)

    def bias_in(self, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def forward(self, x_T_K: torch.Tensor) -> torch.Tensor:
        return F.linear(x_T_K, self.weight_in(x_T_K.dtype), self.bias_in(x_T_K.dtype))


def freeze(weight_D_K: torch.Tensor, quantization: QuantizationSpec | None, compute_dtype: torch.dtype) -> FrozenLinear:
    """A frozen layer, still without a bias, from a checkpoint's tensor, on the device it is on."""
    if quantization is None:
        return _in_16_bits(weight_D_K, compute_dtype)
    if quantization.bits == 8:
        return _in_8_bits(weight_D_K)
    return _in_4_bits(weight_D_K, quantization, compute_dtype)


def stored_bytes(layer: FrozenLinear) -> int:
    """What the weight occupies: the codes and their scales (4.127 bits a weight for 4 bits, doubly quantised)."""
    tensors = [layer.weight.data]
    if isinstance(layer, Frozen8):
        tensors += [layer.state.SCB]
    if state := getattr(layer.weight, "quant_state", None):
        tensors += [state.absmax, *([state.state2.absmax, state.offset] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _in_16_bits(weight_D_K: torch.Tensor, compute_dtype: torch.dtype) -> Frozen16:
    layer = Frozen16(weight_D_K.shape[1], weight_D_K.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight_D_K.to(compute_dtype, copy=True), requires_grad=False)
    return layer


def _in_8_bits(weight_D_K: torch.Tensor) -> Frozen8:
    """As bitsandbytes does it: from float16, whatever the checkpoint has."""
    codes, scales_D, _ = int8_vectorwise_quant(weight_D_K.contiguous().to(torch.float16))
    layer = Frozen8(weight_D_K.shape[1], weight_D_K.shape[0], bias=False, has_fp16_weights=False, device="meta")
    layer.weight = bitsandbytes.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False)
    layer.state.SCB = scales_D
    return layer


def _in_4_bits(weight_D_K: torch.Tensor, quantization: QuantizationSpec, compute_dtype: torch.dtype) -> Frozen4:
    """The codes are found in the checkpoint's own precision; dequantising gives `compute_dtype`."""
    codes, state = quantize(weight_D_K, quantization)
    state.dtype = compute_dtype
    layer = Frozen4(weight_D_K.shape[1], weight_D_K.shape[0], bias=False, device="meta", compute_dtype=compute_dtype)
    layer.weight = bitsandbytes.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=quantization.double_quant,
        quant_type=quantization.type,
        bnb_quantized=True,
        module=layer,
    )
    return layer
