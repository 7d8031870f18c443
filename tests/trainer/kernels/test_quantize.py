"""The 4-bit codes equal those of bitsandbytes, so that other software loads the same base for an adapter."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import quantize_4bit

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.kernels.cpu.quantize import BLOCK, CHUNK, quantize


def weight(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return normal values, a block of zeros, a block of one value, and the bounds between two codes."""
    dice = torch.Generator().manual_seed(3)
    values = torch.randn(rows, columns, generator=dice) * 0.05
    values.view(-1)[:BLOCK] = 0
    values.view(-1)[BLOCK : 2 * BLOCK] = -0.25
    values.view(-1)[2 * BLOCK : 3 * BLOCK] = torch.linspace(-1, 1, BLOCK)
    return values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(192, 64), (3, CHUNK), (7, 5)], ids=["small", "several chunks", "no whole block"])
def test_codes_and_scales_equal_those_of_bitsandbytes(
    dtype: torch.dtype, double_quant: bool, kind: str, shape: tuple[int, int]
) -> None:
    if shape == (7, 5):
        given = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    else:
        given = weight(*shape, dtype)
    before = given.clone()
    codes, state = quantize(given, QuantizationSpec(type=kind, double_quant=double_quant))
    theirs, their_state = quantize_4bit(given, blocksize=BLOCK, compress_statistics=double_quant, quant_type=kind)
    assert torch.equal(codes, theirs)
    assert torch.equal(given, before)
    ours, want = state.as_dict(), their_state.as_dict()
    assert ours.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value, name


def test_a_weight_that_is_not_contiguous_is_read_in_its_logical_order() -> None:
    given = weight(128, 64, torch.float32).t()
    codes, _ = quantize(given, QuantizationSpec())
    assert torch.equal(codes, quantize(given.contiguous(), QuantizationSpec())[0])


@pytest.mark.parametrize("shape", [(192, 64), (7, 5)], ids=["here", "by bitsandbytes, as on CUDA"])
def test_a_weight_of_64_bits_is_quantized_as_one_of_32(shape: tuple[int, int]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    codes, _ = quantize(given.double(), QuantizationSpec())
    assert torch.equal(codes, quantize(given, QuantizationSpec())[0])
