"""Frozen weights of all experts of a layer, stacked: any selection of them is dequantized in one call.

Each expert is quantized by itself, as a frozen linear layer is (frozen_linear.py). The tensors of each format have the
expert as their first dimension.

Letters: E experts of a stack, N selected ones, D outputs and K inputs of each; P numbers of an expert (D K), padded to
whole blocks of codes; M scales of an expert, padded to whole blocks of scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the usual name

from app.domain.jobs.spec import QuantizationSpec
from app.domain.planning.memory import BLOCK, SCALE_BLOCK
from worker.trainer.model.bitsandbytes_import import bitsandbytes
from worker.trainer.model.frozen_linear import freeze, unquantized_dtype

INT8_STEP = 1 / 127  # of a row's largest weight
Selection = slice | torch.Tensor  # of experts; a tensor has their numbers


class ExpertStack:
    """Experts that are not quantized."""

    def __init__(self, shape_E_D_K: Sequence[int], tensors_E: Sequence[torch.Tensor]) -> None:
        self.count, self.out_features, self.in_features = shape_E_D_K
        self.tensors_E = tuple(tensors_E)

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors_E)

    def weights_in(self, dtype: torch.dtype, experts: Selection = slice(None)) -> torch.Tensor:
        """Return the weights of these experts (N x D x K), dequantized for one use."""
        return self._dequantized(dtype, *(tensor[experts] for tensor in self.tensors_E))

    def _dequantized(self, dtype: torch.dtype, *selected: torch.Tensor) -> torch.Tensor:
        return selected[0].to(dtype)


class _Stack8(ExpertStack):
    """Rows of int8 (N x D x K) with one scale each (N x D)."""

    def _dequantized(self, dtype: torch.dtype, *selected: torch.Tensor) -> torch.Tensor:
        codes_N_D_K, scales_N_D = selected
        # In place: bitsandbytes' own function has the same result and makes two copies in float32.
        return codes_N_D_K.float().mul_(scales_N_D.unsqueeze(2)).mul_(INT8_STEP).to(dtype)


class _Stack4(ExpertStack):
    """Codes of 4 bits, two in a byte (N x P / 2), and the scales of their blocks (N x M).

    With double quantization the scales are bytes, with scales and an offset of their own.
    """

    def __init__(self, shape_E_D_K: Sequence[int], tensors_E: Sequence[torch.Tensor], state: Any) -> None:
        super().__init__(shape_E_D_K, tensors_E)
        self._state = state  # of any expert: only what does not differ between them is used

    def _dequantized(self, dtype: torch.dtype, *selected: torch.Tensor) -> torch.Tensor:
        codes_N_P2, scales_N_M, *double = selected
        if double:
            scales_N_M = bitsandbytes.functional.dequantize_blockwise(
                scales_N_M.reshape(-1),
                absmax=double[0].reshape(-1),
                code=self._state.state2.code,
                blocksize=SCALE_BLOCK,
            ).view_as(scales_N_M)
            scales_N_M = scales_N_M[:, : codes_N_P2.shape[1] * 2 // BLOCK] + double[1].unsqueeze(1)
        state = bitsandbytes.functional.QuantState(
            absmax=scales_N_M.reshape(-1),
            shape=(len(codes_N_P2), codes_N_P2.shape[1] * 2),
            dtype=self._state.dtype,
            blocksize=BLOCK,
            code=self._state.code,
            quant_type=self._state.quant_type,
        )
        weights_N_P: torch.Tensor = bitsandbytes.functional.dequantize_4bit(codes_N_P2.reshape(-1, 1), state)
        numbers = self.out_features * self.in_features
        return weights_N_P[:, :numbers].reshape(-1, self.out_features, self.in_features).to(dtype)


def freeze_stack(
    weights_E_D_K: torch.Tensor, quantization: QuantizationSpec | None, compute_dtype: torch.dtype
) -> ExpertStack:
    """Return the frozen experts, on the device of the weights."""
    if quantization is None:
        dtype = unquantized_dtype(weights_E_D_K.dtype, compute_dtype)
        copied = weights_E_D_K.to(dtype, copy=True, memory_format=torch.contiguous_format)
        return ExpertStack(weights_E_D_K.shape, [copied])
    layers: list[Any] = [freeze(weight_D_K.contiguous(), quantization, compute_dtype) for weight_D_K in weights_E_D_K]
    of_8_bits = quantization.bits == 8
    parts = [(layer.weight.data, layer.state.SCB) if of_8_bits else _parts_of_4_bits(layer.weight) for layer in layers]
    tensors_E = [torch.stack(tensors) for tensors in zip(*parts, strict=True)]
    if of_8_bits:
        return _Stack8(weights_E_D_K.shape, tensors_E)
    return _Stack4(weights_E_D_K.shape, tensors_E, layers[0].weight.quant_state)


def _parts_of_4_bits(weight: Any) -> tuple[torch.Tensor, ...]:
    """Return the tensors of one expert, padded to whole blocks, so that no block has numbers of two experts."""
    codes, state = weight.data.reshape(-1), weight.quant_state
    codes_P2 = F.pad(codes, (0, -len(codes) % (BLOCK // 2)))
    if not state.nested:
        return codes_P2, state.absmax
    scales_M = F.pad(state.absmax, (0, -len(state.absmax) % SCALE_BLOCK))
    return codes_P2, scales_M, state.state2.absmax, state.offset
