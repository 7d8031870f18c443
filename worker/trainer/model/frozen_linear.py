"""Frozen linear layers: not quantized, in blocks of 4 bits (QLoRA, arXiv 2305.14314), or in rows of 8 bits.

PEFT supports the classes they inherit from, so PEFT can load a saved adapter onto these layers for the last check.
Unlike the forward of bitsandbytes, this one never repacks the weight for faster inference: W stays equal to the bit.

Letters: T tokens, K inputs and D outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open

from app.domain.jobs.spec import QuantizationSpec
from app.domain.planning.memory import BLOCK
from worker.trainer.kernels.cpu.quantize import quantize
from worker.trainer.model.bitsandbytes_import import bitsandbytes

dequantize_4bit = bitsandbytes.functional.dequantize_4bit
int8_vectorwise_dequant = bitsandbytes.functional.int8_vectorwise_dequant

DEQUANTIZED_NUMBERS = 1 << 20  # of 8-bit weights at once: 8 MB in float32


class FrozenLinear:
    """What all frozen layers share, before the class of torch or bitsandbytes that they also are."""

    in_features: int
    out_features: int
    weight: Any  # a Parameter; with 4 bits it also has the quantization state
    bias: Any

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        """Return W (D x K), dequantized for one use; the stored or cached weight itself if it has that dtype."""
        raise NotImplementedError

    def bias_in(self, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def forward(self, x_T_K: torch.Tensor) -> torch.Tensor:
        return F.linear(x_T_K, self.weight_in(x_T_K.dtype), self.bias_in(x_T_K.dtype))


class _Quantized(FrozenLinear):
    cached: torch.Tensor | None = None
    compute_dtype: torch.dtype

    def _dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        raise NotImplementedError

    def cache_weight(self, is_cached: bool) -> None:
        """Keep the dequantized weight in the compute dtype, or free it. Without it each use dequantizes the weight.

        Equal to the bit. Measured with 4 bits: 3 % of a step (1,519 tokens, 2 cores); on an H100 11 % are expected.
        """
        if is_cached != (self.cached is not None):
            self.cached = self._dequantized(self.compute_dtype) if is_cached else None

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        if self.cached is not None and self.cached.dtype == dtype:
            return self.cached
        return self._dequantized(dtype)


class Frozen16(FrozenLinear, torch.nn.Linear):
    """Not quantized; `unquantized_dtype` is the dtype of the weight."""

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        weight: torch.Tensor = self.weight.to(dtype)
        return weight


class Frozen4(_Quantized, bitsandbytes.nn.Linear4bit):  # type: ignore[misc]  # untyped library
    """NF4 or FP4 codes with a scale for each block of 64 weights (QLoRA)."""

    def _dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        weight: torch.Tensor = dequantize_4bit(self.weight.data, self.weight.quant_state)
        return weight.to(dtype)


class Frozen8(_Quantized, bitsandbytes.nn.Linear8bitLt):  # type: ignore[misc]  # untyped library
    """Rows of int8 with one scale each (LLM.int8, arXiv 2208.07339). Only the weight is int8; x is not rounded."""

    def _dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Dequantize some rows at a time: bitsandbytes makes two float32 copies."""
        codes_D_K, scales_D = self.weight.data, self.state.SCB
        weight_D_K = torch.empty_like(codes_D_K, dtype=dtype)
        rows = max(1, DEQUANTIZED_NUMBERS // codes_D_K.shape[1])
        parts = (torch.split(tensor, rows) for tensor in (weight_D_K, codes_D_K, scales_D))
        for weight, codes, scales in zip(*parts, strict=True):
            weight.copy_(int8_vectorwise_dequant(codes, scales))
        return weight_D_K


class StoredLinear(FrozenLinear, torch.nn.Module):
    """Takes the place of a quantized layer: the weight is read from the model's file at each use, or once in `held`."""

    def __init__(self, quantized: FrozenLinear, path: Path, key: str, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = quantized.in_features, quantized.out_features
        self.weight, self.bias = quantized.weight, quantized.bias
        self._path, self._key, self._device = path, key, device
        self._held: torch.Tensor | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the weight on the device in the block, in the dtype of the file."""
        self._held = self._read()
        try:
            yield
        finally:
            self._held = None

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        return (self._read() if self._held is None else self._held).to(dtype)

    def _read(self) -> torch.Tensor:
        with safe_open(self._path, framework="pt", device="cpu") as file:
            weight: torch.Tensor = file.get_tensor(self._key)
        return weight.to(self._device)


def freeze(weight_D_K: torch.Tensor, quantization: QuantizationSpec | None, compute_dtype: torch.dtype) -> FrozenLinear:
    """Return a frozen layer without a bias, from the weight of a model file, on the device of the weight."""
    outputs, inputs = weight_D_K.shape
    if quantization is None:
        layer = Frozen16(inputs, outputs, bias=False, device="meta")
        dtype = unquantized_dtype(weight_D_K.dtype, compute_dtype)
        layer.weight = torch.nn.Parameter(weight_D_K.to(dtype, copy=True), requires_grad=False)
        return layer
    if quantization.bits == 8:  # as bitsandbytes does: from float16, whatever the dtype of the weight
        codes, scales_D, _ = bitsandbytes.functional.int8_vectorwise_quant(weight_D_K.contiguous().to(torch.float16))
        layer8 = Frozen8(inputs, outputs, bias=False, has_fp16_weights=False, device="meta")
        layer8.weight = bitsandbytes.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False)
        layer8.state.SCB = scales_D
        layer8.compute_dtype = compute_dtype
        return layer8
    codes, state = quantize(weight_D_K, quantization)  # from the precision of the model file
    state.dtype = compute_dtype  # of the dequantized weight
    layer4 = Frozen4(inputs, outputs, bias=False, device="meta", compute_dtype=compute_dtype)
    layer4.weight = bitsandbytes.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=quantization.double_quant,
        quant_type=quantization.type,
        bnb_quantized=True,
        module=layer4,
    )
    return layer4


def stored_bytes(layer: FrozenLinear) -> int:
    """Return the bytes of codes and scales: 4.127 bits per weight with 4 bits and double quantization."""
    tensors = [layer.weight.data]
    if isinstance(layer, Frozen8):
        tensors += [layer.state.SCB]
    if state := getattr(layer.weight, "quant_state", None):
        tensors += [state.absmax, *([state.state2.absmax, state.offset] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def unquantized_dtype(of_file: torch.dtype, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a weight that is not quantized is stored: the compute dtype, but the 16 bits of its
    file for products in float32, which convert it at each use (exactly): a copy in float32 would take twice the memory.
    """
    return of_file if compute_dtype == torch.float32 and of_file.itemsize == 2 else compute_dtype
