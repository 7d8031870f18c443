"""4-bit quantization (NF4, FP4) on a CPU: the same codes as bitsandbytes, in an eighth of its time.

bitsandbytes 0.50 finds each code by a binary search, whose branches a processor cannot predict: 20 ns per weight, 2.2 s
for 106 million weights on two cores, which was most of the time before the first step. This module counts the bounds
that a weight exceeds: fifteen comparisons, but vectorised over sixteen weights: 0.15 s. A chunk fits into a core's
cache. Frozen4 (frozen_linear.py) dequantizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from app.domain.jobs.spec import QuantizationSpec
from app.domain.planning.memory import BLOCK, SCALE_BLOCK
from worker.trainer.model import bitsandbytes_import  # noqa: F401  before bitsandbytes is imported by its own name

from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise  # isort: skip

CHUNK = 1 << 16  # weights: 256 KiB in float32
MIN_SCALE = np.float32(1e-38)  # as in bitsandbytes: the divisor of a block of zeros

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def quantize(weight_D_K: torch.Tensor, quantization: QuantizationSpec) -> tuple[torch.Tensor, QuantState]:
    """Return the 4-bit codes, two per byte, and the state for dequantization. On CUDA, bitsandbytes' kernel runs."""
    if not weight_D_K.is_cpu or weight_D_K.numel() % BLOCK:
        if weight_D_K.dtype == torch.float64:  # which bitsandbytes refuses
            weight_D_K = weight_D_K.float()
        codes, state = quantize_4bit(
            weight_D_K.contiguous(),
            blocksize=BLOCK,
            compress_statistics=quantization.double_quant,
            quant_type=quantization.type,
        )
        return codes, state
    code_16 = get_4bit_type(quantization.type, device="cpu")
    codes, scales = _codes_and_scales(weight_D_K, code_16)
    fields = {
        "shape": weight_D_K.shape,
        "dtype": weight_D_K.dtype,
        "blocksize": BLOCK,
        "code": code_16,
        "quant_type": quantization.type,
    }
    if not quantization.double_quant:
        return codes, QuantState(absmax=scales, **fields)
    offset = scales.mean()
    scale_bytes, scale_state = quantize_blockwise(scales - offset, blocksize=SCALE_BLOCK)
    return codes, QuantState(absmax=scale_bytes, offset=offset, state2=scale_state, **fields)


def _codes_and_scales(weight_D_K: torch.Tensor, code_16: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed codes and the scale of each block; `code_16` has the 16 values of the codes."""
    order = torch.argsort(code_16)  # NF4's values are sorted; FP4's are signs and exponents
    bounds = ((code_16[order[:-1]] + code_16[order[1:]]) / 2).numpy()
    code_by_rank = None if torch.equal(order, torch.arange(16)) else order.to(torch.uint8).numpy()
    flat = weight_D_K.reshape(-1)
    codes = np.empty(flat.numel() // 2, np.uint8)
    scales = np.empty(flat.numel() // BLOCK, np.float32)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK].to(torch.float32, copy=True).numpy().reshape(-1, BLOCK)
        blocks = slice(start // BLOCK, start // BLOCK + len(part))
        np.abs(part).max(axis=1, out=scales[blocks])
        part *= (1 / np.maximum(scales[blocks], MIN_SCALE))[:, None]
        ranks = _ranks(part, bounds)
        unpacked = ranks if code_by_rank is None else code_by_rank[ranks]
        codes[start // 2 : (start + part.size) // 2] = (unpacked[::2] << np.uint8(4)) | unpacked[1::2]
    return torch.from_numpy(codes).unsqueeze(1), torch.from_numpy(scales)


def _ranks(scaled: Floats, bounds: Floats) -> Bytes:
    """Return the number of bounds that each weight exceeds, which is the rank of the nearest value."""
    ranks: Bytes = np.greater(scaled, bounds[0]).view(np.uint8)
    exceeds = np.empty(scaled.shape, np.bool_)
    for bound in bounds[1:]:
        np.greater(scaled, bound, out=exceeds)
        np.add(ranks, exceeds.view(np.uint8), out=ranks)
    return ranks.reshape(-1)
