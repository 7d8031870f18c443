"""NF4 and FP4 codes on a CPU, bit for bit those of bitsandbytes, in an eighth of its time.

bitsandbytes 0.50 looks each weight up by a binary search, whose branches a processor can't predict: 20 ns a weight,
2.2 s for 106 million on two cores, most of the way from a spec to the first step. Counting the bounds that a weight
exceeds is fifteen comparisons, but sixteen weights at once: 0.15 s. Chunks are small enough to stay in a core's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.model import bitsandbytes_import  # noqa: F401  before bitsandbytes is imported by its own name

from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise  # isort: skip

BLOCK = 64  # weights that share one scale; double quantisation stores 256 scales as bytes under one of their own
CHUNK = 1 << 16  # weights: 256 KiB in float32
LEAST_SCALE = np.float32(1e-38)  # bitsandbytes' own: a block of zeros is divided by this

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def quantize(weight_D_K: torch.Tensor, quantization: QuantizationSpec) -> tuple[torch.Tensor, QuantState]:
    """Codes of 4 bits, two a byte, and what is needed to undo it. On CUDA by bitsandbytes' kernel."""
    if weight_D_K.device.type != "cpu" or weight_D_K.numel() % BLOCK:
        return _by_bitsandbytes(weight_D_K, quantization)
    codes, scales = _codes_and_scales(weight_D_K, get_4bit_type(quantization.type, device="cpu"))
    return codes, _state(scales, weight_D_K, quantization)


def _by_bitsandbytes(weight_D_K: torch.Tensor, quantization: QuantizationSpec) -> tuple[torch.Tensor, QuantState]:
    codes, state = quantize_4bit(
        weight_D_K.contiguous(),
        blocksize=BLOCK,
        compress_statistics=quantization.double_quant,
        quant_type=quantization.type,
    )
    return codes, state


def _codes_and_scales(weight_D_K: torch.Tensor, code_16: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.argsort(code_16)  # NF4's values rise; FP4's are signs and exponents
    bounds = ((code_16[order[:-1]] + code_16[order[1:]]) / 2).numpy()
    renamed = None if torch.equal(order, torch.arange(16)) else order.to(torch.uint8).numpy()
    flat = weight_D_K.reshape(-1)
    codes = np.empty(flat.numel() // 2, np.uint8)
    scales = np.empty(flat.numel() // BLOCK, np.float32)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK].to(torch.float32, copy=True).numpy().reshape(-1, BLOCK)
        blocks = slice(start // BLOCK, start // BLOCK + len(part))
        np.abs(part).max(axis=1, out=scales[blocks])
        part *= (1 / np.maximum(scales[blocks], LEAST_SCALE))[:, None]
        ranks = _ranks(part, bounds)
        codes[start // 2 : (start + part.size) // 2] = _packed(ranks if renamed is None else renamed[ranks])
    return torch.from_numpy(codes).unsqueeze(1), torch.from_numpy(scales)


def _ranks(scaled: Floats, bounds: Floats) -> Bytes:
    """How many of the rising bounds each weight exceeds: the rank of the value it is nearest to."""
    ranks: Bytes = np.greater(scaled, bounds[0]).view(np.uint8)
    exceeds = np.empty(scaled.shape, np.bool_)
    for bound in bounds[1:]:
        np.greater(scaled, bound, out=exceeds)
        np.add(ranks, exceeds.view(np.uint8), out=ranks)
    return ranks.reshape(-1)


def _packed(codes: Bytes) -> Bytes:
    packed: Bytes = (codes[::2] << np.uint8(4)) | codes[1::2]
    return packed


def _state(scales: torch.Tensor, weight_D_K: torch.Tensor, quantization: QuantizationSpec) -> QuantState:
    """As bitsandbytes makes it: doubly quantised, the scales less their mean are bytes with scales of their own."""
    about = {
        "shape": weight_D_K.shape,
        "dtype": weight_D_K.dtype,
        "blocksize": BLOCK,
        "code": get_4bit_type(quantization.type, device="cpu"),
        "quant_type": quantization.type,
    }
    if not quantization.double_quant:
        return QuantState(absmax=scales, **about)
    offset = scales.mean()
    bytes_, of_scales = quantize_blockwise(scales - offset, blocksize=256)
    return QuantState(absmax=bytes_, offset=offset, state2=of_scales, **about)
